package server

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/valyala/fasthttp/fasthttputil"
	"go.uber.org/zap"
	"golang.org/x/crypto/bcrypt"

	"github.com/entrepot-dev/entrepot/access"
	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// BenchmarkManifestHit and BenchmarkBlobHit measure a request on a kept
// connection in memory, the client's reading included, which allocates nothing.

func BenchmarkManifestHit(b *testing.B) {
	benchmark(b, still{newShelf()}, "GET /v2/library/nginx/manifests/1?ns=docker.io HTTP/1.1\r\nHost: cache:5000\r\n"+
		"User-Agent: containerd/2.1\r\nAccept: application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.index.v1+json, */*\r\n\r\n")
}

func BenchmarkBlobHit(b *testing.B) {
	s := newShelf()
	s.blobs[blobDigest].bytes = blobBytes[:8192]
	benchmark(b, still{s}, "GET "+blobPath(blobDigest)+" HTTP/1.1\r\nHost: cache:5000\r\nUser-Agent: containerd/2.1\r\n\r\n")
}

// still does not note what it was asked, which would allocate.
type still struct{ *shelf }

func (s still) Blob(_ context.Context, t oci.Target, _ oci.Span) (cache.Blob, cache.Outcome, error) {
	return s.blobs[t.Digest], s.outcome, nil
}

func (s still) Manifest(context.Context, oci.Target, rewrite.Accept) (*cache.Manifest, cache.Outcome, error) {
	return s.manifests["docker.io/library/nginx:1"], s.outcome, nil
}

func (s still) Describe(ctx context.Context, t oci.Target, a rewrite.Accept) (*cache.Manifest, cache.Outcome, error) {
	return s.Manifest(ctx, t, a)
}

func TestHitAllocatesNothing(t *testing.T) {
	if raced {
		t.Skip("the race detector allocates")
	}
	s := newShelf()
	s.blobs[blobDigest].bytes = blobBytes[:8192]
	const head = " HTTP/1.1\r\nHost: cache:5000\r\nUser-Agent: containerd/2.1\r\n" +
		"Accept: application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.index.v1+json, */*\r\n"
	for what, request := range map[string]string{
		"manifest by tag":                "GET /v2/library/nginx/manifests/1?ns=docker.io" + head,
		"manifest by tag, by the prefix": "GET /v2/docker.io/library/nginx/manifests/1" + head,
		"manifest by digest":             "GET /v2/library/nginx/manifests/" + string(manifestSum) + head,
		"manifest that has not changed":  "GET /v2/library/nginx/manifests/1" + head + "If-None-Match: \"" + string(manifestSum) + "\"\r\n",
		"HEAD by tag":                    "HEAD /v2/library/nginx/manifests/1" + head,
		"blob":                           "GET " + blobPath(blobDigest) + head,
		"range":                          "GET " + blobPath(blobDigest) + head + "Range: bytes=10-99\r\n",
	} {
		ask := asker(t, still{s}, request+"\r\n")
		for range 10 { // buffers grow
			ask()
		}
		if n := testing.AllocsPerRun(200, ask); n != 0 {
			t.Errorf("%s: %g allocations, want none", what, n)
		}
	}
}

// BenchmarkGuardedManifestHit is BenchmarkManifestHit from a caller whose password
// is known, under a rule.
func BenchmarkGuardedManifestHit(b *testing.B) {
	benchmark(b, still{newShelf()}, guardedRequest, guardedBy(b))
}

func TestHitOfAKnownCallerAllocatesNothing(t *testing.T) {
	if raced {
		t.Skip("the race detector allocates")
	}
	ask := asker(t, still{newShelf()}, guardedRequest, guardedBy(t))
	for range 10 { // buffers grow
		ask()
	}
	if n := testing.AllocsPerRun(200, ask); n != 0 {
		t.Errorf("want no allocation, got %g", n)
	}
}

const guardedRequest = "GET /v2/library/nginx/manifests/1?ns=docker.io HTTP/1.1\r\nHost: cache:5000\r\nAuthorization: Basic YWxpY2U6d29uZGVybGFuZA==\r\n" +
	"User-Agent: containerd/2.1\r\nAccept: application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.index.v1+json, */*\r\n\r\n"

// guardedBy sets a guard that knows alice by her password, and has a rule.
func guardedBy(b testing.TB) func(*Options) {
	b.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte("wonderland"), bcrypt.MinCost)
	if err != nil {
		b.Fatal(err)
	}
	file := filepath.Join(b.TempDir(), "htpasswd")
	if err := os.WriteFile(file, []byte("alice:"+string(hash)), 0o600); err != nil {
		b.Fatal(err)
	}
	g, err := access.New(access.Options{Htpasswd: file, Rules: []access.Rule{{Name: "official", Repositories: []string{"library/*"}, Allow: true}}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(g.Close)
	return func(o *Options) { o.Guard = g }
}

func benchmark(b *testing.B, content Content, request string, change ...func(*Options)) {
	ask := asker(b, content, request, change...)
	b.ReportAllocs()
	for b.Loop() {
		ask()
	}
}

// asker gives what asks for a thing, on a kept connection in memory, and reads the
// answer.
func asker(b testing.TB, content Content, request string, change ...func(*Options)) (ask func()) {
	b.Helper()
	router, err := rewrite.NewRouter(rewrite.Routing{Default: "docker.io", Upstreams: map[string][]string{"docker.io": nil}})
	if err != nil {
		b.Fatal(err)
	}
	o := Options{Router: router, Content: content, Log: zap.NewNop(), Metrics: metrics.Discard()}
	for _, c := range change {
		c(&o)
	}
	s := New(o)
	l := fasthttputil.NewInmemoryListener()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	conn, err := l.Dial()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		conn.Close()
		_ = l.Close()
		<-done
	})
	// The first answer says how long each is.
	r := bufio.NewReaderSize(conn, 64<<10)
	counted := &countingReader{r: conn}
	if _, err := io.WriteString(conn, request); err != nil {
		b.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(counted, 1), &http.Request{Method: strings.SplitN(request, " ", 2)[0]})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode >= 400 {
		b.Fatal(resp.Status, err)
	}
	length := counted.n
	raw := []byte(request)
	return func() {
		if _, err := conn.Write(raw); err != nil {
			b.Fatal(err)
		}
		if _, err := r.Discard(length); err != nil {
			b.Fatal(err)
		}
	}
}

type countingReader struct {
	r io.Reader
	n int
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += n
	return n, err
}

// BenchmarkLargeBlobByTCP measures the throughput of a blob in a file over the
// loopback, as sendfile gives it.
func BenchmarkLargeBlobByTCP(b *testing.B) {
	const size = 64 << 20
	name := filepath.Join(b.TempDir(), "blob")
	f, err := os.Create(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		b.Fatal(err)
	}
	s := newShelf()
	s.blobs[blobDigest] = &parcel{bytes: nil, send: func(w io.Writer, span oci.Span) (int64, error) {
		return w.(*pacer).SendFile(f, span.From, span.To)
	}}
	_, base := start(b, sized{s, size})
	conn, err := net.Dial("tcp", base[len("http://"):])
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReaderSize(conn, 256<<10)
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := io.WriteString(conn, "GET "+blobPath(blobDigest)+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			b.Fatal(err)
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != size {
			b.Fatal(n, err)
		}
	}
}
