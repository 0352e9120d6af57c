package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// What a starting container reads of its image: 6.4 % of the bytes (Harter et al., "Slacker",
// FAST'16), here in random pieces, several at a time.
const (
	lazyShare   = 0.064
	lazyPiece   = 64 << 10
	lazyClients = 8
	// lazyTail is how many bytes of a blob's end a lazy puller reads first.
	lazyTail = 100
	// lazyRoundTrip is what a piece through a cache may take longer than from the hub: one
	// round trip and 5 ms.
	lazyRoundTrip = float64(farDelay/time.Millisecond) + 5
)

// Keys of the figures that only the lazy row has.
const (
	firstMax   = "first_max_ms"  // the longest wait for the first byte of a piece
	tailFirst  = "tail_ms"       // first byte of the end of a blob
	again      = "again_seconds" // of the same pieces, for a second client
	eventually = "upstream_all"  // bytes that the upstream sent until the blob was complete, per byte of it
	perPiece   = "hub_requests"  // that the hub was asked, per piece
)

func lazyRow() row {
	return row{
		name: "lazy-start", subjects: farPulling, slow: true, run: lazyStart,
		title: "lazy start: 6.4 % of a cold 1 GiB in random 64 KiB pieces, 8 at a time, over TLS with HTTP/2 offered, at 30 ms and 40 MB/s a connection",
		figures: []figure{
			{key: first, title: "first byte of a piece, median, ms", digits: 1, bar: &bar{over: direct, by: atMostMore, limit: lazyRoundTrip}},
			{key: firstMax, title: "first byte of a piece, longest, ms", digits: 1, bar: &bar{over: direct, by: atMostMore, limit: lazyRoundTrip}},
			{key: tailFirst, title: "first byte of the last 100 bytes, ms", digits: 1, bar: &bar{over: direct, by: atMostMore, limit: lazyRoundTrip}},
			{key: duration, title: "all pieces, s", digits: 2},
			{key: upstream, title: "upstream bytes per byte asked", digits: 3, bar: &bar{by: atMost, limit: 1.25}},
			{key: perPiece, title: "upstream requests per piece", digits: 2},
			{key: eventually, title: "upstream bytes per byte of the completed blob", digits: 3, bar: &bar{by: atMost, limit: 1}},
			{key: again, title: "all pieces for a second node, s", digits: 2, bar: &bar{over: direct, by: atMost, limit: 0.1}},
			{key: memory, title: "resident MiB"},
		},
	}
}

// lazyStart reads a cold blob as a lazy puller does: its manifest, its end, and then pieces,
// from where the first redirect led. When a cache has completed the blob, a second client
// reads the same pieces. Then the ends of more cold blobs are read.
func lazyStart(ctx context.Context, b *bench, s subject) (sample, error) {
	blob := b.hub.Stock.Large
	pieces := lazyPieces(blob.Size)
	var tails []float64
	var one, two lazyTally
	var before, after, done hubCounts
	u, _, err := b.cold(ctx, s, manner{far: true}, farDelay, farRate, func(run *server) (err error) {
		p := b.puller(run, far)
		defer p.close()
		if err := p.login(ctx, blob.Repository); err != nil {
			return err
		}
		if _, err := p.blob(ctx, b.hub.Stock.OneLarge); err != nil {
			return err
		}
		if before, err = b.hub.counts(); err != nil {
			return err
		}
		if tails, err = p.tails(ctx, blob); err != nil {
			return err
		}
		if one, err = p.pieces(ctx, blob, pieces); err != nil {
			return err
		}
		if after, err = b.hub.counts(); err != nil {
			return err
		}
		if run != nil {
			if err := run.awaitBlob(ctx, blob); err != nil {
				return err
			}
			if done, err = b.hub.counts(); err != nil {
				return err
			}
			node := b.puller(run, far)
			defer node.close()
			if two, err = node.pieces(ctx, blob, pieces); err != nil {
				return err
			}
		}
		image := b.hub.Stock.Image
		if err := p.login(ctx, image.Repository); err != nil {
			return err
		}
		_, layers, err := p.manifest(ctx, image)
		if err != nil {
			return err
		}
		more, err := p.tails(ctx, layers[1:]...) // the first one is blob
		tails = append(tails, more...)
		return err
	})
	if err != nil {
		return nil, err
	}
	x := sample{
		first: median(one.first), firstMax: slices.Max(one.first), tailFirst: median(tails),
		duration: one.elapsed.Seconds(), again: one.elapsed.Seconds(),
		upstream: float64(after.Bytes-before.Bytes) / float64(len(pieces)*lazyPiece+lazyTail),
		perPiece: float64(after.Requests-before.Requests) / float64(len(pieces)+1),
		others:   u.others,
	}
	if s != direct {
		x[again] = two.elapsed.Seconds()
		x[eventually] = float64(done.Bytes-before.Bytes) / float64(blob.Size)
		x[memory] = float64(u.peak) / mebibyte
	}
	return x, nil
}

