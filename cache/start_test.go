package cache

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/store"
)

// blobsEnv says how many blobs BenchmarkStart opens a cache of.
const blobsEnv = "ENTREPOT_BENCH_BLOBS"

// BenchmarkStart opens a cache of many blobs, each a file and a record, and tells
// how long it takes until content is served, until the walk behind it has ended,
// and how much more memory there is then. It prints what docs/reliability.md
// quotes.
func BenchmarkStart(b *testing.B) {
	n, err := strconv.Atoi(os.Getenv(blobsEnv))
	if err != nil {
		n = 20_000
	}
	dir := b.TempDir()
	makeMany(b, dir, n)
	var ready, done time.Duration
	var grown int64
	for b.Loop() {
		before := heap()
		begun := time.Now()
		c, err := Open(Options{Dir: dir, Settings: Settings{MaxSize: Room{Percent: 80}}})
		if err != nil {
			b.Fatal(err)
		}
		if blobs, _ := c.index.Totals(); blobs != int64(n) {
			b.Fatalf("%d blobs are known, want %d", blobs, n)
		}
		ready += time.Since(begun)
		<-c.reconciled
		done += time.Since(begun)
		grown = max(grown, heap()-before)
		if err := c.Close(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(ready.Microseconds())/1000/float64(b.N), "ms-to-ready")
	b.ReportMetric(float64(done.Microseconds())/1000/float64(b.N), "ms-to-walked")
	b.ReportMetric(float64(grown)/float64(n), "B/blob")
	b.ReportMetric(0, "ns/op")
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// makeMany fills a cache directory with n empty files and their records.
func makeMany(b *testing.B, dir string, n int) {
	b.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		b.Fatal(err)
	}
	ix, _, err := index.Open(filepath.Join(dir, "index.db"))
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now()
	const batch = 50_000
	for from := 0; from < n; from += batch {
		blobs := map[digest.Digest]index.Blob{}
		for i := from; i < min(from+batch, n); i++ {
			d := digest.FromBytes(binary.BigEndian.AppendUint64(nil, uint64(i)))
			path := filepath.Join(dir, "blobs", "sha256", d.Encoded()[:2], d.Encoded())
			err := os.WriteFile(path, nil, 0o600)
			if os.IsNotExist(err) {
				if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
					err = os.WriteFile(path, nil, 0o600)
				}
			}
			if err != nil {
				b.Fatal(err)
			}
			st, err := os.Stat(path)
			if err != nil {
				b.Fatal(err)
			}
			blobs[d] = index.Blob{Stamp: store.StampOf(st), Verified: now, Used: now, Uses: 1}
		}
		links := map[digest.Digest]index.Link{}
		for d := range blobs {
			links[d] = index.Link{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Size: 1 << 20}
		}
		if err := ix.Put(index.Change{Upstream: "docker.io", Repository: fmt.Sprintf("library/app%d", from), Blobs: blobs, Links: links}); err != nil {
			b.Fatal(err)
		}
	}
	if err := ix.Close(); err != nil {
		b.Fatal(err)
	}
}
