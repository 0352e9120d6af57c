package upstream

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/entrepot-dev/entrepot/oci"
)

// page is one answer of a list: its body, and the Link that it carries.
type page struct{ body, link string }

// servePages answers by the query of the request.
func servePages(pages map[string]page) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		p, ok := pages[req.URL.RawQuery]
		if !ok {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if p.link != "" {
			w.Header().Set("Link", p.link)
		}
		_, _ = io.WriteString(w, p.body)
	}
}

func TestTagsAreListedWholeSortedAndOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", servePages(map[string]page{
			"":       {`{"name":"a","tags":["b","latest","1.0"]}`, `</v2/a/tags/list?last=1>; rel="next"`},
			"last=1": {`{"tags":["b","a"]}`, `<https://reg.test/v2/a/tags/list?last=2>; rel="next"`},
			"last=2": {`{"tags":null}`, `<?last=3>; rel=next`},
			"last=3": {`{"tags":["not a tag","../x","z"]}`, ``},
		}))
		got, err := w.registry(Options{}).Tags(t.Context(), "a")
		if want := []string{"1.0", "a", "b", "latest", "z"}; err != nil || !slices.Equal(got, want) {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	})
}

func TestNoTagsAreAnEmptyList(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", serve(`{"name":"a","tags":null}`))
		got, err := w.registry(Options{}).Tags(t.Context(), "a")
		if err != nil || got == nil || len(got) != 0 {
			t.Errorf("got %#v, %v; want an empty list", got, err)
		}
	})
}

func TestListsThatCanNotBeRightAreFailures(t *testing.T) {
	for name, pages := range map[string]map[string]page{
		"a link to itself":  {"": {`{"tags":["a"]}`, `<?last=1>; rel="next"`}, "last=1": {`{"tags":["a"]}`, `<?last=1>; rel="next"`}},
		"a ring":            {"": {`{}`, `<?a>; rel="next"`}, "a": {`{}`, `<?b>; rel="next"`}, "b": {`{}`, `<?a>; rel="next"`}},
		"not JSON":          {"": {`<html>`, ``}},
		"a page too large":  {"": {`{"tags":["` + strings.Repeat("a", 8<<20) + `"]}`, ``}},
		"an end that fails": {"": {`{"tags":["a"]}`, `<?gone>; rel="next"`}},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("reg.test:443", servePages(pages))
				w.host("evil.test:443", serve(`{"tags":["b"]}`))
				got, err := w.registry(Options{}).Tags(t.Context(), "a")
				if err == nil {
					t.Fatalf("got %q, want an error", got)
				}
				wantError(t, err, oci.CodeUnavailable, 502)
				w.wantCount("GET evil.test", 0)
				if n := w.count("GET reg.test"); n > 4 {
					t.Errorf("it took %d requests to find out", n)
				}
			})
		})
	}
}

func TestPagesComeFromOneEndpoint(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("first.test:443", status(500))
		w.host("second.test:443", servePages(map[string]page{"": {`{"tags":["a"]}`, `<?last=a>; rel="next"`}, "last=a": {`{"tags":["b"]}`, ``}}))
		got, err := two(w).Tags(t.Context(), "a")
		if want := []string{"a", "b"}; err != nil || !slices.Equal(got, want) {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
		w.wantCount("GET first.test", 1)
	})
}

func TestAMissingRepositoryIsNameUnknown(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", status(404))
		_, err := w.registry(Options{}).Tags(t.Context(), "a/b")
		wantError(t, err, oci.CodeNameUnknown, 404, "reg/a/b", "upstream reg")
	})
}

func index(t *testing.T, names ...string) string {
	t.Helper()
	i := v1.Index{MediaType: v1.MediaTypeImageIndex}
	i.SchemaVersion = 2
	for _, n := range names {
		i.Manifests = append(i.Manifests, v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString(n), Size: 1, ArtifactType: n})
	}
	raw, err := json.Marshal(i)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func wantReferrers(t *testing.T, r *Registry, want ...string) {
	t.Helper()
	got, err := r.Referrers(t.Context(), "a", imageDigest)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, d := range got {
		names = append(names, d.ArtifactType)
	}
	if got == nil || !slices.Equal(names, want) {
		t.Errorf("got %q, want %q", names, want)
	}
}

func TestReferrersAreListedByTheAPI(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", servePages(map[string]page{
			"":  {index(t, "sbom", "signature"), `<?p>; rel="next"`},
			"p": {index(t, "signature", "attestation"), ``},
		}))
		wantReferrers(t, w.registry(Options{}), "sbom", "signature", "attestation")
		w.wantCount("GET reg.test/v2/a/referrers/"+imageDigest.String(), 2)
	})
}

func TestReferrersFallBackToTheTagSchema(t *testing.T) {
	tag := "/v2/a/manifests/sha256-" + imageDigest.Encoded()
	for _, code := range []int{404, 405, 501} {
		for name, c := range map[string]struct {
			body string
			want []string
		}{
			"an index": {index(t, "signature"), []string{"signature"}},
			"absent":   {"", nil},
			"an image": {image, nil},
		} {
			t.Run(fmt.Sprint(code, name), func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
						switch {
						case strings.Contains(req.URL.Path, "/referrers/"):
							rw.WriteHeader(code)
						case req.URL.Path != tag || c.body == "":
							rw.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
							rw.WriteHeader(http.StatusNotFound)
						default:
							_, _ = io.WriteString(rw, c.body)
						}
					})
					wantReferrers(t, w.registry(Options{}), c.want...)
					w.wantCount("GET reg.test"+tag, 1)
				})
			})
		}
	}
}