// lazyPieces gives the first bytes of the pieces that are read of a blob of that size: the
// same ones each time.
func lazyPieces(size int64) []int64 {
	r := rand.New(rand.NewPCG(5, 6))
	list := make([]int64, int64(lazyShare*float64(size))/lazyPiece)
	for i := range list {
		list[i] = r.Int64N(size - lazyPiece)
	}
	return list
}

// tails reads the last bytes of blobs, one blob after another, and gives how many
// milliseconds the first byte of each took.
func (p *puller) tails(ctx context.Context, blobs ...item) ([]float64, error) {
	var took []float64
	for _, i := range blobs {
		ms, _, err := p.piece(ctx, p.base+i.path(), fmt.Sprintf("bytes=-%d", lazyTail), lazyTail)
		if err != nil {
			return nil, err
		}
		took = append(took, ms)
	}
	return took, nil
}

// lazyTally is what came of reading pieces.
type lazyTally struct {
	first   []float64 // milliseconds to the first byte, of each piece
	elapsed time.Duration
}

// pieces reads those pieces of a blob that begin at the bytes in from, lazyClients at a
// time. As lazy pullers do, it asks the registry once, and then reads from where that
// redirects to.
func (p *puller) pieces(ctx context.Context, i item, from []int64) (lazyTally, error) {
	t := lazyTally{first: make([]float64, len(from))}
	_, at, err := p.piece(ctx, p.base+i.path(), "bytes=0-0", 1)
	if err != nil {
		return t, err
	}
	stored := *p
	if at != p.base+i.path() {
		stored.token = "" // it is not for the store
	}
	begin := time.Now()
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range lazyClients {
		g.Go(func() error {
			for {
				n := int(next.Add(1) - 1)
				if n >= len(from) {
					return nil
				}
				ms, _, err := stored.piece(ctx, at, fmt.Sprintf("bytes=%d-%d", from[n], from[n]+lazyPiece-1), lazyPiece)
				if err != nil {
					return err
				}
				t.first[n] = ms
			}
		})
	}
	err = g.Wait()
	t.elapsed = time.Since(begin)
	return t, err
}

// piece reads a range, which has size bytes. It gives how many milliseconds its first byte
// took, and the URL that it came from in the end.
func (p *puller) piece(ctx context.Context, url, span string, size int64) (took float64, at string, err error) {
	begin := time.Now()
	res, err := p.do(ctx, http.MethodGet, url, "Range", span)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusPartialContent {
		return 0, "", fmt.Errorf("GET %s of %s: %s", span, res.Request.URL.Path, res.Status)
	}
	head, err := drain(res.Body, item{Reference: res.Request.URL.Path, Size: size})
	return head.Sub(begin).Seconds() * 1000, res.Request.URL.String(), err
}

// awaitBlob waits until Entrepot has all of a blob under its final name.
func (s *server) awaitBlob(ctx context.Context, i item) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	d := digest.Digest(i.Reference)
	path := filepath.Join(s.dir, "cache", "blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
	for {
		if _, err := os.Stat(path); err == nil || !errors.Is(err, os.ErrNotExist) {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("wait for all of %s: %w", i.Reference, ctx.Err())
		}
	}
}
