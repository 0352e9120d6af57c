package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	dto "github.com/prometheus/client_model/go"

	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// everything is what a client can ask of repo: each a question and its answer's
// error.
func everything(c *Cache, repo, tag string, manifest, blob digest.Digest) map[string]func(context.Context) (Outcome, error) {
	by := digested(repo, manifest)
	return map[string]func(context.Context) (Outcome, error){
		"tag": func(ctx context.Context) (Outcome, error) {
			_, out, err := c.Manifest(ctx, tagged(repo, tag), rewrite.Accept{})
			return out, err
		},
		"HEAD of the tag": func(ctx context.Context) (Outcome, error) {
			_, out, err := c.Describe(ctx, tagged(repo, tag), rewrite.Accept{})
			return out, err
		},
		"manifest": func(ctx context.Context) (Outcome, error) {
			_, out, err := c.Manifest(ctx, by, rewrite.Accept{})
			return out, err
		},
		"blob": func(ctx context.Context) (Outcome, error) {
			b, out, err := c.Blob(ctx, digested(repo, blob), oci.Span{})
			if b != nil {
				b.Close()
			}
			return out, err
		},
		"HEAD of the blob": func(ctx context.Context) (Outcome, error) {
			_, out, err := c.Stat(ctx, digested(repo, blob))
			return out, err
		},
		"tags": func(ctx context.Context) (Outcome, error) {
			_, out, err := c.Tags(ctx, oci.Target{Upstream: "docker.io", Repository: repo})
			return out, err
		},
		"referrers": func(ctx context.Context) (Outcome, error) {
			_, out, err := c.Referrers(ctx, by)
			return out, err
		},
	}
}

func TestAnUpstreamsWordIsRememberedBriefly(t *testing.T) {
	for name, word := range map[string]*oci.Error{
		"not there": oci.Errorf(oci.CodeManifestUnknown, "not there"),
		"refused":   {Code: oci.CodeDenied, Status: 403, Message: "refused"},
	} {
		for _, what := range []string{"tag", "HEAD of the tag", "manifest", "blob", "HEAD of the blob", "tags", "referrers"} {
			t.Run(name+"/"+what, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := newRegistry()
					c := open(t, Options{}, map[string]*registry{"docker.io": r})
					r.set(word, 0)
					ask := everything(c, "app", "1", digest.FromString("m"), digest.FromString("b"))[what]
					total := func() (n int) {
						for _, k := range r.count() {
							n += k
						}
						return n
					}
					if _, err := ask(t.Context()); !errors.Is(err, word) {
						t.Fatalf("got %v, want %v", err, word)
					}
					asked := total()
					for range 3 {
						out, err := ask(t.Context())
						if !errors.Is(err, word) || out.Status != Negative {
							t.Errorf("got %v with %v, want %v from memory", err, out.Status, word)
						}
					}
					if n := total(); n != asked {
						t.Errorf("the upstream was asked %d more times, want none", n-asked)
					}
					time.Sleep(DefaultNegativeTTL + time.Second)
					if _, err := ask(t.Context()); !errors.Is(err, word) {
						t.Errorf("later: got %v, want %v", err, word)
					}
					if n := total(); n == asked {
						t.Error("later the upstream was not asked, want it to be")
					}
				})
			})
		}
	}
}

func TestOnlyAnUpstreamsWordIsRemembered(t *testing.T) {
	var n negative
	word := &oci.Error{Code: oci.CodeDenied, Message: "refused"}
	n.note("key", word, time.Hour)
	if got, ok := n.get("key"); !ok || got != word {
		t.Errorf("got %v, %v; want what was said", got, ok)
	}
	n.note("other", &oci.Error{Code: oci.CodeUnavailable, Message: "failed"}, time.Hour)
	if got, ok := n.get("other"); ok {
		t.Errorf("a failure was remembered: %v", got)
	}
}

func TestNoFailureIsAnAbsenceOrDisplacesWhatIsHere(t *testing.T) {
	for name, failure := range map[string]*oci.Error{
		"429":         {Code: oci.CodeTooManyRequests, Message: "limited", RetryAfter: time.Minute},
		"500":         {Code: oci.CodeUnavailable, Status: 502, Message: "broken"},
		"503":         {Code: oci.CodeUnavailable, Status: 503, Message: "overloaded"},
		"timed out":   {Code: oci.CodeUnavailable, Status: 504, Message: "timed out", Err: os.ErrDeadlineExceeded},
		"broken TLS":  {Code: oci.CodeUnavailable, Status: 502, Message: "has a certificate of another name"},
		"left alone":  {Code: oci.CodeUnavailable, Status: 503, Message: "is left alone", RetryAfter: time.Second},
		"401 and 403": {Code: oci.CodeDenied, Status: 403, Message: "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRegistry()
				layer := []byte("a layer")
				img := r.addImage("app", layer)
				r.tag("app", "1", img)
				c := open(t, Options{}, map[string]*registry{"docker.io": r})
				blob := digest.FromBytes(layer)
				here := everything(c, "app", "1", img.Digest, blob)
				for what, ask := range here {
					if _, err := ask(t.Context()); err != nil {
						t.Fatalf("%s: %v", what, err)
					}
				}
				// That nothing refers to a digest is kept once its manifest is.
				if _, err := here["referrers"](t.Context()); err != nil {
					t.Fatal(err)
				}
				r.set(failure, 0)
				for round := range 3 {
					time.Sleep(time.Hour)
					for what, ask := range here {
						if out, err := ask(t.Context()); err != nil {
							t.Errorf("round %d: %s is here: got %v, want it", round+1, what, err)
						} else if out.Status != Hit && out.Status != Stale {
							t.Errorf("round %d: %s is here: got %v, want a hit or stale", round+1, what, out.Status)
						}
					}
					for what, ask := range everything(c, "none", "1", digest.FromString("m"), digest.FromString("b")) {
						if _, err := ask(t.Context()); err == nil || oci.IsAbsent(err) {
							t.Errorf("round %d: %s is not here: got %v, want a failure that is no absence", round+1, what, err)
						}
					}
				}
				r.set(nil, 0)
				time.Sleep(time.Hour)
				wantManifest(t, c, tagged("app", "1"), img, Revalidated)
			})
		})
	}
}

