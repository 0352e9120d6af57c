package upstream

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/oci"
)

// serve answers with body, under the given header lines "Name: value".
func serve(body string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		w.Header()["Content-Type"] = nil // none, unless it is given
		for _, h := range header {
			k, v, _ := strings.Cut(h, ": ")
			w.Header().Set(k, v)
		}
		if req.Method != http.MethodHead {
			_, _ = io.WriteString(w, body)
		}
	}
}

func TestMediaTypeIsThatOfTheBodyOrTheDeclaredOne(t *testing.T) {
	const (
		index     = "application/vnd.oci.image.index.v1+json"
		dockerImg = "application/vnd.docker.distribution.manifest.v2+json"
	)
	for _, c := range []struct{ contentType, body, want string }{
		{ociImage, `{"config":{}}`, ociImage},
		{ociImage + "; charset=utf-8", `{"config":{}}`, ociImage},
		{dockerImg, `{"mediaType":"` + ociImage + `"}`, ociImage},
		{"application/vnd.acme.thing.v1+json", `{"config":{}}`, ociImage},
		{ociImage, `{"mediaType":"text/html","config":{}}`, ociImage},
		{"application/json", `{"mediaType":"` + dockerImg + `"}`, dockerImg},
		{"", `{"mediaType":"` + index + `"}`, index},
		{"", `{"schemaVersion":2,"manifests":[]}`, index},
		{"text/plain", `{"schemaVersion":2,"layers":[],"config":{}}`, ociImage},
		{"application/octet-stream", `{"config":{}}`, ociImage},
		{";;;", `{"config":{}}`, ociImage},
	} {
		inWorld(t, func(t *testing.T, w *world) {
			w.host("reg.test:443", serve(c.body, "Content-Type: "+c.contentType))
			m, err := w.registry(Options{}).Manifest(t.Context(), "a", "latest")
			if err != nil {
				t.Fatalf("%q %s: %v", c.contentType, c.body, err)
			}
			if m.MediaType != c.want || string(m.Bytes) != c.body || m.Digest != digest.FromString(c.body) {
				t.Errorf("%q %s: got %s %s %q, want %s", c.contentType, c.body, m.MediaType, m.Digest, m.Bytes, c.want)
			}
		})
	}
}

func TestWhatIsNoManifestIsAFailure(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"a login page": serve("<html>Log in</html>", "Content-Type: text/html"),
		"nothing":      serve(""),
		"no object":    serve("[]", "Content-Type: "+ociImage),
		"no manifest":  serve(`{"a":1}`, "Content-Type: application/json"),
		"another type": serve(`{"a":1}`, "Content-Type: application/vnd.acme.thing.v1+json"),
		"two in one":   serve(`{"config":{},"manifests":[]}`, "Content-Type: "+ociImage),
		"broken gzip":  serve("\x1f\x8b"+image, "Content-Type: "+ociImage, "Content-Encoding: gzip"),
		"204":          status(204),
		"too large":    serve(image+strings.Repeat(" ", oci.MaxManifestSize), "Content-Type: "+ociImage),
		"too large, as it says": serve(image+strings.Repeat(" ", oci.MaxManifestSize), "Content-Type: "+ociImage,
			fmt.Sprintf("Content-Length: %d", oci.MaxManifestSize+len(image))),
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("reg.test:443", h)
				_, err := w.registry(Options{}).Manifest(t.Context(), "a", "latest")
				code := oci.CodeUnavailable
				if strings.HasPrefix(name, "too large") {
					code = oci.CodeManifestInvalid
				}
				wantError(t, err, code, 502, "reg.test")
				if !oci.IsTransient(err) {
					t.Errorf("%v is told as the upstream's word", err)
				}
			})
		})
	}
}

// pack compresses s.
func pack(s string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = io.WriteString(z, s)
	_ = z.Close()
	return b.String()
}

