package e2e

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// stored gives the file of a digest in a cache directory.
func stored(p *proxy.Proxy, d digest.Digest) string {
	return filepath.Join(p.Dir, "blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
}

// onDisk gives the bytes of all files below the directories of a cache.
func onDisk(t testing.TB, p *proxy.Proxy, dirs ...string) (total int64) {
	t.Helper()
	for _, dir := range dirs {
		err := filepath.WalkDir(filepath.Join(p.Dir, dir), func(_ string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return nil // gone since it was listed
			}
			if st, err := e.Info(); err == nil {
				total += st.Size()
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return total
}

// TestTheDiskStaysWithinTheLimitAndTheBaseImageOnIt pulls forty images of one
// base through a cache that holds sixteen, restarts it, and pulls some more.
func TestTheDiskStaysWithinTheLimitAndTheBaseImageOnIt(t *testing.T) {
	t.Parallel()
	const (
		limit = 20 << 20
		high  = limit / 100 * 95
		layer = 1 << 20
	)
	h, p := start(t, "cache: {max_size: 20MB}\n"+believing)
	base := [][]byte{bytesOf(1000, layer), bytesOf(1001, layer/2)}
	own := func(i int) []byte { return bytesOf(uint64(i), layer) }
	var most int64
	// pull asks for an image's layers, as a client does that has been told of
	// them. The index tells uses apart by the second, so pulls take their time.
	pull := func(i int) {
		t.Helper()
		for _, content := range append([][]byte{own(i)}, base...) {
			d := digest.FromBytes(content)
			h.PushBlob("library/app", d, content)
			wantBytes(t, fmt.Sprintf("image %d", i), content, get(t, p, "/v2/library/app/blobs/"+d.String()).body)
			most = max(most, onDisk(t, p, "blobs", "ingest"))
		}
		until(t, fmt.Sprintf("the disk to hold at most %d bytes after image %d", high, i), func() bool {
			return onDisk(t, p, "blobs", "ingest") <= high
		})
		time.Sleep(100 * time.Millisecond)
	}
	wantThere := func(want bool, what string, content []byte) {
		t.Helper()
		if _, err := os.Stat(stored(p, digest.FromBytes(content))); (err == nil) != want {
			t.Errorf("%s: stored %v, want %v", what, err == nil, want)
		}
	}

	for i := range 40 {
		pull(i)
	}
	for _, b := range base {
		wantThere(true, "the base image", b)
	}
	wantThere(false, "the first image", own(0))
	wantThere(true, "the last image", own(39))
	if most > limit {
		t.Errorf("the disk held %d bytes once, want at most %d", most, limit)
	}
	m := p.Metrics(t)
	for name, want := range map[string]int64{
		"entrepot_cache_limit_bytes":         limit,
		"entrepot_cache_size_bytes":          onDisk(t, p, "blobs"),
		"entrepot_cache_parts_bytes":         0,
		"entrepot_cache_evictions_total":     40 + 2 - int64(m.Sum("entrepot_cache_blobs")),
		"entrepot_cache_evicted_bytes_total": 40*layer + layer*3/2 - onDisk(t, p, "blobs"),
	} {
		if got := int64(m.Sum(name)); got != want {
			t.Errorf("%s: want %d, got %d", name, want, got)
		}
	}
	wantEvictionLogged(t, p, limit)
	t.Logf("at most %d bytes on disk of %d, %g blobs evicted", most, limit, m.Sum("entrepot_cache_evictions_total"))

	// After a restart what was used last still stays, and the oldest goes.
	oldest := 0
	for ; oldest < 40; oldest++ {
		if _, err := os.Stat(stored(p, digest.FromBytes(own(oldest)))); err == nil {
			break
		}
	}
	p.Restart(t)
	for i := 40; i < 46; i++ {
		pull(i)
	}
	wantThere(false, "the oldest image before the restart", own(oldest))
	wantThere(true, "the last image before the restart", own(39))
	for _, b := range base {
		wantThere(true, "the base image", b)
	}
	// What was evicted is fetched again, whole.
	pull(0)
}

// wantEvictionLogged checks that the log tells of an eviction.
func wantEvictionLogged(t testing.TB, p *proxy.Proxy, limit int64) {
	t.Helper()
	for line := range strings.Lines(p.Log()) {
		var e struct {
			Message            string
			Blobs, Used, Limit int64
		}
		if json.Unmarshal([]byte(line), &e) == nil && e.Message == "evicted to make room" {
			if e.Blobs < 1 || e.Limit != limit || e.Used > limit/100*95 {
				t.Errorf("want a line of a blob or more that went, and what is used then, got %s", line)
			}
			return
		}
	}
	t.Error("the log does not tell of an eviction")
}

func bytesOf(seed uint64, n int) []byte {
	return []byte(strings.Repeat(fmt.Sprintf("%016x", seed), n/16))
}

func TestALayerLargerThanTheCacheIsServedAndFlushesNothing(t *testing.T) {
	t.Parallel()
	h, p := start(t, "cache: {max_size: 20MB}\n"+believing)
	small := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", small)
	pullRaw(t, p, "library/app", small)
	giant := bytesOf(7, 40<<20)
	d := digest.FromBytes(giant)
	h.PushBlob("library/app", d, giant)
	wantBytes(t, "the giant", giant, get(t, p, "/v2/library/app/blobs/"+d.String()).body)
	until(t, "the giant to go", func() bool { return onDisk(t, p, "blobs", "ingest") < 20<<20 })
	before := h.Counts()
	pullRaw(t, p, "library/app", small)
	wantUnmoved(t, before, h.Counts())
}
