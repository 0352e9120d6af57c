package e2e

import (
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestTheDiskStaysWithinTheLimitWhileSixClientsPull has six clients pull images that do
// not fit, as fast as they can, and looks at the disk meanwhile.
func TestTheDiskStaysWithinTheLimitWhileSixClientsPull(t *testing.T) {
	for _, layer := range []int{10 << 20, 30 << 20} {
		t.Run(fmt.Sprintf("layers of %d MiB", layer>>20), func(t *testing.T) { pullWithinTheLimit(t, layer) })
	}
}

// pullWithinTheLimit has six clients pull layers of so many bytes through a cache of 100 MiB.
func pullWithinTheLimit(t *testing.T, layer int) {
	t.Parallel()
	const limit, clients, layers = 100 << 20, 6, 2
	h, p := start(t, "cache: {max_size: 100MiB}\n"+believing)
	var most atomic.Int64
	done := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
				most.Store(max(most.Load(), allocated(t, p.Dir)))
			}
		}
	})
	var all sync.WaitGroup
	for client := range clients {
		all.Go(func() {
			for i := range (120 << 20) / layer {
				repo := fmt.Sprintf("library/app%d", client)
				for l := range layers {
					content := bytesOf(uint64(client*10_000+i*100+l), layer)
					d := digest.FromBytes(content)
					h.PushBlob(repo, d, content)
					a := get(t, p, "/v2/"+repo+"/blobs/"+d.String())
					wantBytes(t, "a layer", content, a.body)
				}
			}
		})
	}
	all.Wait()
	close(done)
	watch.Wait()
	t.Logf("at most %d MiB on disk", most.Load()>>20)
	if bar := int64(limit / 10 * 11); most.Load() > bar {
		t.Errorf("the cache took %d MiB on disk, want at most %d", most.Load()>>20, bar>>20)
	}
	until(t, "the disk to hold no more than the limit", func() bool { return allocated(t, p.Dir) <= limit })
}

// TestSmallBlobsCountAsWhatTheyTakeUpOnDisk fills a small cache with blobs of a few
// hundred bytes, of which each takes up a block.
func TestSmallBlobsCountAsWhatTheyTakeUpOnDisk(t *testing.T) {
	t.Parallel()
	const limit = 10 << 20
	h, p := start(t, "cache: {max_size: 10MiB}\n"+believing)
	var clients sync.WaitGroup
	for client := range 4 {
		clients.Go(func() {
			for i := range 1500 {
				content := fmt.Appendf(nil, "%0245d", client*10_000+i)
				d := digest.FromBytes(content)
				h.PushBlob("library/app", d, content)
				get(t, p, "/v2/library/app/blobs/"+d.String())
			}
		})
	}
	clients.Wait()
	p.WaitIdle(t)
	var blobs, index int64
	until(t, "the disk to hold little more than the limit", func() bool {
		blobs, index = allocated(t, filepath.Join(p.Dir, "blobs")), allocated(t, filepath.Join(p.Dir, "index.db"))
		return blobs+index <= limit/10*11
	})
	m := p.Metrics(t)
	t.Logf("%g blobs of 6000: %d KiB of blobs and %d KiB of index on disk", m.Sum("entrepot_cache_blobs"), blobs>>10, index>>10)
	if m.Sum("entrepot_cache_blobs") < 500 {
		t.Errorf("only %g blobs are cached", m.Sum("entrepot_cache_blobs"))
	}
}
