package e2e

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// oddRegistry is a small registry with one image, for habits of a single answer. It answers
// once ready is closed; until then a test may set it up.
type oddRegistry struct {
	*httptest.Server
	image     *image.Image
	manifests map[string]image.Manifest // by tag and digest
	blobs     map[string][]byte
	// answers answers a request if it returns true; else the registry does.
	answers oddAnswer
	// config is what stands in the configuration of the upstream beside the endpoint.
	config string

	ready chan struct{}
	mu    sync.Mutex
	times map[string]int
}

type oddAnswer func(o *oddRegistry, w http.ResponseWriter, r *http.Request) bool

const oddRepository = "team/app"

func newOddRegistry(t *testing.T, seed uint64, answers oddAnswer) *oddRegistry {
	o := &oddRegistry{image: image.New(image.Options{Seed: seed, Layers: []image.Layer{{Size: 200_000}, {Size: 1000}}}), answers: answers,
		manifests: map[string]image.Manifest{}, blobs: map[string][]byte{}, times: map[string]int{}, ready: make(chan struct{})}
	for d, m := range o.image.Manifests {
		o.manifests[d.String()], o.manifests["1.0"] = m, m
	}
	for d, b := range o.image.Blobs {
		o.blobs[d.String()] = b
	}
	o.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-o.ready
		if o.answers == nil || !o.answers(o, w, r) {
			o.serve(w, r)
		}
	}))
	o.Config.ErrorLog = log.New(io.Discard, "", 0)
	o.Start()
	t.Cleanup(o.Close)
	return o
}

// count returns how often it has been called with key.
func (o *oddRegistry) count(key string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.times[key]++
	return o.times[key]
}

// reference returns the last part of a path.
func reference(r *http.Request) string {
	return r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
}

func isOf(r *http.Request, kind string) bool { return strings.Contains(r.URL.Path, "/"+kind+"/") }

// sends answers with JSON.
func sends(w http.ResponseWriter, status int, body string) bool {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
	return true
}

