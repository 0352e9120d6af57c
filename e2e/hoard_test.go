package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// hoarder is a registry that has more to tell than a cache should keep.
type hoarder struct {
	// pages of a list of referrers have pageBytes of annotations each.
	pages, pageBytes int
	// children is how many manifests an index names.
	children int
}

const hoarded = "hoard.test"

func (h hoarder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rest, _ := strings.CutPrefix(r.URL.Path, "/v2/library/app/")
	what, name, _ := strings.Cut(rest, "/")
	switch what {
	case "referrers":
		w.Header().Set("Content-Type", v1.MediaTypeImageIndex)
		page, _ := strconv.Atoi(r.URL.Query().Get("page"))
		if page+1 < h.pages {
			w.Header().Set("Link", fmt.Sprintf(`<%s?page=%d>; rel="next"`, r.URL.Path, page+1))
		}
		_, _ = io.WriteString(w, `{"schemaVersion":2,"manifests":[`)
		for i := range 64 {
			if h.pages == 0 {
				break
			}
			if i > 0 {
				_, _ = io.WriteString(w, ",")
			}
			d := digest.FromString(fmt.Sprint(name, page, i))
			_, _ = fmt.Fprintf(w, `{"mediaType":"%s","digest":"%s","size":5,"annotations":{"a":"%s"}}`,
				v1.MediaTypeImageManifest, d, strings.Repeat("x", h.pageBytes/64))
		}
		_, _ = io.WriteString(w, `]}`)
	case "manifests":
		w.Header().Set("Content-Type", v1.MediaTypeImageIndex)
		b := h.index(name)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(b).String())
		_, _ = w.Write(b)
	default:
		w.WriteHeader(http.StatusOK)
	}
}

// index makes the index of a name.
func (h hoarder) index(name string) []byte {
	var b strings.Builder
	b.WriteString(`{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageIndex + `","manifests":[`)
	for i := range h.children {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, `{"digest":"sha256:%x"}`, sha256.Sum256(fmt.Append(nil, name, i)))
	}
	b.WriteString(`]}`)
	return []byte(b.String())
}

// hoarding starts a proxy with little memory and disk in front of h, and watches the
// memory that it takes.
func hoarding(t *testing.T, h hoarder) (p *proxy.Proxy, base string, peak func() int64) {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	config, err := json.Marshal(map[string]any{
		"upstreams": map[string]any{hoarded: map[string]any{"endpoints": []string{server.URL}, "tags": []any{map[string]any{"match": "*", "ttl": "1h"}}}},
		"cache":     map[string]any{"max_size": "100MiB", "memory": "64MiB"}})
	if err != nil {
		t.Fatal(err)
	}
	p = proxy.Start(t, proxy.Options{Dir: nested(t), Config: string(config)})
	pid := p.PID()
	before := residentBytes(t, pid)
	var most atomic.Int64
	watching, stop := context.WithCancel(t.Context())
	var watch sync.WaitGroup
	watch.Go(func() {
		for watching.Err() == nil {
			if n, err := resident(pid); err == nil { // it may be stopped just now
				most.Store(max(most.Load(), n))
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	t.Cleanup(func() { stop(); watch.Wait() })
	return p, p.URL() + "/v2/" + hoarded + "/library/app/", func() int64 {
		stop()
		watch.Wait()
		t.Logf("memory: %d MiB at the beginning, %d MiB at most; %d MiB of disk, of that %d KiB of index",
			before>>20, most.Load()>>20, allocated(t, p.Dir)>>20, allocated(t, filepath.Join(p.Dir, "index.db"))>>10)
		return most.Load()
	}
}

// allocated returns the bytes that a file, or all below a directory, takes up on disk.
func allocated(t testing.TB, path string) (total int64) {
	t.Helper()
	err := filepath.WalkDir(path, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return nil // gone since it was listed
		}
		if st, err := e.Info(); err == nil {
			total += st.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return total
}

func TestReferrersOfDigestsThatSomebodyMakesUpLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	p, base, _ := hoarding(t, hoarder{children: 2})
	hoardGet(t, base+"manifests/1.0")
	index := filepath.Join(p.Dir, "index.db")
	p.WaitIdle(t)
	before := allocated(t, index)
	var clients sync.WaitGroup
	for c := range 8 {
		clients.Go(func() {
			for i := range 250 {
				hoardGet(t, base+"referrers/"+digest.FromString(fmt.Sprint(c, i)).String())
			}
		})
	}
	clients.Wait()
	p.Stop(t) // writes what was to be written later
	if more := allocated(t, index) - before; more > 256<<10 {
		t.Errorf("2,000 requests left %d KiB in the index", more>>10)
	}
	p.Restart(t)
	hoardGet(t, base+"manifests/1.0")
}

// hoardGet gets a URL, which may be refused for a moment, and returns how long it took.
func hoardGet(t *testing.T, url string) time.Duration {
	t.Helper()
	begun := time.Now()
	c := http.Client{Timeout: time.Minute}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Error(err)
		return 0
	}
	req.Header.Set("Accept", anything)
	res, err := c.Do(req)
	if err != nil {
		t.Errorf("%s: %v", url, err)
		return 0
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil && res.StatusCode == http.StatusOK {
		t.Errorf("%s: %v", url, err)
	}
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("%s: status %d", url, res.StatusCode)
	}
	return time.Since(begun)
}

func TestGiganticListsOfReferrersStayWithinMemoryAndDisk(t *testing.T) {
	t.Parallel()
	p, base, peak := hoarding(t, hoarder{pages: 9, pageBytes: 57 << 20 / 9})
	var clients sync.WaitGroup
	for c := range 4 {
		clients.Go(func() {
			for i := range 5 {
				hoardGet(t, base+"referrers/"+digest.FromString(fmt.Sprint(c, i)).String())
			}
		})
	}
	clients.Wait()
	if most := peak(); most > 800<<20 && !proxy.Raced {
		t.Errorf("the process took %d MiB", most>>20)
	}
	if disk := allocated(t, p.Dir); disk > 110<<20 {
		t.Errorf("the cache takes %d MiB on disk, with max_size: 100MiB", disk>>20)
	}
}

func TestIndexesOfThousandsOfManifestsStayWithinMemoryAndDisk(t *testing.T) {
	t.Parallel()
	h := hoarder{children: 45_000}
	p, base, peak := hoarding(t, h)
	if n := len(h.index("0")); n > 4<<20 {
		t.Fatalf("the index has %d bytes", n)
	}
	var longest time.Duration
	for i := range 45 {
		longest = max(longest, hoardGet(t, base+"manifests/"+strconv.Itoa(i)))
	}
	t.Logf("the longest pull took %s", longest)
	until(t, "the disk to hold no more than it may", func() bool { return allocated(t, p.Dir) <= 110<<20 })
	if most := peak(); most > 700<<20 && !proxy.Raced {
		t.Errorf("the process took %d MiB", most>>20)
	}
	if n := allocated(t, filepath.Join(p.Dir, "index.db")); n > 16<<20 {
		t.Errorf("the index takes %d MiB on disk", n>>20)
	}
}