func TestReferrersFallBackAlsoWhereTheRegistryRedirects(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			redirectTo("https://region.test"+req.URL.Path)(rw, req)
		})
		w.host("region.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if strings.Contains(req.URL.Path, "/referrers/") {
				rw.WriteHeader(http.StatusNotFound)
				return
			}
			_, _ = io.WriteString(rw, index(t, "signature"))
		})
		wantReferrers(t, w.registry(Options{}), "signature")
	})
}

func TestAFailureIsNoListOfReferrers(t *testing.T) {
	for code, tags := range map[int]int{403: 1, 429: 0, 500: 3} {
		inWorld(t, func(t *testing.T, w *world) {
			w.host("reg.test:443", status(code))
			got, err := w.registry(Options{}).Referrers(t.Context(), "a", imageDigest)
			if err == nil || oci.IsAbsent(err) || errors.Is(err, oci.ErrUnconfirmed) {
				t.Errorf("%d: got %v, %v; want a failure", code, got, err)
			}
			w.wantCount("GET reg.test/v2/a/manifests/", tags)
		})
	}
}

func TestReferrersAreUnconfirmedIfOnlyTheTagShowsThatThereAreNone(t *testing.T) {
	for code, want := range map[int]bool{200: true, 204: true, 400: true, 401: true, 403: true, 406: true, 410: true, 404: false, 501: false, 500: false, 503: false} {
		inWorld(t, func(t *testing.T, w *world) {
			w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
				if strings.Contains(req.URL.Path, "/referrers/") {
					rw.WriteHeader(code)
				} else {
					status(http.StatusNotFound)(rw, req)
				}
			})
			got, err := w.registry(Options{}).Referrers(t.Context(), "a", imageDigest)
			if errors.Is(err, oci.ErrUnconfirmed) != want || len(got) > 0 {
				t.Errorf("%d: got %v, %v", code, got, err)
			}
		})
	}
}

// A later page on the host that the list was redirected to gets no token of the registry's.
func TestLaterPagesTakeNoTokenToAnotherHost(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		auth := &tokenServer{realm: "https://reg.test/token", service: "reg"}
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/token" {
				auth.serve(rw, req)
				return
			}
			auth.guard(redirectTo("https://region.test/v2/mirror/a/tags/list"))(rw, req)
		})
		w.host("region.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Authorization") != "" {
				t.Error("the token went to another host")
			}
			servePages(map[string]page{"": {`{"tags":["a"]}`, `</v2/mirror/a/tags/list?last=a>; rel="next"`}, "last=a": {`{"tags":["b"]}`, ``}})(rw, req)
		})
		got, err := w.registry(Options{}).Tags(t.Context(), "a")
		if want := []string{"a", "b"}; err != nil || !slices.Equal(got, want) {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
		w.wantCount("GET region.test", 2)
	})
}

// Lists that are being read take the memory that there is for them, and give it back.
func TestMemoryForListsIsBoundedWhileTheyAreRead(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const most = 1 << 20
		tags := `{"tags":["` + strings.Join(slices.Repeat([]string{strings.Repeat("a", 100)}, 20_000), `","`) + `"]}`
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			if strings.Contains(req.URL.Path, "/large/") {
				_, _ = io.WriteString(rw, tags)
				return
			}
			_, _ = io.WriteString(rw, `{"manifest":{"x":"`+strings.Repeat("y", most/4)+`"},"tags":["a"]}`)
		})
		memory := semaphore.NewWeighted(most)
		r := w.registry(Options{Memory: memory})
		_, err := r.Tags(t.Context(), "large")
		wantError(t, err, oci.CodeUnavailable, 503, "limits.manifests")
		if got, err := r.Tags(t.Context(), "small"); err != nil || len(got) != 1 {
			t.Errorf("got %q, %v", got, err)
		}
		if !memory.TryAcquire(most) {
			t.Error("not all of the memory is free again")
		}
	})
}

// Lists are compressed on the way although they should not be.
func TestCompressedListsAreRead(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Encoding", "x-gzip")
			z := gzip.NewWriter(rw)
			_, _ = io.WriteString(z, `{"tags":["a"]}`)
			_ = z.Close()
		})
		if got, err := w.registry(Options{}).Tags(t.Context(), "a"); err != nil || !slices.Equal(got, []string{"a"}) {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

func TestReferrersTagIsThatOfTheSpec(t *testing.T) {
	for d, want := range map[digest.Digest]string{
		"sha256:" + digest.Digest(strings.Repeat("a", 64)):       "sha256-" + strings.Repeat("a", 64),
		"sha512:" + digest.Digest(strings.Repeat("b", 128)):      "sha512-" + strings.Repeat("b", 64),
		"test+algorithm+using+algorithm+separators+and+lots:x=y": "test-algorithm-using-algorithm-s-x-y",
	} {
		if got := referrersTag(d); got != want {
			t.Errorf("referrersTag(%s) = %s, want %s", d, got, want)
		}
	}
}