func (o *oddRegistry) serve(w http.ResponseWriter, r *http.Request) {
	m, isManifest := o.manifests[reference(r)]
	b, isBlob := o.blobs[reference(r)]
	switch {
	case isOf(r, "manifests") && isManifest:
		w.Header().Set("Content-Type", m.MediaType)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(m.Bytes).String())
		w.Header().Set("Content-Length", strconv.Itoa(len(m.Bytes)))
		_, _ = w.Write(m.Bytes)
	case isOf(r, "blobs") && isBlob:
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	case isOf(r, "tags"):
		sends(w, 200, `{"name":"app","tags":["1.0"]}`)
	case r.URL.Path == "/v2/":
		sends(w, 200, "{}")
	default:
		sends(w, 404, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}`)
	}
}

// changed is a ResponseWriter whose status and header change changes.
type changed struct {
	http.ResponseWriter
	change func(status int, h http.Header) int
	begun  bool
}

func (c *changed) WriteHeader(status int) {
	c.begun = true
	c.ResponseWriter.WriteHeader(c.change(status, c.Header()))
}

func (c *changed) Write(b []byte) (int, error) {
	if !c.begun {
		c.WriteHeader(http.StatusOK)
	}
	return c.ResponseWriter.Write(b)
}

// changing changes the answers to requests of a kind, "manifests" or "blobs".
func changing(kind string, change func(r *http.Request, status int, h http.Header) int) oddAnswer {
	return func(o *oddRegistry, w http.ResponseWriter, r *http.Request) bool {
		if !isOf(r, kind) {
			return false
		}
		o.serve(&changed{ResponseWriter: w, change: func(status int, h http.Header) int { return change(r, status, h) }}, r)
		return true
	}
}

// firstTo answers the first GET of a kind with status.
func firstTo(kind string, status int) oddAnswer {
	return func(o *oddRegistry, w http.ResponseWriter, r *http.Request) bool {
		if !isOf(r, kind) || r.Method != http.MethodGet || o.count(kind) > 1 {
			return false
		}
		w.WriteHeader(status)
		return true
	}
}

// oddHabits are answers that docker, containerd, podman or crane get along with.
func oddHabits(t *testing.T) map[string]*oddRegistry {
	all := map[string]*oddRegistry{}
	seed := uint64(0)
	add := func(name string, a oddAnswer) *oddRegistry {
		seed++
		all[name] = newOddRegistry(t, seed, a)
		return all[name]
	}
	for _, status := range []int{201, 203, 206} {
		for _, kind := range []string{"manifests", "blobs", "tags"} {
			if status == 206 && kind == "tags" {
				continue
			}
			add(fmt.Sprintf("%d for %s", status, kind), changing(kind, func(r *http.Request, was int, _ http.Header) int {
				if was == http.StatusOK && r.Header.Get("Range") == "" {
					return status
				}
				return was
			}))
		}
	}
	for _, status := range []int{408, 425, 499, 522} {
		for _, kind := range []string{"manifests", "blobs", "tags"} {
			add(fmt.Sprintf("%d at first for %s", status, kind), firstTo(kind, status))
		}
	}
	other := digest.FromString("other").String()
	for name, applies := range map[string]func(*http.Request) bool{
		"everywhere":  func(*http.Request) bool { return true },
		"in HEADs":    func(r *http.Request) bool { return r.Method == http.MethodHead },
		"by tag only": func(r *http.Request) bool { return reference(r) == "1.0" },
	} {
		add("wrong digest header "+name, changing("manifests", func(r *http.Request, status int, h http.Header) int {
			if applies(r) {
				h.Set("Docker-Content-Digest", other)
			}
			return status
		}))
	}
	// The store, to which blobs are redirected, fails once: a fresh redirect works.
	for _, status := range []int{400, 401, 403, 404, 408, 410, 429, 503} {
		for _, kind := range []string{"blobs", "manifests"} {
			if status == 404 && kind == "manifests" {
				continue // a manifest's store is taken at its word about that
			}
			o := add(fmt.Sprintf("the store answers %d at first for %s", status, kind), nil)
			store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !firstTo(kind, status)(o, w, r) {
					o.serve(w, r)
				}
			}))
			t.Cleanup(store.Close)
			o.config = fmt.Sprintf("redirect_hosts: [%q]", store.Listener.Addr())
			o.answers = func(_ *oddRegistry, w http.ResponseWriter, r *http.Request) bool {
				if isOf(r, kind) {
					http.Redirect(w, r, store.URL+r.URL.Path, http.StatusTemporaryRedirect)
				}
				return isOf(r, kind)
			}
		}
	}
	// A mirror in front fails in its own way: the registry behind it is asked.
	for _, status := range []int{400, 401, 403, 405, 408, 410, 429, 500, 503} {
		o := add(fmt.Sprintf("a mirror in front answers %d", status), nil)
		mirror := newOddRegistry(t, 0, func(_ *oddRegistry, w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(status)
			return true
		})
		close(mirror.ready)
		o.config = fmt.Sprintf("endpoints: [%q, %q]", mirror.URL, o.URL)
	}
	token := func(name string, server func(o *oddRegistry, w http.ResponseWriter, r *http.Request) bool) {
		o := add("token server "+name, func(o *oddRegistry, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/token" {
				return server(o, w, r) || sends(w, 200, `{"token":"good"}`)
			}
			if r.Header.Get("Authorization") == "Bearer good" {
				return false
			}
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="x",scope="repository:%s:pull"`, o.URL, oddRepository))
			return sends(w, 401, `{"errors":[{"code":"UNAUTHORIZED"}]}`)
		})
		o.config = "credentials: {username: alice, password: s3cret-pass}"
	}
	for _, status := range []int{404, 405, 501} {
		token(fmt.Sprintf("answers %d to GET and takes the password by POST", status), func(_ *oddRegistry, w http.ResponseWriter, r *http.Request) bool {
			good := r.Method == http.MethodPost && r.PostFormValue("grant_type") == "password" &&
				r.PostFormValue("username") == "alice" && r.PostFormValue("password") == "s3cret-pass"
			return !good && sends(w, status, "{}")
		})
	}
	for _, status := range []int{408, 500, 504} {
		token(fmt.Sprintf("answers %d at first", status), func(o *oddRegistry, w http.ResponseWriter, r *http.Request) bool {
			return o.count("token") == 1 && sends(w, status, "")
		})
	}
	token("sends more than JSON", func(_ *oddRegistry, w http.ResponseWriter, _ *http.Request) bool {
		return sends(w, 200, `{"token":"good"} trailing`)
	})
	list := "/v2/" + oddRepository + "/tags/list?last=0"
	for _, link := range []string{"<" + list + ">; rel='next'", "<" + list + `>; rel="http://api.example/next"`, "<" + list + ">; rel=nextPage"} {
		add("Link: "+link, func(_ *oddRegistry, w http.ResponseWriter, r *http.Request) bool {
			if !isOf(r, "tags") || r.URL.RawQuery != "" {
				return false
			}
			w.Header().Set("Link", link)
			return sends(w, 200, `{"name":"app","tags":["0"]}`)
		})
	}
	add("a list that something follows", func(_ *oddRegistry, w http.ResponseWriter, r *http.Request) bool {
		return isOf(r, "tags") && sends(w, 200, `{"name":"app","tags":["1.0"]}`+"\n\x00\n")
	})
	return all
}

