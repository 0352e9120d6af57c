package upstream

import (
	"context"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

// silently lets addr answer nothing, and nothing on any connection that was made before
// the function it returns is called.
func (w *world) silently(addr string) (answer func(h http.HandlerFunc)) {
	w.blackHole(addr)
	return func(h http.HandlerFunc) { w.host(addr, h) } // old connections stay with the old host
}

// A client that joins a request whose connection is dead is served soon after the
// upstream is back, over HTTP/1.1 and HTTP/2, whoever began it.
func TestWhoJoinsASilentRequestIsServedOnceTheUpstreamIsBack(t *testing.T) {
	for name, recovers := range map[string]time.Duration{"before the first look": 1500 * time.Millisecond, "after 5 s": 5 * time.Second, "after 20 s": 20 * time.Second} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				back := w.silently("reg.test:443")
				r := w.registry(Options{})
				joins := &oci.Joins{}
				ended := make(chan error, 1)
				go func() {
					_, err := r.Manifest(oci.WithJoins(t.Context(), joins), "a", "latest")
					ended <- err
				}()
				time.Sleep(recovers)
				back(serveImage)
				time.Sleep(100 * time.Millisecond)
				joined := time.Now()
				joins.Note()
				if err := <-ended; err != nil {
					t.Fatal(err)
				}
				if d := time.Since(joined); d > time.Second {
					t.Errorf("it took %s, want at most 1s", d)
				}
				w.wantCount("GET reg.test/v2/a/", 2)
				w.wantBreaker("reg.test", breakerClosed, 0)
			})
		})
	}
}

// A request that is merely slow is sent once, unless somebody joins it; then twice.
func TestASlowRequestIsNotSentTwiceForOneClient(t *testing.T) {
	for joined, want := range map[bool]int{false: 1, true: 2} {
		inWorld(t, func(t *testing.T, w *world) {
			w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
				if req.URL.Path != "/v2/" {
					select {
					case <-time.After(25 * time.Second):
					case <-req.Context().Done():
						return
					}
				}
				serveImage(rw, req)
			})
			r := w.registry(Options{})
			joins := &oci.Joins{}
			if joined {
				joins.Note()
			}
			began := time.Now()
			if _, err := r.Manifest(oci.WithJoins(t.Context(), joins), "a", "latest"); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(began); d != 25*time.Second {
				t.Errorf("it took %s, want 25s", d)
			}
			w.wantCount("GET reg.test/v2/a/", want)
		})
	}
}

// A connection that died after it was used before holds nobody up for long.
func TestAReusedConnectionThatIsDeadCostsTwoSeconds(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var dead atomic.Bool
		serve := func(rw http.ResponseWriter, req *http.Request) {
			if dead.Load() {
				<-req.Context().Done()
				return
			}
			serveImage(rw, req)
		}
		w.host("reg.test:443", serve)
		r := w.registry(Options{})
		wantManifest(t, r, "a")
		dead.Store(true)
		w.host("reg.test:443", serveImage) // for new connections
		began := time.Now()
		wantManifest(t, r, "b")
		if d := time.Since(began); d != hedgeAfter {
			t.Errorf("it took %s, want %s", d, hedgeAfter)
		}
		began = time.Now()
		wantManifest(t, r, "c")
		if d := time.Since(began); d != 0 {
			t.Errorf("the next took %s, want nothing: the dead connection isn't used again", d)
		}
	})
}

// A first endpoint that is silent, or drops what would connect to it, costs two seconds
// once.
func TestASilentFirstEndpointCostsTwoSecondsOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.blackHole("first.test:443")
		w.host("second.test:443", serveImage)
		r := two(w)
		began := time.Now()
		wantManifest(t, r, "a")
		if d := time.Since(began); d != hedgeAfter {
			t.Errorf("it took %s, want %s", d, hedgeAfter)
		}
		for range 60 {
			began = time.Now()
			wantManifest(t, r, "b")
			if d := time.Since(began); d != 0 {
				t.Errorf("a later one took %s, want nothing", d)
			}
			time.Sleep(time.Second)
		}
		if n := value(t, w.metrics.EndpointOpenings, "reg", "first.test"); n != 1 {
			t.Errorf("its breaker opened %v times, want once", n)
		}
	})
}

