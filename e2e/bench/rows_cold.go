package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// The shapes of the upstream.
const (
	farDelay   = 30 * time.Millisecond
	farRate    = 40e6 // bytes per second of a connection
	layerDelay = 50 * time.Millisecond
	// parallel is how many blobs a Docker daemon pulls at a time.
	parallel = 3
)

// way is how a cold row's upstream is asked.
type way int

const (
	near    way = iota // plain HTTP/1.1; answers are shaped
	far                // TLS, HTTP/2 offered; connections are shaped
	unnamed            // far, and no manifest is asked for first
)

var farPulling = []subject{direct, entrepot}

var pulling = []subject{direct, entrepot, nginxCache, distribution}

func coldRows() []row {
	total := func(limit float64) figure {
		return figure{key: duration, title: "seconds", digits: 2, bar: &bar{over: direct, by: atMost, limit: limit}}
	}
	more := []figure{
		{key: first, title: "first byte, ms", digits: 1},
		{key: upstream, title: "upstream bytes per byte", digits: 3},
		{key: memory, title: "resident MiB"},
		{key: perGiB, title: "CPU s per GiB", digits: 2},
	}
	return []row{
		{
			name: "cold-fast", title: "cold 1 GiB, unshaped (direct: fetch, SHA-256, file)", subjects: pulling,
			figures: []figure{
				total(1), {key: first, title: "first byte, ms", digits: 1, bar: &bar{over: direct, by: atMostMore, limit: 2}},
				more[1], more[2], more[3],
			},
			slow: true,
			run:  coldBlob(func(s *stock) (item, item) { return s.OneLarge, s.Large }, 0, 0, near),
		},
		{
			name: "cold-large", title: "cold 1 GiB at 30 ms and 40 MB/s a connection", subjects: pulling,
			figures: append([]figure{total(0.4)}, more...), slow: true,
			run: coldBlob(func(s *stock) (item, item) { return s.OneLarge, s.Large }, farDelay, farRate, near),
		},
		{
			name: "cold-medium", title: "cold 100 MiB at 30 ms and 40 MB/s a connection", subjects: pulling,
			figures: append([]figure{total(0.4)}, more...), slow: true,
			run: coldBlob(func(s *stock) (item, item) { return s.OneMedium, s.Medium }, farDelay, farRate, near),
		},
		{
			name: "cold-layers", title: "cold image of 60 small layers at 50 ms, 3 at a time", subjects: pulling,
			figures: append([]figure{total(0.5)}, more[1:3]...), slow: true,
			run: coldImage(func(s *stock) imageRef { return s.Many }, layerDelay, 0, near),
		},
		{
			name: "cold-image", title: "cold image of 1 x 1 GiB + 4 x 100 MiB at 30 ms and 40 MB/s", subjects: pulling,
			figures: append([]figure{total(0.4)}, more[1:3]...), slow: true,
			run: coldImage(func(s *stock) imageRef { return s.Image }, farDelay, farRate, near),
		},
		{
			name: "cold-tls-large", title: "cold 1 GiB over TLS with HTTP/2 offered, at 30 ms and 40 MB/s a connection", subjects: farPulling,
			figures: append([]figure{total(0.4)}, more...), slow: true,
			run: coldBlob(func(s *stock) (item, item) { return s.OneLarge, s.Large }, farDelay, farRate, far),
		},
		{
			name: "cold-tls-medium", title: "cold 100 MiB over TLS with HTTP/2 offered, at 30 ms and 40 MB/s a connection", subjects: farPulling,
			figures: append([]figure{total(0.4)}, more...), slow: true,
			run: coldBlob(func(s *stock) (item, item) { return s.OneMedium, s.Medium }, farDelay, farRate, far),
		},
		{
			name: "cold-tls-unnamed", title: "the same without its manifest, which tells its size", subjects: farPulling,
			figures: append([]figure{total(0.4)}, more...), slow: true,
			run: coldBlob(func(s *stock) (item, item) { return s.OneMedium, s.Medium }, farDelay, farRate, unnamed),
		},
		{
			name: "cold-tls-layers", title: "cold image of 60 small layers over TLS with HTTP/2 offered, at 50 ms, 3 at a time", subjects: farPulling,
			figures: append([]figure{total(0.5)}, more[1:3]...), slow: true,
			run: coldImage(func(s *stock) imageRef { return s.Many }, layerDelay, farRate, far),
		},
		lazyRow(),
		{
			name: "herd", title: "100 clients at once, cold 100 MiB", subjects: caches,
			figures: []figure{
				{key: upstream, title: "upstream bytes per byte", digits: 3, bar: &bar{by: atMost, limit: 1}},
				{key: ratioHot, title: "last client's time, per time when hot", digits: 2, bar: &bar{by: atMost, limit: 1.3}},
				{key: duration, title: "last client's time, s", digits: 2},
				more[2], more[3],
			},
			slow: true, run: herd,
		},
		{
			name: "fill-tiny", title: "filling 1 KiB blobs, 16 clients", subjects: caches,
			figures: []figure{
				{key: rate, title: "blobs/s", bar: &bar{over: nginxCache, by: atLeast, limit: 1}},
				{key: perMany, title: "CPU s per 100k", digits: 2}, more[2],
			},
			slow: true, run: fillTiny,
		},
	}
}