func TestASlowUpstreamCostsOneClientItsDeadlineAndNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry()
		img := r.addImage("app")
		const tags = 5
		for i := range tags {
			r.tag("app", fmt.Sprint(i), img)
		}
		c := open(t, Options{}, map[string]*registry{"docker.io": r})
		pull := func(i int) time.Duration {
			t.Helper()
			began := time.Now()
			wantManifest(t, c, tagged("app", fmt.Sprint(i)), img, Stale)
			return time.Since(began)
		}
		for i := range tags {
			wantManifest(t, c, tagged("app", fmt.Sprint(i)), img, Miss)
		}
		time.Sleep(2 * DefaultTTL)
		r.set(nil, 30*time.Second)
		if d := pull(0); d != DefaultRevalidateTimeout {
			t.Errorf("the first pull took %s, want %s", d, DefaultRevalidateTimeout)
		}
		for i := range tags {
			if d := pull(i); d != 0 {
				t.Errorf("the pull of tag %d took %s, want nothing", i, d)
			}
		}
		// What is asked behind finds out that it is back.
		r.set(nil, 0)
		time.Sleep(2 * DefaultTTL)
		began := time.Now()
		wantManifest(t, c, tagged("app", "0"), img, Revalidated)
		if d := time.Since(began); d != 0 {
			t.Errorf("with the upstream back it took %s", d)
		}
	})
}

// metered is a registry that spares pulls or does not.
type metered struct {
	*registry
	spares atomic.Bool
}

func (m *metered) SparePull(context.Context) error {
	if m.spares.Load() {
		return nil
	}
	return &oci.Error{Code: oci.CodeTooManyRequests, Message: "3 more pulls"}
}

func (m *metered) SparePulls(ctx context.Context, _ int) (time.Duration, error) {
	return 0, m.SparePull(ctx)
}

func TestNoPullIsSpentOnATagThatIsHereWhereNoneIsSpared(t *testing.T) {
	for _, silent := range []bool{false, true} {
		t.Run(fmt.Sprintf("silent on HEAD %v", silent), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &metered{registry: newRegistry()}
				r.silent = silent
				r.spares.Store(true)
				was, is := r.addImage("app", []byte("a")), r.addImage("app", []byte("b"))
				r.tag("app", "1", was)
				m := metrics.Discard()
				c, err := Open(Options{Dir: t.TempDir(), Metrics: m, Settings: Settings{Upstreams: map[string]Upstream{
					"docker.io": {Origin: r, Tags: []TagRule{{Match: "*", TTL: DefaultTTL, StaleIfError: 24 * time.Hour}}}}}})
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = c.Close(context.Background()) }()
				wantManifest(t, c, tagged("app", "1"), was, Miss)
				r.spares.Store(false)
				r.tag("app", "1", is)
				pulls := r.count()["manifest"]
				for range 3 {
					time.Sleep(2 * DefaultTTL)
					_, out, err := c.Manifest(t.Context(), tagged("app", "1"), rewrite.Accept{})
					if err != nil || out.Status != Stale || out.Reason != errReserve.Error() {
						t.Fatalf("got %v (%q), %v; want stale, for the reserve", out.Status, out.Reason, err)
					}
				}
				if got := r.count()["manifest"]; got != pulls {
					t.Errorf("%d pulls were spent, want none", got-pulls)
				}
				var d dto.Metric
				if err := m.PullsSaved.WithLabelValues("docker.io").Write(&d); err != nil {
					t.Fatal(err)
				}
				if got := d.GetCounter().GetValue(); got != 3 {
					t.Errorf("%v pulls counted as saved, want 3", got)
				}
				// What is not here is fetched all the same.
				other := r.addImage("app", []byte("c"))
				r.tag("app", "2", other)
				wantManifest(t, c, tagged("app", "2"), other, Miss)
				// What has been stale for too long is not here.
				time.Sleep(48 * time.Hour)
				wantManifest(t, c, tagged("app", "1"), is, Miss)
			})
		})
	}
}
