package server

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/valyala/fasthttp/fasthttputil"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// BenchmarkManifestHit and BenchmarkBlobHit measure a request on a kept
// connection in memory, the client's reading included, which allocates nothing.

func BenchmarkManifestHit(b *testing.B) {
	benchmark(b, newShelf(), "GET /v2/library/nginx/manifests/1?ns=docker.io HTTP/1.1\r\nHost: cache:5000\r\n"+
		"User-Agent: containerd/2.1\r\nAccept: application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.index.v1+json, */*\r\n\r\n")
}

func BenchmarkBlobHit(b *testing.B) {
	s := newShelf()
	s.blobs[blobDigest].bytes = blobBytes[:8192]
	benchmark(b, still{s}, "GET "+blobPath(blobDigest)+" HTTP/1.1\r\nHost: cache:5000\r\nUser-Agent: containerd/2.1\r\n\r\n")
}

// still does not note what it was asked, which would allocate.
type still struct{ *shelf }

func (s still) Blob(_ context.Context, t rewrite.Target, _ oci.Span) (cache.Blob, cache.Outcome, error) {
	return s.blobs[t.Digest], s.outcome, nil
}

func benchmark(b *testing.B, content Content, request string) {
	router, err := rewrite.NewRouter(rewrite.Routing{Default: "docker.io", Upstreams: map[string][]string{"docker.io": nil}})
	if err != nil {
		b.Fatal(err)
	}
	s := New(Options{Router: router, Content: content, Log: zap.NewNop(), Metrics: metrics.Discard()})
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
	defer func() {
		conn.Close()
		_ = l.Close()
		<-done
	}()
	// The first answer says how long each is.
	r := bufio.NewReaderSize(conn, 64<<10)
	counted := &countingReader{r: conn}
	if _, err := io.WriteString(conn, request); err != nil {
		b.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(counted, 1), nil)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
		b.Fatal(resp.Status, err)
	}
	length := counted.n
	raw := []byte(request)
	b.ReportAllocs()
	for b.Loop() {
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
		if _, err := f.Seek(span.From, io.SeekStart); err != nil {
			return 0, err
		}
		return w.(io.ReaderFrom).ReadFrom(&io.LimitedReader{R: f, N: span.To - span.From})
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
