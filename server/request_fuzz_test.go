package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// script is a connection on which all that a client says is known beforehand.
type script struct {
	said  *bytes.Reader
	heard bytes.Buffer
}

func (s *script) Read(p []byte) (int, error)       { return s.said.Read(p) }
func (s *script) Write(p []byte) (int, error)      { return s.heard.Write(p) }
func (s *script) Close() error                     { return nil }
func (s *script) LocalAddr() net.Addr              { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5000} }
func (s *script) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 50000} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// wary is a shelf that looks at what it is asked for: what the cache makes file
// names, index keys and upstream URLs of.
type wary struct {
	*shelf
	t *testing.T // of the message that is being answered
}

func (w *wary) look(target oci.Target) {
	if target.Upstream != "docker.io" && target.Upstream != "ghcr.io" {
		w.t.Errorf("the upstream is %q", target.Upstream)
	}
	if err := oci.CheckName(target.Repository); err != nil {
		w.t.Errorf("the repository is %q: %v", target.Repository, err)
	}
	if _, err := oci.ParseDigest(string(target.Digest)); err != nil && target.Digest != "" {
		w.t.Errorf("the digest is %q", target.Digest)
	}
	if strings.ContainsAny(target.Tag, "/\\%:\x00 ") || strings.HasPrefix(target.Tag, ".") || len(target.Tag) > 128 {
		w.t.Errorf("the tag is %q", target.Tag)
	}
}

func (w *wary) Manifest(ctx context.Context, t oci.Target, a rewrite.Accept) (*cache.Manifest, cache.Outcome, error) {
	w.look(t)
	return w.shelf.Manifest(ctx, t, a)
}

func (w *wary) Describe(ctx context.Context, t oci.Target, a rewrite.Accept) (*cache.Manifest, cache.Outcome, error) {
	w.look(t)
	return w.shelf.Describe(ctx, t, a)
}

func (w *wary) Blob(ctx context.Context, t oci.Target, hint oci.Span) (cache.Blob, cache.Outcome, error) {
	w.look(t)
	if hint.To != oci.Open && (hint.From < 0 || hint.To <= hint.From) {
		w.t.Errorf("the hint is %v", hint)
	}
	return w.shelf.Blob(ctx, t, hint)
}

func (w *wary) Stat(ctx context.Context, t oci.Target) (int64, cache.Outcome, error) {
	w.look(t)
	return w.shelf.Stat(ctx, t)
}

func (w *wary) Tags(ctx context.Context, t oci.Target) ([]string, cache.Outcome, error) {
	w.look(t)
	return w.shelf.Tags(ctx, t)
}

func (w *wary) Referrers(ctx context.Context, t oci.Target) ([]v1.Descriptor, cache.Outcome, error) {
	w.look(t)
	return w.shelf.Referrers(ctx, t)
}

// FuzzRequest sends any bytes to the whole front end, as a client's connection has
// them: fasthttp's parser, the paths, the headers, the answers. Whatever they are,
// what comes back are HTTP answers, each an error in words where it is none of
// success; and nothing gets through that is no name.
func FuzzRequest(f *testing.F) {
	small := newShelf()
	small.blobs[blobDigest] = &parcel{bytes: blobBytes[:100]}
	blob := string(blobDigest)
	for _, seed := range []string{
		"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /v2/nginx/manifests/1 HTTP/1.1\r\nHost: x\r\nAccept: application/json;q=0, */*\r\n\r\nHEAD /v2/nginx/manifests/chosen HTTP/1.0\r\n\r\n",
		"GET /v2/nginx/blobs/" + blob + "?ns=docker.io HTTP/1.1\r\nHost: ghcr.io\r\nRange: bytes=1-2\r\nIf-Range: \"" + blob + "\"\r\n\r\n",
		"HEAD /v2/nginx/blobs/" + blob + " HTTP/1.1\r\nHost: x\r\nIf-None-Match: W/\"" + blob + "\"\r\n\r\n",
		"GET /v2/nginx/blobs/" + blob + " HTTP/1.1\r\nHost: x\r\nRange: bytes=-5\r\n\r\nGET /v2/nginx/tags/list?n=1&last=1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /v2/_catalog?n=2 HTTP/1.1\r\nHost: x\r\n\r\nGET /v2/nginx/referrers/" + blob + "?artifactType=a%2Fb HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /v2/nginx/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\n\r\n",
		"GET http://h/v2/..%2fa/manifests/%00 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n\r\n",
		"CONNECT a:1 HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	router, err := rewrite.NewRouter(rewrite.Routing{Default: "docker.io", Upstreams: map[string][]string{"docker.io": nil, "ghcr.io": nil}})
	if err != nil {
		f.Fatal(err)
	}
	content := &wary{shelf: small}
	s := New(Options{Router: router, Content: content})
	f.Fuzz(func(t *testing.T, message []byte) {
		if len(message) > 64<<10 {
			return
		}
		content.t = t
		c := &script{said: bytes.NewReader(message)}
		_ = s.http.ServeConn(c) // what it could not read it has said
		r := bufio.NewReader(&c.heard)
		for n := 0; ; n++ {
			if _, err := r.Peek(1); errors.Is(err, io.EOF) {
				return
			}
			// Whether HEAD was asked is seen by what follows the header.
			res, err := http.ReadResponse(r, &http.Request{Method: http.MethodHead})
			if err != nil {
				t.Fatalf("%q: answer %d can not be read: %v", message, n, err)
			}
			body := followingBody(r, res)
			if res.StatusCode >= 500 {
				t.Errorf("%q: answer %d is %s: %s", message, n, res.Status, body)
			}
			if res.StatusCode >= 400 && len(body) > 0 {
				var e errorBody
				if json.Unmarshal(body, &e) != nil || len(e.Errors) != 1 || e.Errors[0].Code == "" || e.Errors[0].Message == "" {
					t.Errorf("%q: answer %d, %s, is no error in words: %q", message, n, res.Status, body)
				}
			}
		}
	})
}

// followingBody reads the body that belongs to res; none where another answer
// follows at once, for HEAD has none.
func followingBody(r *bufio.Reader, res *http.Response) []byte {
	if next, _ := r.Peek(5); string(next) == "HTTP/" || res.StatusCode < 200 || res.StatusCode == http.StatusNotModified {
		return nil
	}
	body := make([]byte, max(0, res.ContentLength))
	n, _ := io.ReadFull(r, body)
	return body[:n]
}
