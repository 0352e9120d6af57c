package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// TestAFillSurvivesAKillAtAnyByte kills the process ten times while it fetches
// one large blob. Each time all that is on disk under a digest must be that
// digest's content, what was complete must be there, and the next process must
// ask for what was not yet saved, and no more.
func TestAFillSurvivesAKillAtAnyByte(t *testing.T) {
	const (
		kills = 10
		size  = 160 << 20
		most  = 72 << 20 // bytes until a kill: the part is saved every 32 MiB
	)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))

	h, p := start(t, believing)
	small := image.Index(image.Options{Seed: 1})
	h.Push("library/app", "1.0", small)
	get(t, p, tagPath)
	pullRaw(t, p, "library/app", small)
	finished := h.Counts()

	d, content, path := blobOf(h, "library/big", 2, size)
	get(t, p, "/v2/library/big/manifests/1.0")
	undo := h.Inject(hub.Slow(24 << 20).On(d)) // so that a kill finds it running
	var lost, saved int64
	for n := range kills {
		before := h.Sent(d)
		at := 1 + rnd.Int64N(min(most, (size-saved)*3/4))
		ctx, leave := context.WithCancel(t.Context())
		var g errgroup.Group
		for _, from := range []int64{0, rnd.Int64N(size)} {
			g.Go(func() error { return prefixIsRight(ctx, p, path, content, from) })
		}
		until(t, "the byte of the kill", func() bool { return h.Sent(d)-before >= at })
		p.Kill(t)
		leave()
		if err := g.Wait(); err != nil {
			t.Errorf("kill %d: %v", n, err)
		}
		sent := h.Sent(d) - before
		if sent > size-saved {
			t.Errorf("kill %d: the upstream sent %d bytes, and only %d of %d were not yet saved", n, sent, size-saved, size)
		}
		now := savedOf(t, p.Dir, d)
		t.Logf("kill %d after %d bytes: %d of %d are saved, %d were on their way", n, sent, now, size, sent-(now-saved))
		lost += sent - (now - saved)
		saved = now
		wantOnlyWhole(t, p.Dir)
		p.Restart(t)
	}

	// With the upstream gone, what was finished is there, and what was not is an
	// error or ends early.
	h.Down()
	wantBytes(t, "by tag", small.Bytes(), get(t, p, tagPath).body)
	pullRaw(t, p, "library/app", small)
	wantTrueOrNone(t, content, ask(t, p, "GET", path))
	if err := h.Up(); err != nil {
		t.Fatal(err)
	}
	undo()
	before := h.Sent(d)
	var a answer
	until(t, "the rest", func() bool { // its endpoint may be left alone for a moment
		a = ask(t, p, "GET", path)
		return a.status == http.StatusOK && a.err == nil
	})
	wantBytes(t, "the blob", content, a.body)
	p.WaitIdle(t)
	total := h.Sent(d)
	t.Logf("%d kills: the upstream sent %d bytes of %d (%.3fx), %d of them were not yet saved at a kill, %d after the last",
		kills, total, size, float64(total)/size, lost, total-before)
	if total > size+lost+leads(h) {
		t.Errorf("the upstream sent %d bytes; want at most %d, and %d that were not yet saved", total, size, lost)
	}
	if saved == 0 {
		t.Errorf("after %d kills nothing was saved", kills)
	}
	if after := h.Counts(); after.ManifestGets-finished.ManifestGets > 1 || h.Sent(small.Layers("linux/amd64")[0].Digest) != small.Layers("linux/amd64")[0].Size {
		t.Errorf("what was finished was fetched again:\nbefore %+v\nafter  %+v", finished, after)
	}
	wantOnlyWhole(t, p.Dir)
	wantNothingInIngest(t, p.Dir)
}

