package upstream

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"golang.org/x/sync/semaphore"

	"github.com/entrepot-dev/entrepot/oci"
)

// Two announce much and send a part of it; that takes up what they sent. What
// there is no memory for is refused, and the memory is free again afterwards.
func TestMemoryForWhatIsBeingReadIsBounded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const most, part = 1 << 20, 400 << 10
		release := make(chan struct{})
		large := image + strings.Repeat(" ", most/2)
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			rw.Header().Set("Content-Type", ociImage)
			if strings.Contains(req.URL.Path, "/slow") {
				_, _ = rw.Write([]byte(large[:part]))
				rw.(http.Flusher).Flush()
				<-release
				_, _ = rw.Write([]byte(large[part:]))
				return
			}
			_, _ = rw.Write([]byte(large))
		})
		memory := semaphore.NewWeighted(most)
		r := w.registry(Options{Memory: memory})
		var wg sync.WaitGroup
		for _, name := range []string{"slow1", "slow2"} {
			wg.Go(func() { _, _ = r.Manifest(t.Context(), name, "latest") })
		}
		synctest.Wait()
		if memory.TryAcquire(most - 2*part + 1) {
			t.Errorf("two that have sent %d bytes each take less", part)
		}
		if !memory.TryAcquire(most - 2*part) {
			t.Errorf("two that have sent %d bytes each take more", part)
		}
		memory.Release(most - 2*part)
		_, err := r.Manifest(t.Context(), "a", "latest")
		wantError(t, err, oci.CodeUnavailable, 503, "limits.manifests")
		if !oci.IsTransient(err) {
			t.Errorf("%v is told as the upstream's word", err)
		}
		close(release)
		wg.Wait()
		if !memory.TryAcquire(most) {
			t.Error("not all of the memory is free again")
		}
		memory.Release(most)
		if _, err := r.Manifest(t.Context(), "a", "latest"); err != nil {
			t.Errorf("with room again: %v", err)
		}
	})
}