// A slow first endpoint that has what a second lacks still serves it.
func TestASlowFirstEndpointIsWaitedForIfTheSecondHasNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("first.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if req.URL.Path != "/v2/" {
				time.Sleep(5 * time.Second)
			}
			serveImage(rw, req)
		})
		w.host("second.test:443", status(404))
		r := two(w)
		wantManifest(t, r, "a")
		w.wantCount("GET second.test/v2/a/", 1)
	})
}

// While a breaker is open, a pull waits for a probe, and is sent if that is answered.
func TestAPullAtAnOpenBreakerIsSentIfTheEndpointIsBack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		r := w.registry(Options{})
		_ = resolve(t, r, "1")
		w.wantBreaker("reg.test", breakerOpen, 1)
		time.Sleep(10 * time.Minute) // probes are rare by now
		wantError(t, pull(t, r, "a"), oci.CodeUnavailable, 503, "left alone")
		dials := w.dialled("reg.test:443")
		for range 10 {
			wantError(t, pull(t, r, "a"), oci.CodeUnavailable, 503, "left alone")
		}
		if n := w.dialled("reg.test:443") - dials; n > 0 {
			t.Errorf("%d dials right after one that failed", n)
		}
		time.Sleep(retestPause)
		w.host("reg.test:443", serveImage)
		began := time.Now()
		wantManifest(t, r, "a")
		if d := time.Since(began); d != 0 {
			t.Errorf("it took %s, want nothing", d)
		}
		w.wantBreaker("reg.test", breakerClosed, 1)
	})
}

// A name server that does not answer costs one connect timeout, not one for each try.
func TestANameServerThatDoesNotAnswerCostsOneTimeout(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		r := w.registry(Options{})
		r.routes.named.Load().shared.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			select {
			case <-time.After(10 * time.Second):
			case <-ctx.Done():
			}
			return nil, &net.OpError{Op: "dial", Net: network, Err: &net.DNSError{Err: "i/o timeout", Name: addr, IsTimeout: true, IsTemporary: true}}
		}
		began := time.Now()
		wantError(t, pull(t, r, "a"), oci.CodeUnavailable, 504, "name server does not answer")
		if d := time.Since(began); d > 10*time.Second {
			t.Errorf("it took %s, want at most 10s", d)
		}
		time.Sleep(time.Minute) // the dials
	})
}

// The question whether the host of a silent blob answers goes out on a connection of its
// own, which may take a while. That isn't the blob's connection.
func TestABlobIsNotSentTwiceBecauseAProbeIsSlowToConnect(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if req.URL.Path != "/v2/" {
				select {
				case <-time.After(45 * time.Second):
				case <-req.Context().Done():
				}
			}
			serveLayer(rw, req)
		})
		began := time.Now()
		slow := 0
		r, err := build(Options{Name: "reg", Endpoints: []string{"https://reg.test"}, CAFile: w.ca, Metrics: w.metrics, Log: w.log},
			func(ctx context.Context, network, addr string) (net.Conn, error) {
				if time.Since(began) == 20*time.Second { // two thirds of the header timeout
					slow++
					time.Sleep(4 * time.Second)
				}
				return w.dial(ctx, network, addr)
			}, noProxy)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		b, err := r.Blob(t.Context(), "a", layerDigest, oci.Whole)
		if err != nil {
			t.Fatal(err)
		}
		_ = b.Close()
		if slow != 1 {
			t.Errorf("%d connections were slow, want that of one probe", slow)
		}
		w.wantCount("GET reg.test/v2/a/", 1)
	})
}

// Far away, a probe takes a second or two: a connection, TLS and the answer are three
// round trips. The endpoint is there all the same, and no request is sent twice.
func TestAnEndpointFarAwayIsNotGone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if req.URL.Path != "/v2/" {
				select {
				case <-time.After(25 * time.Second):
				case <-req.Context().Done():
				}
			}
			serveImage(rw, req)
		})
		r, err := build(Options{Name: "reg", Endpoints: []string{"https://reg.test"}, CAFile: w.ca, Metrics: w.metrics, Log: w.log},
			func(ctx context.Context, network, addr string) (net.Conn, error) {
				time.Sleep(1700 * time.Millisecond)
				return w.dial(ctx, network, addr)
			}, noProxy)
		if err != nil {
			t.Fatal(err)
		}
		wantManifest(t, r, "a")
		w.wantCount("GET reg.test/v2/a/", 1)
		r.Close()
		time.Sleep(2 * time.Second) // connections on the way
	})
}