// cold runs f on a subject that has just been started with an empty cache (nil
// is the hub itself, by direct) while the hub has a shape.
func (b *bench) cold(ctx context.Context, s subject, m manner, delay time.Duration, rate int64, f func(*server) error) (u usage, sent int64, err error) {
	if err := b.hub.shape(0, 0); err != nil {
		return u, 0, err
	}
	var run *server
	if s != direct {
		if run, err = b.start(ctx, s, m); err != nil {
			return u, 0, err
		}
		defer func() { err = errors.Join(err, run.stop()) }()
	}
	if err := b.hub.shape(delay, rate); err != nil {
		return u, 0, err
	}
	before, err := b.hub.counts()
	if err != nil {
		return u, 0, err
	}
	if u, err = b.meter(run, func() error { return f(run) }); err != nil {
		return u, 0, err
	}
	after, err := b.hub.counts()
	return u, after.Bytes - before.Bytes, errors.Join(err, b.hub.shape(0, 0))
}

// base gives where a subject's registry API is.
func (b *bench) base(run *server) string {
	if run == nil {
		return b.hub.Full.URL
	}
	return run.url()
}

// puller makes a puller of a subject's registry API; of the hub's if run is nil.
func (b *bench) puller(run *server, over way) *puller {
	if run == nil && over != near {
		return newFarPuller(b.hub.Far.URL, b.hub.Far.CA)
	}
	return newPuller(b.base(run))
}

// coldBlob pulls the one blob of an image, its manifest first, as all clients do.
// Direct and without a shape the blob is hashed and written to a file, which is
// the least that a cache must do. The first byte is the blob's, from the request
// for it.
func coldBlob(which func(*stock) (manifest, blob item), delay time.Duration, rate int64, over way) func(context.Context, *bench, subject) (sample, error) {
	return func(ctx context.Context, b *bench, s subject) (sample, error) {
		manifest, i := which(&b.hub.Stock)
		var begin, asked, head, end time.Time
		u, sent, err := b.cold(ctx, s, manner{far: over != near}, delay, rate, func(run *server) (err error) {
			begin = time.Now()
			defer func() { end = time.Now() }()
			if run != nil {
				if over != unnamed {
					if _, err := run.once(ctx, manifest); err != nil {
						return err
					}
				}
				asked = time.Now()
				t, err := run.once(ctx, i)
				head = asked.Add(t.first)
				return err
			}
			p := b.puller(run, over)
			defer p.close()
			if err := p.login(ctx, i.Repository); err != nil {
				return err
			}
			if over != unnamed {
				if _, err := p.blob(ctx, manifest); err != nil {
					return err
				}
			}
			asked = time.Now()
			if rate > 0 {
				head, err = p.blob(ctx, i)
				return err
			}
			head, err = b.keep(ctx, p, i)
			return err
		})
		if err != nil {
			return nil, err
		}
		x := sample{
			duration: end.Sub(begin).Seconds(),
			first:    head.Sub(asked).Seconds() * 1000,
			upstream: float64(sent) / float64(i.Size),
			others:   u.others,
		}
		if s != direct {
			x[memory] = float64(u.peak) / mebibyte
			x[perGiB] = u.cpu.Seconds() / float64(i.Size) * (1 << 30)
		}
		return x, nil
	}
}