// Answers with which docker, containerd, podman or crane get along are pulled through, by
// HEAD or without one, and again when the tag is checked.
func TestOddAnswersArePulledThrough(t *testing.T) {
	t.Parallel()
	habits := oddHabits(t)
	names, config := map[string]string{}, "upstreams:\n"
	for habit, o := range habits {
		names[habit] = fmt.Sprintf("odd%d.test", len(names))
		if !strings.Contains(o.config, "endpoints") {
			o.config = fmt.Sprintf("endpoints: [%q], %s", o.URL, o.config)
		}
		close(o.ready)
		config += "  " + names[habit] + `: {tags: [{match: "*", ttl: 0s}], ` + strings.TrimSuffix(o.config, ", ") + "}\n"
	}
	p := proxy.Start(t, proxy.Options{Config: config})
	for habit, o := range habits {
		t.Run(habit, func(t *testing.T) {
			path := "/v2/" + names[habit] + "/" + oddRepository + "/"
			for range 2 {
				a := get(t, p, path+"manifests/1.0", "Accept", anything)
				wantBytes(t, "manifest", o.image.Bytes(), a.body)
				a.wantHeader(t, "Docker-Content-Digest", o.image.Digest.String(), "Content-Type", o.image.MediaType(), "Warning", "")
			}
			get(t, p, path+"manifests/"+o.image.Digest.String(), "Accept", anything)
			for d, b := range o.image.Blobs {
				wantBytes(t, "blob", b, get(t, p, path+"blobs/"+d.String()).body)
			}
			if tags := tagsIn(t, get(t, p, path+"tags/list")); len(tags) == 0 || tags[len(tags)-1] != "1.0" {
				t.Errorf("want the tags up to 1.0, got %q", tags)
			}
		})
	}
}

// A limit, a refusal or a compression that only parts of blobs meet is due to our asking
// for parts: the client gets the whole, and nobody is held off.
func TestNothingThatOnlyPartsMeetReachesClients(t *testing.T) {
	t.Parallel()
	content := randomBytes("parts", 20<<20)
	d := digest.FromBytes(content).String()
	small := digest.FromString("small").String()
	answers := map[string]func(w http.ResponseWriter, r *http.Request){
		"gzip": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write([]byte(zipped(bytes.NewReader(content))))
		},
		"a redirect without a target": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusFound) },
	}
	for _, status := range []int{401, 429, 451} {
		answers[fmt.Sprint(status)] = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOddRegistry(t, 1, func(_ *oddRegistry, w http.ResponseWriter, r *http.Request) bool {
				if r.Header.Get("Range") == "" {
					return false
				}
				answer(w, r)
				return true
			})
			o.blobs[d], o.blobs[small] = content, []byte("small")
			m := []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"a/b","digest":%q,"size":5},"layers":[{"mediaType":"a/b","digest":%q,"size":%d}]}`,
				v1.MediaTypeImageManifest, small, d, len(content)))
			o.manifests["1.0"] = image.Manifest{MediaType: v1.MediaTypeImageManifest, Bytes: m}
			close(o.ready)
			p := proxy.Start(t, proxy.Options{Config: fmt.Sprintf("upstreams: {odd.test: {endpoints: [%q]}}", o.URL)})
			const path = "/v2/odd.test/" + oddRepository + "/"
			get(t, p, path+"manifests/1.0", "Accept", anything)
			wantBytes(t, "blob", content, get(t, p, path+"blobs/"+d).body)
			wantBytes(t, "small blob", []byte("small"), get(t, p, path+"blobs/"+small).body)
		})
	}
}

// A size that no layer can have is not believed, and an error is read though it was
// compressed on the way.
func TestSizesThatCannotBeAreNotBelieved(t *testing.T) {
	t.Parallel()
	o := newOddRegistry(t, 1, func(_ *oddRegistry, w http.ResponseWriter, r *http.Request) bool {
		if reference(r) != "none" {
			return false
		}
		w.Header().Set("Content-Encoding", "gzip")
		return sends(w, 404, zipped(strings.NewReader(`{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}`)))
	})
	layers := map[string][]byte{}
	for n, size := range []string{"0", "null", "1125899906842624", "9223372036854775807"} {
		b := randomBytes(size, 10_000+n)
		d := digest.FromBytes(b).String()
		tag := fmt.Sprint(n)
		layers[tag], o.blobs[d] = b, b
		o.manifests[tag] = image.Manifest{MediaType: v1.MediaTypeImageManifest, Bytes: []byte(fmt.Sprintf(
			`{"schemaVersion":2,"mediaType":%q,"layers":[{"mediaType":"a/b","digest":%q,"size":%s}]}`, v1.MediaTypeImageManifest, d, size))}
	}
	close(o.ready)
	p := proxy.Start(t, proxy.Options{Config: fmt.Sprintf("upstreams: {odd.test: {endpoints: [%q]}}", o.URL)})
	const path = "/v2/odd.test/" + oddRepository + "/"
	for tag, b := range layers {
		get(t, p, path+"manifests/"+tag, "Accept", anything)
		blob := path + "blobs/" + digest.FromBytes(b).String()
		ask(t, p, http.MethodHead, blob).wantHeader(t, "Content-Length", strconv.Itoa(len(b)))
		wantBytes(t, "layer", b, get(t, p, blob).body)
	}
	ask(t, p, http.MethodGet, path+"manifests/none").wantError(t, 404, "MANIFEST_UNKNOWN")
}