// prefixIsRight reads a blob from a byte on until the connection breaks off, and
// compares what comes.
func prefixIsRight(ctx context.Context, p *proxy.Proxy, path string, content []byte, from int64) error {
	res, err := open(ctx, p, http.MethodGet, path, "Range", fmt.Sprintf("bytes=%d-", from))
	if err != nil {
		return nil // killed before it answered
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusPartialContent {
		return fmt.Errorf("want 206, got %s", res.Status)
	}
	if string(got) != string(content[from:from+int64(len(got))]) {
		return fmt.Errorf("wrong bytes among the %d from %d on", len(got), from)
	}
	if err == nil && from+int64(len(got)) != int64(len(content)) {
		return fmt.Errorf("%d bytes from %d on were sent as if they were all", len(got), from)
	}
	return nil
}

// savedOf says how many bytes of d the note beside its part has.
func savedOf(t *testing.T, dir string, d digest.Digest) (n int64) {
	t.Helper()
	notes, err := filepath.Glob(filepath.Join(dir, "ingest", d.Algorithm().String()+"-"+d.Encoded()+"*.json"))
	if err != nil || len(notes) == 0 {
		return 0 // none yet
	}
	b, err := os.ReadFile(notes[0])
	if err != nil {
		return 0
	}
	var note struct{ Spans []struct{ From, To int64 } }
	if err := json.Unmarshal(b, &note); err != nil {
		t.Fatalf("the note of a part: %v: %s", err, b)
	}
	for _, s := range note.Spans {
		n += s.To - s.From
	}
	return n
}

// wantOnlyWhole hashes all that stands under a digest's name.
func wantOnlyWhole(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, "blobs"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		alg := digest.Algorithm(strings.Split(strings.TrimPrefix(path, filepath.Join(dir, "blobs")+"/"), "/")[0])
		got, err := alg.FromReader(f)
		if err == nil && got.Encoded() != e.Name() {
			err = fmt.Errorf("%s holds %s", path, got)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func wantNothingInIngest(t *testing.T, dir string) {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(dir, "ingest"))
	if err != nil || len(files) > 0 {
		t.Errorf("ingest holds %v, %v; want nothing", files, err)
	}
}

// TestAStuckFillHoldsUpNothingElse: neither another blob, nor another repository,
// nor another upstream, nor what is cached, nor the end of the process.
func TestAStuckFillHoldsUpNothingElse(t *testing.T) {
	h, other := hub.New(t, hub.Options{}), hub.New(t, hub.Options{})
	p := proxy.Start(t, proxy.Options{
		Upstreams: map[string]*hub.Hub{"docker.io": h, "ghcr.io": other},
		Config:    "shutdown_timeout: 2s\nupstreams: {docker.io: {stall_timeout: 10m, header_timeout: 10m}}",
	})
	kept := image.Index(image.Options{Seed: 1})
	h.Push("library/kept", "1.0", kept)
	get(t, p, "/v2/library/kept/manifests/1.0")
	pullRaw(t, p, "library/kept", kept)

	// One that stalls midway, in three connections, and one that is never answered.
	stuck, _, stuckPath := blobOf(h, "library/app", 2, 56<<20)
	get(t, p, "/v2/library/app/manifests/1.0")
	mute, _, mutePath := blobOf(h, "library/app", 3, 1<<20)
	h.Inject(hub.StallAfter(1<<20, nil).On(stuck))
	h.Inject(hub.Hold(hub.CDNGet, make(chan struct{})).On(mute))
	for _, from := range []int{0, 20 << 20, 40 << 20} {
		res, err := open(t.Context(), p, http.MethodGet, stuckPath, "Range", fmt.Sprintf("bytes=%d-", from))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if _, err := io.CopyN(io.Discard, res.Body, 64<<10); err != nil {
			t.Fatal(err)
		}
	}
	ctx, leave := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error {
		res, err := open(ctx, p, http.MethodGet, mutePath)
		if err == nil {
			res.Body.Close()
			// At the end it may still be told that the proxy is ending.
			if res.StatusCode != http.StatusServiceUnavailable {
				return fmt.Errorf("what the upstream never answers was answered %s", res.Status)
			}
		}
		return nil
	})
	until(t, "both to be stuck", func() bool { return p.Metrics(t).Sum("entrepot_fills_in_flight") >= 2 })

	for name, at := range map[string]struct {
		hub  *hub.Hub
		repo string
		host string
	}{
		"the same repository":             {h, "library/app", "docker.io"},
		"another repository":              {h, "library/other", "docker.io"},
		"another upstream":                {other, "library/app", "ghcr.io"},
		"another repository once more":    {h, "library/third", "docker.io"},
		"another upstream's other things": {other, "library/fourth", "ghcr.io"},
	} {
		i := image.Index(image.Options{Seed: uint64(len(name)), Layers: []image.Layer{{Size: 300 << 10}, {Size: 1 << 20}}})
		at.hub.Push(at.repo, "2.0", i)
		repo := at.host + "/" + at.repo
		wantBytes(t, name, i.Bytes(), get(t, p, "/v2/"+repo+"/manifests/2.0").body)
		pullRaw(t, p, repo, i)
		if n := p.Metrics(t).Sum("entrepot_fills_in_flight"); n < 2 {
			t.Fatalf("%s: only %g fills are stuck", name, n)
		}
	}
	pullRaw(t, p, "library/kept", kept)

	began := time.Now()
	p.Stop(t) // fails where it ends with an error, or not at all
	leave()
	took := time.Since(began)
	t.Logf("with two stuck fills and four clients of theirs the process ended after %s; shutdown_timeout is 2s", took.Round(time.Millisecond))
	// The transfers may take shutdown_timeout, and the fetches 10 s more.
	if took > 30*time.Second {
		t.Errorf("the end took %s", took)
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}