// keep pulls a blob into a file and verifies it.
func (b *bench) keep(ctx context.Context, p *puller, i item) (head time.Time, err error) {
	body, err := p.open(ctx, i)
	if err != nil {
		return head, err
	}
	defer body.Close()
	path := filepath.Join(b.dir, "plain")
	f, err := os.Create(path)
	if err != nil {
		return head, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	hash := sha256.New()
	head, err = drain(io.TeeReader(body, io.MultiWriter(f, hash)), i)
	if sum := "sha256:" + hex.EncodeToString(hash.Sum(nil)); err == nil && sum != i.Reference {
		err = fmt.Errorf("what came is %s and not %s", sum, i.Reference)
	}
	return head, err
}

// coldImage pulls an image as a Docker daemon does.
func coldImage(which func(*stock) imageRef, delay time.Duration, rate int64, over way) func(context.Context, *bench, subject) (sample, error) {
	return func(ctx context.Context, b *bench, s subject) (sample, error) {
		ref := which(&b.hub.Stock)
		var elapsed time.Duration
		u, sent, err := b.cold(ctx, s, manner{far: over != near}, delay, rate, func(run *server) error {
			p := b.puller(run, over)
			defer p.close()
			begin := time.Now()
			err := p.image(ctx, ref, parallel)
			elapsed = time.Since(begin)
			return err
		})
		if err != nil {
			return nil, err
		}
		x := sample{duration: elapsed.Seconds(), upstream: float64(sent) / float64(ref.Bytes), others: u.others}
		if s != direct {
			x[memory] = float64(u.peak) / mebibyte
		}
		return x, nil
	}
}

// herd lets 100 clients ask for a cold blob at once, and then again.
func herd(ctx context.Context, b *bench, s subject) (sample, error) {
	i := b.hub.Stock.Medium
	const clients = 100
	var coldTally, hotTally tally
	var own usage
	u, sent, err := b.cold(ctx, s, manner{}, 0, 0, func(run *server) (err error) {
		l := load{address: run.address, connections: clients, count: clients, requests: []request{get(run.address, i)}}
		own, err = b.meter(run, func() (err error) {
			coldTally, err = l.run(ctx)
			return err
		})
		if err = errors.Join(err, coldTally.err()); err != nil {
			return err
		}
		hotTally, err = l.run(ctx)
		return errors.Join(err, hotTally.err())
	})
	if err != nil {
		return nil, err
	}
	return sample{
		upstream: float64(sent) / float64(i.Size),
		duration: coldTally.elapsed.Seconds(),
		ratioHot: coldTally.elapsed.Seconds() / hotTally.elapsed.Seconds(),
		perGiB:   own.cpu.Seconds() / float64(coldTally.bytes) * (1 << 30),
		memory:   float64(u.peak) / mebibyte,
		others:   u.others,
	}, nil
}

// fillTiny asks for many cold blobs of 1 KiB. All subjects are in front of the
// hub that nginx can use.
func fillTiny(ctx context.Context, b *bench, s subject) (sample, error) {
	var t tally
	u, _, err := b.cold(ctx, s, manner{plain: true}, 0, 0, func(run *server) (err error) {
		l := load{address: run.address, connections: 16, count: len(b.hub.Stock.Tiny)}
		for _, i := range b.hub.Stock.Tiny {
			l.requests = append(l.requests, get(run.address, i))
		}
		t, err = l.run(ctx)
		return errors.Join(err, t.err())
	})
	if err != nil {
		return nil, err
	}
	return sample{
		rate:    float64(t.requests) / t.elapsed.Seconds(),
		perMany: u.cpu.Seconds() / float64(t.requests) * 1e5,
		memory:  float64(u.peak) / mebibyte,
		others:  u.others,
	}, nil
}
