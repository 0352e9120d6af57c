package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// reluctant has n clients with a receive buffer of 4 KiB that each send a request, for
// the path that path gives, read the status line of the answer, and no more. It gives
// how many were answered by each status. The connections end with the test, or by end.
func reluctant(t *testing.T, p *proxy.Proxy, n int, path func(i int) string) (answered map[string]int, end func()) {
	t.Helper()
	answered = map[string]int{}
	var mu sync.Mutex
	var conns []*net.TCPConn
	for range n {
		c := dial(t, p)
		_ = c.SetReadBuffer(4 << 10)
		conns = append(conns, c)
	}
	var all errgroup.Group
	for i, c := range conns {
		all.Go(func() error {
			if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: cache\r\nAccept: %s\r\n\r\n", path(i), anything); err != nil {
				return err
			}
			status := make([]byte, len("HTTP/1.1 200"))
			if _, err := io.ReadFull(c, status); err != nil {
				return fmt.Errorf("request %d: %w", i, err)
			}
			mu.Lock()
			defer mu.Unlock()
			answered[strings.TrimPrefix(string(status), "HTTP/1.1 ")]++
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	return answered, func() {
		for _, c := range conns {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
		until(t, "the reluctant readers to be gone", func() bool { return p.Metrics(t).Sum("entrepot_requests_in_flight") == 0 })
	}
}

// bounded fails if the process has grown by more than most since before.
func bounded(t *testing.T, p *proxy.Proxy, what string, before, most int64) {
	t.Helper()
	now := residentBytes(t, p.PID())
	t.Logf("memory: %d MiB before, %d MiB with %s", before>>20, now>>20, what)
	if now-before > most && !proxy.Raced {
		t.Errorf("%s take %d MiB, want %d at most", what, (now-before)>>20, most>>20)
	}
}

func TestSlowReadersOfListsTakeLittleMemory(t *testing.T) {
	const tags, readers = 60_000, 200
	h, p := start(t, "limits: {manifests: 32MiB}\n"+believing)
	small := smallPaths(t, h, p)
	i := image.Artifact(1, "application/x.test", 100, nil)
	for n := range tags {
		h.Push("library/many", fmt.Sprintf("1.27.%05d-alpine", n), i)
		// Longer than what the system takes of an answer in place of the client.
		h.Push("library/long", fmt.Sprintf("%05d-%0100d", n, n), i)
	}
	const path = "/v2/library/many/tags/list"
	var list struct{ Tags []string }
	whole := get(t, p, path)
	if err := json.Unmarshal(whole.body, &list); err != nil || len(list.Tags) != tags {
		t.Fatalf("want %d tags, got %d, %v", tags, len(list.Tags), err)
	}
	if a := ask(t, p, http.MethodHead, path); a.status != http.StatusOK || a.header.Get("Content-Length") != fmt.Sprint(len(whole.body)) {
		t.Errorf("HEAD: want a length of %d, got %s", len(whole.body), a)
	}
	alone := others(t, p, small...)
	before := residentBytes(t, p.PID())

	t.Run("one list", func(t *testing.T) {
		answered, end := reluctant(t, p, readers, func(int) string { return path })
		defer end()
		// With the race detector making the list takes so long that some don't get their turn.
		if answered["200"] != readers && !(proxy.Raced && answered["200"]+answered["503"] == readers) {
			t.Errorf("want all of %d answered, for they share the list; got %v", readers, answered)
		}
		unmoved(t, "slow readers of a list", alone, others(t, p, small...))
		bounded(t, p, "200 slow readers of one list", before, 150<<20)
		wantBytes(t, "the list beside slow readers", whole.body, get(t, p, path).body)
	})
	t.Run("as many lists as readers", func(t *testing.T) {
		const readers = 40
		page := func(i int) string { return fmt.Sprintf("/v2/library/long/tags/list?n=%d", tags-1-i) }
		refusals := func() int { return int(p.Metrics(t).Sum("entrepot_refused_total", "limit", "lists")) }
		earlier := refusals()
		answered, end := reluctant(t, p, readers, page)
		if answered["200"] < 4 || answered["503"] < 10 || answered["200"]+answered["503"] != readers {
			t.Errorf("want some answered and the others refused for now, got %v", answered)
		}
		if n := refusals() - earlier; n != answered["503"] {
			t.Errorf("%d were refused, and %d are counted", answered["503"], n)
		}
		refused := ask(t, p, http.MethodGet, page(readers))
		refused.wantError(t, http.StatusServiceUnavailable, "UNAVAILABLE")
		refused.wantHeader(t, "Retry-After", "2", "Link", "")
		unmoved(t, "slow readers of many lists", alone, others(t, p, small...))
		bounded(t, p, "40 slow readers of different pages", before, 200<<20)
		end()
		get(t, p, page(readers))
	})
}

// namesIn writes an index that knows a number of repositories, as a cache has it that
// has seen them all, and gives their names in order.
func namesIn(t *testing.T, dir string, n int) []string {
	t.Helper()
	ix := newIndex(t, dir)
	var names []string
	changes := make([]index.Change, 0, n)
	for i := range n {
		repo := fmt.Sprintf("library/repository-%06d", i)
		names = append(names, "docker.io/"+repo)
		changes = append(changes, index.Change{Upstream: "docker.io", Repository: repo, Links: map[digest.Digest]index.Link{digest.FromString(repo): {Size: 1}}})
	}
	if err := ix.Put(changes...); err != nil {
		t.Fatal(err)
	}
	if err := ix.Close(); err != nil {
		t.Fatal(err)
	}
	return names
}

// newIndex makes a cache without content in dir, and returns its index.
func newIndex(t *testing.T, dir string) *index.Index {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "blobs"), 0o700); err != nil {
		t.Fatal(err)
	}
	ix, _, err := index.Open(filepath.Join(dir, "index.db"))
	if err != nil {
		t.Fatal(err)
	}
	return ix
}

func TestCrowdsOfCatalogReadersStopNobodyAndTakeLittleMemory(t *testing.T) {
	const repositories, readers = 15_000, 500
	dir := t.TempDir()
	names := namesIn(t, dir, repositories)
	h := hub.New(t, hub.Options{})
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Dir: dir, Config: believing})
	small := smallPaths(t, h, p)
	names = append(names, "docker.io/library/small")

	// In pages, each name comes once.
	var got []string
	for path := "/v2/_catalog?n=100"; path != ""; {
		a := get(t, p, path)
		var page struct{ Repositories []string }
		if err := json.Unmarshal(a.body, &page); err != nil {
			t.Fatal(err)
		}
		got = append(got, page.Repositories...)
		path, _, _ = strings.Cut(strings.TrimPrefix(a.header.Get("Link"), "<"), ">")
	}
	wantBytes(t, "the catalog in pages", []byte(strings.Join(names, "\n")), []byte(strings.Join(got, "\n")))

	alone := others(t, p, small...)
	before := residentBytes(t, p.PID())
	stop := make(chan struct{})
	var asked atomic.Int64
	var crowd errgroup.Group
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: readers}, Timeout: limit}
	defer client.CloseIdleConnections()
	for range readers {
		crowd.Go(func() error {
			for {
				res, err := client.Get(p.URL() + "/v2/_catalog?n=1")
				if err != nil {
					return err
				}
				body, err := io.ReadAll(res.Body)
				if err != nil || res.StatusCode != http.StatusOK || string(body) != `{"repositories":["`+names[0]+"\"]}\n" {
					return fmt.Errorf("%s, %q, %w", res.Status, body, err)
				}
				_ = res.Body.Close()
				asked.Add(1)
				select {
				case <-stop:
					return nil
				default:
				}
			}
		})
	}
	until(t, "the crowd to be at it", func() bool { return asked.Load() >= 2*readers })
	unmoved(t, "500 connections that ask for the catalog", alone, others(t, p, small...))
	bounded(t, p, "500 connections that ask for the catalog", before, 200<<20)
	close(stop)
	if err := crowd.Wait(); err != nil {
		t.Error(err)
	}

	answered, end := reluctant(t, p, readers, func(int) string { return "/v2/_catalog" })
	defer end()
	// With the race detector making the catalog takes so long that some don't get their turn.
	if answered["200"] != readers && !(proxy.Raced && answered["200"]+answered["503"] == readers) {
		t.Errorf("want all of %d answered, got %v", readers, answered)
	}
	unmoved(t, "500 slow readers of the whole catalog", alone, others(t, p, small...))
	bounded(t, p, "500 slow readers of the whole catalog", before, 250<<20)
}

