package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
	"github.com/entrepot-dev/entrepot/oci"
)

// waiters is how many tests run at a time: most of them wait for a time-out or for an
// upstream that is slow, and leave the processors alone.
const waiters = 6

func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue && !proxy.Raced {
		_ = f.Value.Set(strconv.Itoa(max(waiters, runtime.GOMAXPROCS(0))))
	}
	os.Exit(proxy.Main(m))
}

// believing is a configuration under which a tag is fresh for as long as a test
// may take; doubting one under which it is never.
const (
	believing = `upstreams: {docker.io: {tags: [{match: "*", ttl: 1h}]}}`
	doubting  = `upstreams: {docker.io: {tags: [{match: "*", ttl: 0s}]}}`
)

// limit bounds whatever one test waits for.
const limit = 2 * time.Minute

// anything is what clients say that take every manifest.
var anything = strings.Join([]string{
	v1.MediaTypeImageIndex, v1.MediaTypeImageManifest, oci.MediaTypeDockerManifestList, oci.MediaTypeDockerManifest, "*/*",
}, ", ")

// start runs a hub and the program as its mirror, with extra configuration.
func start(t *testing.T, config string) (*hub.Hub, *proxy.Proxy) {
	t.Helper()
	h := hub.New(t, hub.Options{})
	return h, proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: config})
}

// answer is a whole response.
type answer struct {
	method, url string
	status      int
	header      http.Header
	body        []byte
	// err is set where the body broke off.
	err error
}

func (a answer) String() string {
	b := a.body
	if len(b) > 500 {
		b = b[:500]
	}
	return fmt.Sprintf("%s %s: %d, %v, %d bytes: %q, error %v", a.method, a.url, a.status, a.header, len(a.body), b, a.err)
}

// raw is a client that adds nothing to what it is told to send and follows no
// redirects.
var raw = &http.Client{
	Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 8},
	Timeout:       limit,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// ask sends a request to a path of the proxy, with headers given as name, value,
// name, value; Host is one of them.
func ask(t testing.TB, p *proxy.Proxy, method, path string, headers ...string) answer {
	t.Helper()
	res, err := open(t.Context(), p, method, path, headers...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	a := answer{method: method, url: path, status: res.StatusCode, header: res.Header}
	a.body, a.err = io.ReadAll(res.Body)
	return a
}

// get is ask for what must be answered 200, whole.
func get(t testing.TB, p *proxy.Proxy, path string, headers ...string) answer {
	t.Helper()
	a := ask(t, p, http.MethodGet, path, headers...)
	if a.status != http.StatusOK || a.err != nil {
		t.Fatalf("want 200 and all of it, got %s", a)
	}
	return a
}

func open(ctx context.Context, p *proxy.Proxy, method, path string, headers ...string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, p.URL()+path, nil)
	if err != nil {
		return nil, err
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
			continue
		}
		req.Header.Add(headers[i], headers[i+1])
	}
	return raw.Do(req)
}

// wantHeader checks headers given as name, value, name, value; a value of ""
// wants none.
func (a answer) wantHeader(t testing.TB, headers ...string) {
	t.Helper()
	for i := 0; i+1 < len(headers); i += 2 {
		if got := a.header.Get(headers[i]); got != headers[i+1] {
			t.Errorf("%s %s: %s: want %q, got %q", a.method, a.url, headers[i], headers[i+1], got)
		}
	}
}

// wantError checks that the answer is the spec's error JSON with a code, and
// gives its message.
func (a answer) wantError(t testing.TB, status int, code string) string {
	t.Helper()
	var e struct {
		Errors []struct{ Code, Message string }
	}
	if a.status != status {
		t.Errorf("want %d, got %s", status, a)
	}
	if err := json.Unmarshal(a.body, &e); err != nil || len(e.Errors) == 0 {
		t.Errorf("want the error JSON, got %s", a)
		return ""
	}
	if e.Errors[0].Code != code {
		t.Errorf("want code %s, got %s", code, a)
	}
	if e.Errors[0].Message == "" {
		t.Errorf("want a message, got %s", a)
	}
	if got := a.header.Get("Content-Type"); !strings.HasPrefix(got, "application/json") {
		t.Errorf("%s %s: Content-Type of an error: want application/json, got %q", a.method, a.url, got)
	}
	return e.Errors[0].Message
}

// wantBytes checks content byte for byte.
func wantBytes(t testing.TB, what string, want, got []byte) {
	t.Helper()
	if bytes.Equal(want, got) {
		return
	}
	at := 0
	for at < min(len(want), len(got)) && want[at] == got[at] {
		at++
	}
	t.Errorf("%s: want %d bytes (sha256 %x), got %d (%x); they differ from byte %d on",
		what, len(want), sha256.Sum256(want), len(got), sha256.Sum256(got), at)
}

// pullAll pulls all of an image by a client's own means and compares it with
// what the upstream has.
func pullAll(t testing.TB, i *image.Image, manifest, blob func(digest.Digest) ([]byte, error)) {
	t.Helper()
	for _, d := range slices.Sorted(maps.Keys(i.Manifests)) {
		b, err := manifest(d)
		if err != nil {
			t.Fatalf("manifest %s: %v", d, err)
		}
		wantBytes(t, "manifest "+d.String(), i.Manifests[d].Bytes, b)
	}
	for _, d := range slices.Sorted(maps.Keys(i.Blobs)) {
		b, err := blob(d)
		if err != nil {
			t.Fatalf("blob %s: %v", d, err)
		}
		wantBytes(t, "blob "+d.String(), i.Blobs[d], b)
	}
}

// pullRaw pulls all of an image by plain requests.
func pullRaw(t testing.TB, p *proxy.Proxy, repo string, i *image.Image) {
	t.Helper()
	from := func(kind string) func(d digest.Digest) ([]byte, error) {
		return func(d digest.Digest) ([]byte, error) {
			a := get(t, p, "/v2/"+repo+"/"+kind+"/"+d.String(), "Accept", anything)
			a.wantHeader(t, "Docker-Content-Digest", d.String())
			return a.body, nil
		}
	}
	pullAll(t, i, from("manifests"), from("blobs"))
}

// readAndClose reads a stream to its end.
func readAndClose(r io.ReadCloser, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// wantUnmoved checks that the hub was asked for nothing since before.
func wantUnmoved(t testing.TB, before, after hub.Counts) {
	t.Helper()
	if before != after {
		t.Errorf("the upstream was asked:\nbefore %+v\nafter  %+v", before, after)
	}
}

// until waits for a condition.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	proxy.Until(t, what, cond)
}

// restartWith starts a new process on the cache of one that was stopped, with
// another configuration.
func restartWith(t *testing.T, old *proxy.Proxy, h *hub.Hub, config string) *proxy.Proxy {
	t.Helper()
	return proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Dir: old.Dir, Config: config})
}
