package upstream

import (
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/entrepot-dev/entrepot/oci"
)

// http2Server serves h over TLS and offers the protocols.
func http2Server(t *testing.T, issuer tls.Certificate, protocols func(*http.Protocols), h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{issue(t, issuer, "127.0.0.1")}}
	s.EnableHTTP2 = true
	s.Config.Protocols = new(http.Protocols)
	protocols(s.Config.Protocols)
	if !s.Config.Protocols.HTTP1() {
		s.TLS.NextProtos = []string{"h2"}
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func TestEachBlobHasAConnectionOfItsOwnAndWhatIsSmallSharesOne(t *testing.T) {
	for name, offers := range map[string]func(*http.Protocols){
		"HTTP/1.1 and HTTP/2": func(p *http.Protocols) { p.SetHTTP1(true); p.SetHTTP2(true) },
		"HTTP/2 only":         func(p *http.Protocols) { p.SetHTTP2(true) },
	} {
		t.Run(name, func(t *testing.T) {
			issuer, ca := authority(t)
			var mu sync.Mutex
			small, large := map[string]bool{}, map[string]bool{} // the connections, by protocol and address
			var blobs sync.WaitGroup
			blobs.Add(4)
			reg := http2Server(t, issuer, offers, func(w http.ResponseWriter, req *http.Request) {
				from := small
				if req.Header.Get("Range") != "" {
					from = large
				}
				mu.Lock()
				from[req.Proto+" "+req.RemoteAddr] = true
				mu.Unlock()
				if req.Header.Get("Range") == "" {
					serveImage(w, req)
					return
				}
				blobs.Done()
				blobs.Wait() // all of them come at a time
				serveContent(w, req)
			})
			r := open(t, Options{Endpoints: []string{reg.URL}, CAFile: ca})
			wantManifest(t, r, "a")
			wantManifest(t, r, "b")
			var readers sync.WaitGroup
			for range 4 {
				readers.Go(func() {
					b, err := r.Blob(t.Context(), "a", layerDigest, oci.Span{From: 4, To: oci.Open})
					if err != nil {
						t.Error(err)
						return
					}
					defer b.Close()
					if got, err := io.ReadAll(b); err != nil || string(got) != layer[4:] {
						t.Errorf("got %q, %v", got, err)
					}
				})
			}
			readers.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(small) != 1 {
				t.Errorf("the manifests came over %q, want one connection", slices.Collect(maps.Keys(small)))
			}
			if len(large) != 4 {
				t.Errorf("the 4 blobs came over %q, want a connection for each", slices.Collect(maps.Keys(large)))
			}
			for from := range small {
				if !strings.HasPrefix(from, "HTTP/2.0 ") || large[from] {
					t.Errorf("the manifests came over %s, want one of HTTP/2 that no blob uses", from)
				}
			}
		})
	}
}

func TestBlobsComeFromAServerThatSpeaksHTTP2Only(t *testing.T) {
	issuer, ca := authority(t)
	reg := http2Server(t, issuer, func(p *http.Protocols) { p.SetHTTP2(true) }, serveLayer)
	r := open(t, Options{Endpoints: []string{reg.URL}, CAFile: ca})
	wantLayer(t, r)
}

func TestAServerThatRefusesHTTP1IsRemembered(t *testing.T) {
	issuer, ca := authority(t)
	reg := http2Server(t, issuer, func(p *http.Protocols) { p.SetHTTP2(true) }, serveLayer)
	reg.TLS.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if !slices.Contains(hello.SupportedProtos, "h2") {
			strict := reg.TLS.Clone()
			strict.GetConfigForClient = nil
			strict.NextProtos = []string{"other"}
			return strict, nil
		}
		return nil, nil
	}
	r := open(t, Options{Endpoints: []string{reg.URL}, CAFile: ca})
	wantLayer(t, r)
	if !r.routes.named.Load().speaksOnlyHTTP2(mustURL(t, reg.URL)) {
		t.Error("that the server speaks HTTP/2 only is not remembered")
	}
	wantLayer(t, r)
}

// To open a connection takes longer than a small piece of a blob does.
func TestSmallPiecesOfBlobsShareAConnection(t *testing.T) {
	issuer, ca := authority(t)
	var mu sync.Mutex
	from := map[string]bool{}
	reg := http2Server(t, issuer, func(p *http.Protocols) { p.SetHTTP1(true); p.SetHTTP2(true) }, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		from[r.Proto+" "+r.RemoteAddr] = true
		mu.Unlock()
		w.Header().Set("Content-Range", fmt.Sprintf("bytes 2-4/%d", len(layer)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = io.WriteString(w, layer[2:5])
	})
	r := open(t, Options{Endpoints: []string{reg.URL}, CAFile: ca})
	read := func() {
		b, err := r.Blob(t.Context(), "a", layerDigest, oci.Span{From: 2, To: 5})
		if err != nil {
			t.Error(err)
			return
		}
		defer b.Close()
		if got, err := io.ReadAll(b); err != nil || string(got) != layer[2:5] {
			t.Errorf("got %q, %v", got, err)
		}
	}
	read()
	var readers sync.WaitGroup
	for range 8 {
		readers.Go(read)
	}
	readers.Wait()
	mu.Lock()
	defer mu.Unlock()
	if len(from) != 1 {
		t.Errorf("9 pieces came over %q, want one connection", slices.Collect(maps.Keys(from)))
	}
}