// Large manifests for slow readers are counted, however many copies of them there
// would be. Readers of one share it; what is hot and small goes on.
func TestSlowReadersOfManifestsTakeLittleMemory(t *testing.T) {
	const manifests, readers, size = 8, 25, 3_800_000
	h, p := start(t, "limits: {manifests: 16MiB}\ncache: {memory: 2MiB}\n"+believing)
	small := smallPaths(t, h, p)
	var paths []string
	for n := range manifests {
		b, err := json.Marshal(map[string]any{
			"schemaVersion": 2, "mediaType": v1.MediaTypeImageIndex, "manifests": []any{},
			"annotations": map[string]string{"n": fmt.Sprint(n), "padding": strings.Repeat("x", size)},
		})
		if err != nil {
			t.Fatal(err)
		}
		i := &image.Image{Digest: digest.FromBytes(b), Manifests: map[digest.Digest]image.Manifest{}}
		i.Manifests[i.Digest] = image.Manifest{MediaType: v1.MediaTypeImageIndex, Bytes: b}
		h.Push("library/large", fmt.Sprint(n), i)
		paths = append(paths, "/v2/library/large/manifests/"+i.Digest.String())
		wantBytes(t, "alone", b, get(t, p, paths[n], "Accept", anything).body)
	}
	alone := others(t, p, small...)
	before := residentBytes(t, p.PID())
	answered, end := reluctant(t, p, manifests*readers, func(i int) string { return paths[i%manifests] })
	// The system takes much of an answer in place of the client: so all may be answered.
	if answered["200"] < readers || answered["200"]+answered["503"] != manifests*readers {
		t.Errorf("want some answered and the others refused for now, got %v", answered)
	}
	if n := p.Metrics(t).Sum("entrepot_refused_total", "limit", "manifests"); int(n) != answered["503"] {
		t.Errorf("%d were refused, and %v are counted", answered["503"], n)
	}
	unmoved(t, "slow readers of large manifests", alone, others(t, p, small...))
	bounded(t, p, "slow readers of large manifests", before, 150<<20)
	end()
	for _, path := range paths {
		get(t, p, path, "Accept", anything)
	}
}