func TestTheGzipOfAProxyIsUndone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", serve(pack(image), "Content-Type: "+ociImage, "Content-Encoding: gzip", "Docker-Content-Digest: "+imageDigest.String()))
		wantManifest(t, w.registry(Options{}), "a")
	})
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", serve(pack(strings.Repeat(" ", 100<<20)), "Content-Type: "+ociImage, "Content-Encoding: gzip"))
		_, err := w.registry(Options{}).Manifest(t.Context(), "a", "latest")
		wantError(t, err, oci.CodeManifestInvalid, 502, "more than")
	})
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", serve(image, "Content-Type: "+ociImage, "Content-Encoding: gzip")) // it only says so
		wantManifest(t, w.registry(Options{}), "a")
	})
}

func TestTheLargestManifestIsTaken(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		body := image + strings.Repeat(" ", oci.MaxManifestSize-len(image))
		w.host("reg.test:443", serve(body, "Content-Type: "+ociImage))
		m, err := w.registry(Options{}).Manifest(t.Context(), "a", digest.FromString(body).String())
		if err != nil || len(m.Bytes) != oci.MaxManifestSize {
			t.Fatalf("got %v, %v", m.Descriptor(), err)
		}
	})
}

// Clients don't look at the header of a tag's answer. So if the same bytes come again, they
// are what the tag stands for, unless the upstream has a manifest of the digest that it named.
func TestAManifestThatComesTwiceIsBelievedMoreThanItsHeader(t *testing.T) {
	wrong := image + " "
	for name, c := range map[string]struct {
		tag, byDigest string // what is sent for these; "" for 404
		want          string // "" for an error
	}{
		"the header is wrong":          {tag: wrong, want: wrong},
		"the bytes are wrong":          {tag: wrong, byDigest: image, want: image},
		"the bytes are always wrong":   {tag: wrong, byDigest: wrong},
		"other bytes, by digest wrong": {tag: wrong, byDigest: image + "  "},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
					body := c.tag
					if strings.Contains(req.URL.Path, "sha256:") {
						body = c.byDigest
					}
					if body == "" {
						rw.Header().Set("Content-Type", "application/json")
						rw.WriteHeader(http.StatusNotFound)
						_, _ = io.WriteString(rw, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`)
						return
					}
					serve(body, "Content-Type: "+ociImage, "Docker-Content-Digest: "+imageDigest.String())(rw, req)
				})
				m, err := w.registry(Options{}).Manifest(t.Context(), "a", "latest")
				if c.want == "" {
					wantError(t, err, oci.CodeUnavailable, 502)
					return
				}
				if err != nil || string(m.Bytes) != c.want || m.Digest != digest.FromString(c.want) {
					t.Errorf("got %+v, %v", m, err)
				}
				w.wantCount("GET reg.test", 3)
			})
		})
	}
	inWorld(t, func(t *testing.T, w *world) {
		n := 0
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			n++ // other bytes each time
			serve(image+strings.Repeat(" ", n), "Content-Type: "+ociImage, "Docker-Content-Digest: "+digest.FromString("other").String())(rw, req)
		})
		_, err := w.registry(Options{}).Manifest(t.Context(), "a", "latest")
		wantError(t, err, oci.CodeUnavailable, 502)
	})
}

func TestManifestWithAnotherDigestIsAFailure(t *testing.T) {
	other := digest.FromString("other")
	for name, c := range map[string]struct{ ref, header string }{
		"than asked for":      {other.String(), ""},
		"than asked, claimed": {other.String(), other.String()},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("first.test:443", serve(image, "Content-Type: "+ociImage, "Docker-Content-Digest: "+c.header))
				r := two(w)
				_, err := r.Manifest(t.Context(), "a", c.ref)
				wantError(t, err, oci.CodeUnavailable, 502)
				if got := value(t, w.metrics.DigestMismatches, "reg"); got != 1 {
					t.Errorf("%v mismatches counted, want 1", got)
				}
				w.wantCount("GET first.test", 1)
				time.Sleep(afterRefusal - time.Minute) // the tries took some time too
				if !r.endpoints[0].resting() {
					t.Error("the endpoint is not passed over for long")
				}
			})
		})
	}
}

func TestDigestsOfSHA512AreComputedByIt(t *testing.T) {
	want := digest.SHA512.FromString(image)
	for _, ref := range []string{want.String(), "latest"} {
		inWorld(t, func(t *testing.T, w *world) {
			w.host("reg.test:443", serve(image, "Content-Type: "+ociImage, "Docker-Content-Digest: "+want.String()))
			m, err := w.registry(Options{}).Manifest(t.Context(), "a", ref)
			if err != nil || m.Digest != want {
				t.Fatalf("%s: got %+v, %v; want %s", ref, m, err, want)
			}
		})
	}
}

func TestSchema1IsRefusedInWords(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"by Content-Type":  serve("{}", "Content-Type: "+oci.MediaTypeDockerSchema1Signed),
		"by schemaVersion": serve(`{"schemaVersion":1,"fsLayers":[],"signatures":[]}`, "Content-Type: application/json"),
		"by its layers":    serve(`{"schemaVersion":1,"fsLayers":[]}`),
	} {
		inWorld(t, func(t *testing.T, w *world) {
			w.host("reg.test:443", h)
			_, err := w.registry(Options{}).Manifest(t.Context(), "a", "latest")
			if e := wantError(t, err, oci.CodeUnsupported, 400, "reg/a:latest", "schema 1"); t.Failed() {
				t.Log(name, e)
			}
			w.wantCount("GET ", 1)
		})
	}
}

func TestManifestsAreAskedForByEveryKnownType(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
			accept := strings.Join(req.Header.Values("Accept"), ",")
			for _, want := range []string{"application/vnd.oci.image.index.v1+json", ociImage, oci.MediaTypeDockerManifestList, oci.MediaTypeDockerManifest} {
				if !strings.Contains(accept, want) {
					t.Errorf("%s: Accept %q lacks %s", req.Method, accept, want)
				}
			}
			if strings.Contains(accept, "v1+prettyjws") {
				t.Errorf("Accept %q asks for schema 1", accept)
			}
			serveImage(rw, req)
		})
		r := w.registry(Options{})
		wantManifest(t, r, "a")
		if _, err := r.Resolve(t.Context(), "a", "latest"); err != nil {
			t.Error(err)
		}
	})
}

func TestResolveNeverGets(t *testing.T) {
	d := imageDigest.String()
	for name, c := range map[string]struct {
		h      http.HandlerFunc
		ref    string
		digest digest.Digest
		size   int64
		code   oci.Code
		status int
	}{
		"all said":                   {h: serveImage, ref: "latest", digest: imageDigest, size: int64(len(image))},
		"no digest":                  {h: serve("", "Content-Type: "+ociImage, "Content-Length: 7"), ref: "latest", size: 7},
		"no digest, but asked by it": {h: serve("", "Content-Length: 7"), ref: d, digest: imageDigest, size: 7},
		"a digest that is none":      {h: serve("", "Docker-Content-Digest: sha256:x"), ref: "latest", size: -1},
		"HEAD is not known":          {h: status(405), ref: "latest", code: oci.CodeUnavailable, status: 502},
		"a digest of sha384":         {h: serve("", "Content-Length: 7", "Docker-Content-Digest: "+digest.SHA384.FromString("").String()), ref: "latest", size: 7},
		"not there":                  {h: status(404), ref: "latest", code: oci.CodeManifestUnknown, status: 404},
		"refused":                    {h: status(403), ref: "latest", code: oci.CodeDenied, status: 403},
		"limited":                    {h: status(429), ref: "latest", code: oci.CodeTooManyRequests, status: 429},
		"broken":                     {h: status(500), ref: "latest", code: oci.CodeUnavailable, status: 502},
		"schema 1":                   {h: serve("", "Content-Type: "+oci.MediaTypeDockerSchema1), ref: "latest", code: oci.CodeUnsupported, status: 400},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("reg.test:443", c.h)
				got, err := w.registry(Options{}).Resolve(t.Context(), "a", c.ref)
				w.wantCount("GET reg.test/v2/a/", 0)
				if c.code != "" {
					wantError(t, err, c.code, c.status)
					if hint := c.status != 429 && c.code != oci.CodeUnsupported; oci.IsHint(err) != hint {
						t.Errorf("a GET may contradict it: got %v, want %v", !hint, hint)
					}
					return
				}
				if err != nil || got.Digest != c.digest || got.Size != c.size {
					t.Errorf("got %+v, %v; want %s of %d bytes", got, err, c.digest, c.size)
				}
			})
		})
	}
}

func TestResolveGivesOnlyTheMediaTypeOfAManifest(t *testing.T) {
	for _, c := range []struct{ contentType, want string }{
		{ociImage, ociImage},
		{ociImage + "; charset=utf-8", ociImage},
		{"application/json", ""},
		{"text/plain; charset=utf-8", ""},
		{"application/octet-stream", ""},
		{"", ""},
	} {
		inWorld(t, func(t *testing.T, w *world) {
			w.host("reg.test:443", serve("", "Content-Type: "+c.contentType, "Content-Length: 7", "Docker-Content-Digest: "+imageDigest.String()))
			d, err := w.registry(Options{}).Resolve(t.Context(), "a", "latest")
			if err != nil || d.MediaType != c.want {
				t.Errorf("Content-Type %q: got %q, %v; want %q", c.contentType, d.MediaType, err, c.want)
			}
		})
	}
}

// unended answers in chunks and leaves out the last one, which ends the body.
func unended(body string, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer c.Close()
		headers := slices.Concat(headers, []string{"Transfer-Encoding: chunked"})
		_, _ = fmt.Fprintf(rw, "HTTP/1.1 200 OK\r\n%s\r\n\r\n%x\r\n%s\r\n", strings.Join(headers, "\r\n"), len(body), body)
		_ = rw.Flush()
	}
}

// A body whose end is missing is accepted if its digest shows that all bytes came.
func TestAManifestOfWhichOnlyTheEndOfTheBodyIsMissingIsComplete(t *testing.T) {
	declared := []string{"Content-Type: " + ociImage, "Docker-Content-Digest: " + imageDigest.String()}
	for name, c := range map[string]struct {
		ref  string
		h    http.HandlerFunc
		want bool
	}{
		"by digest":                   {imageDigest.String(), unended(image, declared[0]), true},
		"by tag":                      {"latest", unended(image, declared...), true},
		"compressed":                  {"latest", unended(pack(image), append(declared, "Content-Encoding: gzip")...), true},
		"by tag, and no digest given": {"latest", unended(image, declared[0]), false},
		"a part, by digest":           {imageDigest.String(), unended(image[:20], declared[0]), false},
		"a part, by tag":              {"latest", unended(image[:20], declared...), false},
		"a part, compressed":          {"latest", unended(pack(image)[:30], append(declared, "Content-Encoding: gzip")...), false},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("reg.test:443", c.h)
				r := w.registry(Options{})
				m, err := r.Manifest(t.Context(), "a", c.ref)
				switch {
				case c.want && (err != nil || string(m.Bytes) != image):
					t.Errorf("got %v, %v; want the manifest", m, err)
				case !c.want:
					wantError(t, err, oci.CodeUnavailable, 502, "broke off")
					if r.endpoints[0].resting() && value(t, w.metrics.DigestMismatches, "reg") != 0 {
						t.Error("what broke off counts as wrong bytes")
					}
				}
			})
		})
	}
}