// A crowd asks for many different long lists, which the memory tier cannot hold.
func TestACrowdThatAsksForManyListsTakesLittleMemory(t *testing.T) {
	const lists, tags, readers = 40, 20_000, 400
	dir := t.TempDir()
	ix := newIndex(t, dir)
	path := func(i int) string { return fmt.Sprintf("/v2/library/list-%d/tags/list", i%lists) }
	for i := range lists {
		l := index.List{Checked: time.Now()}
		for n := range tags {
			l.Tags = append(l.Tags, fmt.Sprintf("%05d-%02d-%030d", n, i, n))
		}
		if err := ix.PutList(index.Tags, "docker.io", fmt.Sprintf("library/list-%d", i), "", l); err != nil {
			t.Fatal(err)
		}
	}
	if err := ix.Close(); err != nil {
		t.Fatal(err)
	}
	h := hub.New(t, hub.Options{})
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Dir: dir, Config: "cache: {memory: 8MiB}\n" + believing})
	small := smallPaths(t, h, p)
	alone := others(t, p, small...)
	before := residentBytes(t, p.PID())
	answered, end := reluctant(t, p, readers, path)
	defer end()
	if answered["200"] < lists || answered["200"]+answered["503"] != readers {
		t.Errorf("want the lists, and refusals at most, got %v", answered)
	}
	bounded(t, p, "400 readers of 40 lists", before, 300<<20)
	unmoved(t, "400 readers of 40 lists", alone, others(t, p, small...))
}
