package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/proxy"
	"github.com/entrepot-dev/entrepot/oci"
)

// credulous is a registry that takes every manifest and checks nothing of what it
// names. Whoever reaches it may do everything.
type credulous struct {
	mu      sync.Mutex
	content map[string][]byte // by repository, kind and reference
	types   map[string]string
}

func (c *credulous) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := regexp.MustCompile(`^/v2/(.+)/(manifests|blobs)/([^/]+)/?$`).FindStringSubmatch(r.URL.Path)
	switch {
	case r.URL.Path == "/v2/":
		return
	case parts == nil:
		http.NotFound(w, r)
		return
	}
	repo, kind, ref := parts[1], parts[2], parts[3]
	key := func(ref string) string { return repo + " " + kind + " " + ref }
	switch r.Method {
	case http.MethodPost: // of an upload, which one PUT completes
		w.Header().Set("Location", "/v2/"+repo+"/blobs/uploads")
		w.WriteHeader(http.StatusAccepted)
	case http.MethodPut:
		b, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		d := digest.FromBytes(b).String()
		c.mu.Lock()
		c.content[key(d)], c.content[key(ref)] = b, b
		c.types[key(d)] = r.Header.Get("Content-Type")
		c.mu.Unlock()
		w.WriteHeader(http.StatusCreated)
	default:
		// A body may be held: no other request waits for it.
		c.mu.Lock()
		b, ok := c.content[key(ref)]
		contentType := c.types[key(digest.FromBytes(b).String())]
		c.mu.Unlock()
		if !ok {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprintf(w, `{"errors":[{"code":"%s_UNKNOWN","message":"unknown"}]}`, strings.ToUpper(strings.TrimSuffix(kind, "s")))
			return
		}
		d := digest.FromBytes(b).String()
		w.Header().Set("Docker-Content-Digest", d)
		w.Header().Set("Content-Type", contentType)
		if kind == "blobs" {
			w.Header().Set("Content-Type", oci.MediaTypeOctetStream)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}
}

// tenants is a registry for two: acme/ is for A, b/ for both, and the proxy's own
// account may read all.
type tenants struct {
	url string
	// hold, if it is set, is closed for what is sent of blobs of acme/ to go on.
	hold atomic.Pointer[chan struct{}]
}

const passwordOfA, passwordOfB, passwordOfProxy = "password-of-tenant-a", "password-of-tenant-b", "password-of-the-proxy"

// authByPath puts Basic authentication by path in front of a registry, as one would
// with nginx.
func authByPath(t *testing.T, registry http.Handler) *tenants {
	t.Helper()
	return inFrontOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		may := false
		switch {
		case user == "proxy" && password == passwordOfProxy, user == "a" && password == passwordOfA:
			may = true
		case user == "b" && password == passwordOfB:
			may = r.URL.Path == "/v2/" || strings.HasPrefix(r.URL.Path, "/v2/b/")
		}
		if !may {
			w.Header().Set("WWW-Authenticate", `Basic realm="tenants"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		registry.ServeHTTP(w, r)
	}))
}

// inFrontOf serves a registry that knows who may do what, and holds what the tenants' hold
// says.
func inFrontOf(t *testing.T, registry http.Handler) *tenants {
	t.Helper()
	ten := &tenants{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hold := ten.hold.Load(); hold != nil && r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, "/v2/acme/") && strings.Contains(r.URL.Path, "/blobs/") {
			w = &held{ResponseWriter: w, until: *hold, done: r.Context()}
		}
		registry.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	ten.url = s.URL
	return ten
}

// held sends the first bytes of a body, and the rest once until is closed.
type held struct {
	http.ResponseWriter
	until chan struct{}
	done  context.Context
	sent  bool
}

func (h *held) Write(b []byte) (int, error) {
	n := 0
	if !h.sent && len(b) > 1000 {
		h.sent = true
		var err error
		if n, err = h.ResponseWriter.Write(b[:1000]); err != nil {
			return n, err
		}
		h.ResponseWriter.(http.Flusher).Flush()
		select {
		case <-h.until:
		case <-h.done.Done():
			return n, h.done.Err()
		}
	}
	m, err := h.ResponseWriter.Write(b[n:])
	return n + m, err
}

// send sends a request to the registry and returns the status.
func (ten *tenants) send(t *testing.T, user, password, method, path, contentType string, body []byte) (int, http.Header) {
	t.Helper()
	u := path
	if !strings.HasPrefix(path, "http") {
		u = ten.url + path
	}
	req, err := http.NewRequestWithContext(t.Context(), method, u, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(user, password)
	req.Header.Set("Content-Type", contentType)
	res, err := raw.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode, res.Header
}

// pushBlob pushes a blob as clients do.
func (ten *tenants) pushBlob(t *testing.T, user, password, repo string, b []byte) v1.Descriptor {
	t.Helper()
	d := digest.FromBytes(b)
	st, h := ten.send(t, user, password, "POST", "/v2/"+repo+"/blobs/uploads/", "", nil)
	if st != http.StatusAccepted {
		t.Fatalf("begin an upload to %s: %d", repo, st)
	}
	at, err := url.Parse(h.Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	base, _ := url.Parse(ten.url)
	at = base.ResolveReference(at)
	if at.Path == "/v2/"+repo+"/blobs/uploads" { // credulous takes it under its digest
		at.Path = "/v2/" + repo + "/blobs/" + d.String()
	}
	at.Scheme, at.Host = base.Scheme, base.Host
	q := at.Query()
	q.Set("digest", d.String())
	at.RawQuery = q.Encode()
	if st, _ := ten.send(t, user, password, "PUT", at.String(), oci.MediaTypeOctetStream, b); st != http.StatusCreated {
		t.Fatalf("push a blob to %s: %d", repo, st)
	}
	return v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: d, Size: int64(len(b))}
}

func descriptorJSON(d v1.Descriptor) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, d.MediaType, d.Digest, d.Size)
}

// randomBytes are content that compresses to nothing and that nobody else has.
func randomBytes(seed string, n int) []byte {
	var b []byte
	for i := 0; len(b) < n; i++ {
		sum := sha256.Sum256([]byte(seed + strconv.Itoa(i)))
		b = append(b, sum[:]...)
	}
	return b[:n]
}

// secretImage is A's.
type secretImage struct {
	manifest             []byte
	image, config, layer v1.Descriptor
	content              map[digest.Digest][]byte
}

func pushSecret(t *testing.T, ten *tenants) *secretImage {
	t.Helper()
	s := &secretImage{content: map[digest.Digest][]byte{}}
	layer, config := randomBytes("layer of A", 300_000), []byte(`{"architecture":"amd64","os":"linux","config":{"Env":["PASSWORD=hunter2"]}}`)
	s.layer, s.config = ten.pushBlob(t, "a", passwordOfA, "acme/secret", layer), ten.pushBlob(t, "a", passwordOfA, "acme/secret", config)
	s.config.MediaType = v1.MediaTypeImageConfig
	s.manifest = []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, v1.MediaTypeImageManifest, descriptorJSON(s.config), descriptorJSON(s.layer)))
	s.image = v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromBytes(s.manifest), Size: int64(len(s.manifest))}
	s.content[s.layer.Digest], s.content[s.config.Digest], s.content[s.image.Digest] = layer, config, s.manifest
	if st, _ := ten.send(t, "a", passwordOfA, "PUT", "/v2/acme/secret/manifests/1", v1.MediaTypeImageManifest, s.manifest); st != http.StatusCreated {
		t.Fatalf("push the manifest: %d", st)
	}
	return s
}

// disguises are documents by which B names A's content, each with its media type.
func disguises(own, secret v1.Descriptor) map[string][2]string {
	mine, theirs := descriptorJSON(own), descriptorJSON(secret)
	manifest := func(fields string) string {
		return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,%s}`, v1.MediaTypeImageManifest, fields)
	}
	return map[string][2]string{
		"blobs":         {v1.MediaTypeImageManifest, manifest(`"config":` + mine + `,"layers":[` + mine + `],"blobs":[` + theirs + `]`)},
		"layers":        {v1.MediaTypeImageManifest, manifest(`"config":` + mine + `,"layers":[` + theirs + `]`)},
		"config":        {v1.MediaTypeImageManifest, manifest(`"config":` + theirs + `,"layers":[]`)},
		"other-case":    {v1.MediaTypeImageManifest, manifest(`"config":` + mine + `,"LAYERS":[` + theirs + `]`)},
		"twice":         {v1.MediaTypeImageManifest, manifest(`"config":` + mine + `,"layers":[` + mine + `],"layers":[` + theirs + `]`)},
		"twice-first":   {v1.MediaTypeImageManifest, manifest(`"config":` + mine + `,"layers":[` + theirs + `],"layers":[` + mine + `]`)},
		"twice-foreign": {v1.MediaTypeImageManifest, manifest(`"config":` + mine + `,"layers":[{"urls":["https://a.test/x"]}],"layers":[` + theirs + `]`)},
		"docker":        {oci.MediaTypeDockerManifest, strings.Replace(manifest(`"config":`+mine+`,"layers":[`+theirs+`]`), v1.MediaTypeImageManifest, oci.MediaTypeDockerManifest, 1)},
		"index":         {v1.MediaTypeImageIndex, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, v1.MediaTypeImageIndex, theirs)},
		"index-blobs":   {v1.MediaTypeImageIndex, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[],"blobs":[%s]}`, v1.MediaTypeImageIndex, theirs)},
		"docker-list": {oci.MediaTypeDockerManifestList, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, oci.MediaTypeDockerManifestList,
			strings.TrimSuffix(theirs, "}")+`,"platform":{"os":"linux","architecture":"amd64"}}`)},
		"subject":  {v1.MediaTypeImageManifest, manifest(`"config":` + mine + `,"layers":[],"subject":` + theirs)},
		"artifact": {oci.MediaTypeOCIArtifactManifest, fmt.Sprintf(`{"mediaType":%q,"artifactType":"a/t","blobs":[%s]}`, oci.MediaTypeOCIArtifactManifest, theirs)},
	}
}

// registries are those that the tenants share; each is made anew.
func registries() map[string]func(*testing.T) *tenants {
	return map[string]func(*testing.T) *tenants{
		"credulous": func(t *testing.T) *tenants {
			return authByPath(t, &credulous{content: map[string][]byte{}, types: map[string]string{}})
		},
		"CNCF":              func(t *testing.T) *tenants { return authByPath(t, forward(distribution(t))) },
		"CNCF behind nginx": func(t *testing.T) *tenants { return inFrontOf(t, forward(nginx(t, distribution(t)))) },
	}
}

// forward passes requests on to u.
func forward(u *url.URL) http.Handler {
	return &httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(u)
		r.Out.Host = r.In.Host
	}}
}

// distribution starts the CNCF's registry and returns where it listens. The test is skipped
// if it isn't installed and need not be.
func distribution(t *testing.T) *url.URL {
	t.Helper()
	program := installed(t, "registry", "go install github.com/distribution/distribution/v3/cmd/registry@v3.0.0")
	addr := freeAddress(t)
	config := configFile(t, fmt.Sprintf(`version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %q}}
http: {addr: %q}
`, t.TempDir(), addr))
	cmd := exec.Command(program, "serve", config)
	cmd.Env = []string{"OTEL_TRACES_EXPORTER=none"}
	return listening(t, cmd, addr)
}

// nginx starts nginx in front of a registry, with Basic authentication by path, and returns
// where it listens. The test is skipped if it isn't installed and need not be.
func nginx(t *testing.T, registry *url.URL) *url.URL {
	t.Helper()
	program := installed(t, "nginx", "apt-get install nginx-light")
	addr, dir := freeAddress(t), t.TempDir()
	users := func(name string, of ...string) string {
		var list strings.Builder
		for i := 0; i < len(of); i += 2 {
			list.WriteString(of[i] + ":{PLAIN}" + of[i+1] + "\n")
		}
		path := filepath.Join(dir, name)
		// If root starts it, its workers are another user.
		if err := errors.Join(os.WriteFile(path, []byte(list.String()), 0o600), os.Chmod(path, 0o644)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	some := users("some", "proxy", passwordOfProxy, "a", passwordOfA)
	all := users("all", "proxy", passwordOfProxy, "a", passwordOfA, "b", passwordOfB)
	user := ""
	if os.Getuid() == 0 {
		user = "user root;"
	}
	config := configFile(t, fmt.Sprintf(`daemon off;
master_process off;
%[1]s
pid %[2]s/pid;
error_log %[2]s/error.log;
events {}
http {
    access_log off;
    client_max_body_size 0;
    client_body_temp_path %[2]s/body;
    proxy_temp_path %[2]s/proxy;
    fastcgi_temp_path %[2]s/fastcgi;
    uwsgi_temp_path %[2]s/uwsgi;
    scgi_temp_path %[2]s/scgi;
    auth_basic tenants;
    proxy_set_header Host $http_host;
    server {
        listen %[3]s;
        location = /v2/ { auth_basic_user_file %[5]s; proxy_pass %[4]s; }
        location /v2/b/ { auth_basic_user_file %[5]s; proxy_pass %[4]s; }
        location / { auth_basic_user_file %[6]s; proxy_pass %[4]s; }
    }
}
`, user, dir, addr, registry, all, some))
	return listening(t, exec.Command(program, "-c", config, "-p", dir, "-e", filepath.Join(dir, "error.log")), addr)
}

// installed returns the path of a program; the test is skipped if it isn't there and need
// not be. install says how to install it.
func installed(t *testing.T, program, install string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil && os.Getenv("ENTREPOT_REQUIRE_CLIENTS") == "1" {
		t.Fatal(err)
	} else if err != nil {
		t.Skipf("%s isn't installed: %s", program, install)
	}
	return path
}

func configFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// listening starts a server and waits until it listens at addr. It ends with the test.
func listening(t *testing.T, cmd *exec.Cmd, addr string) *url.URL {
	t.Helper()
	var words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &words, &words
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", cmd.Path, words.String())
		}
	})
	u := &url.URL{Scheme: "http", Host: addr}
	until(t, cmd.Path+" to listen", func() bool {
		res, err := raw.Get(u.String() + "/v2/")
		if err == nil {
			res.Body.Close()
		}
		return err == nil
	})
	return u
}

func freeAddress(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(nil)
	defer s.Close()
	return strings.TrimPrefix(s.URL, "http://")
}

// tenantsInFront runs the program in front of the tenants' registry, in one of the two
// ways in which they have different rights, and returns their Authorization headers.
func tenantsInFront(t *testing.T, ten *tenants, way string) (p *proxy.Proxy, a, b string) {
	t.Helper()
	config := fmt.Sprintf(`
upstreams:
  reg.test:
    endpoints: ["%s"]
    tags: [{match: "*", ttl: 1h}]
    access: passthrough
`, ten.url)
	a, b = basic("a", passwordOfA), basic("b", passwordOfB)
	if way == "rules" {
		sum := func(s string) string { h := sha256.Sum256([]byte(s)); return hex.EncodeToString(h[:]) }
		config = fmt.Sprintf(`
upstreams:
  reg.test:
    endpoints: ["%s"]
    tags: [{match: "*", ttl: 1h}]
    credentials: {username: proxy, password: %s}
auth:
  tokens: [{name: a, sha256: %s}, {name: b, sha256: %s}]
access:
  - {name: all for A, who: ["token:a"], upstreams: [reg.test], action: allow}
  - {name: their own for B, who: ["token:b"], upstreams: [reg.test], repositories: ["b/*"], action: allow}
`, ten.url, passwordOfProxy, sum(passwordOfA), sum(passwordOfB))
		a, b = "Bearer "+passwordOfA, "Bearer "+passwordOfB
	}
	return proxy.Start(t, proxy.Options{Config: config}), a, b
}

// wantNoneOf asks for all of A's content below a repository of B in every way.
func wantNoneOf(t *testing.T, p *proxy.Proxy, what, repo, as string, s *secretImage) {
	t.Helper()
	for d := range s.content {
		for _, kind := range []string{"blobs", "manifests"} {
			path := "/v2/reg.test/" + repo + "/" + kind + "/" + d.String()
			for _, q := range [][]string{{"HEAD"}, {"GET"}, {"GET", "Range", "bytes=0-9"}, {"GET", "Range", "bytes=-5"}, {"GET", "If-None-Match", `"` + d.String() + `"`}} {
				a := ask(t, p, q[0], path, append(q[1:], "Authorization", as, "Accept", anything)...)
				if a.status != http.StatusNotFound {
					t.Errorf("%s: want the registry's 404, got %s", what, a)
				}
			}
		}
	}
}

// What B names in a manifest is not B's by that: the registry says what is.
func TestNamingATenantsContentOpensNothing(t *testing.T) {
	t.Parallel()
	for name, registry := range registries() {
		for _, way := range []string{"passthrough", "rules"} {
			t.Run(name+" "+way, func(t *testing.T) {
				t.Parallel()
				ten := registry(t)
				s := pushSecret(t, ten)
				p, a, b := tenantsInFront(t, ten, way)
				pullSecret := func() {
					t.Helper()
					wantBytes(t, "A's manifest", s.manifest, get(t, p, "/v2/reg.test/acme/secret/manifests/1", "Authorization", a, "Accept", anything).body)
					for _, d := range []v1.Descriptor{s.layer, s.config} {
						wantBytes(t, "A's blob", s.content[d.Digest], get(t, p, "/v2/reg.test/acme/secret/blobs/"+d.Digest.String(), "Authorization", a).body)
					}
				}
				pullSecret()
				p.WaitIdle(t)
				pullSecret() // now from memory, too
				taken := 0
				for kind, secret := range map[string]v1.Descriptor{"layer": s.layer, "config": s.config, "manifest": s.image} {
					own := v1.Descriptor{}
					for disguise := range disguises(own, secret) {
						repo := "b/" + disguise + "-" + kind
						own = ten.pushBlob(t, "b", passwordOfB, repo, []byte("{}"))
						doc := disguises(own, secret)[disguise]
						if st, _ := ten.send(t, "b", passwordOfB, "PUT", "/v2/"+repo+"/manifests/1", doc[0], []byte(doc[1])); st != http.StatusCreated {
							continue // the registry checks it
						}
						taken++
						what := kind + " as " + disguise
						_ = get(t, p, "/v2/reg.test/"+repo+"/manifests/1", "Authorization", b, "Accept", anything)
						if x := ask(t, p, "GET", "/v2/reg.test/"+repo+"/manifests/1", "Authorization", b, "Accept", v1.MediaTypeImageManifest); bytes.Contains(x.body, s.manifest) {
							t.Errorf("%s: A's manifest was chosen out of an index", what)
						}
						wantNoneOf(t, p, what, repo, b, s)
					}
				}
				if taken == 0 {
					t.Error("the registry took none of the manifests")
				}
				// What B really has is served, and A's is still A's.
				pullSecret()
				ten.pushBlob(t, "b", passwordOfB, "b/blobs-layer", s.content[s.layer.Digest])
				until(t, "the refusal to be forgotten", func() bool {
					return ask(t, p, "GET", "/v2/reg.test/b/blobs-layer/blobs/"+s.layer.Digest.String(), "Authorization", b).status == http.StatusOK
				})
			})
		}
	}
}

// Nor is it while it is on its way to A.
func TestNamingATenantsContentJoinsNoFill(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"passthrough", "rules"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			ten := registries()["credulous"](t)
			s := pushSecret(t, ten)
			doc := disguises(ten.pushBlob(t, "b", passwordOfB, "b/x", []byte("{}")), s.layer)["layers"]
			if st, _ := ten.send(t, "b", passwordOfB, "PUT", "/v2/b/x/manifests/1", doc[0], []byte(doc[1])); st != http.StatusCreated {
				t.Fatal(st)
			}
			p, a, b := tenantsInFront(t, ten, way)
			goOn := make(chan struct{})
			ten.hold.Store(&goOn)
			pulled := make(chan answer)
			go func() {
				res, err := open(t.Context(), p, "GET", "/v2/reg.test/acme/secret/blobs/"+s.layer.Digest.String(), "Authorization", a)
				x := answer{err: err}
				if err == nil {
					x.body, x.err = readAndClose(res.Body, nil)
				}
				pulled <- x
			}()
			until(t, "the fill to run", func() bool { return p.Metrics(t).Sum("entrepot_fills_in_flight") > 0 })
			_ = get(t, p, "/v2/reg.test/b/x/manifests/1", "Authorization", b, "Accept", anything)
			wantNoneOf(t, p, "while A's fill runs", "b/x", b, s)
			close(goOn)
			x := <-pulled
			if x.err != nil {
				t.Fatal(x.err)
			}
			wantBytes(t, "A's layer", s.content[s.layer.Digest], x.body)
			p.WaitIdle(t)
			wantNoneOf(t, p, "after A's fill", "b/x", b, s)
		})
	}
}

// Between upstreams bytes are the only proof.
func TestAnUpstreamThatClaimsToHaveEverythingGetsNothing(t *testing.T) {
	t.Parallel()
	ten := registries()["credulous"](t)
	s := pushSecret(t, ten)
	for name, sends := range map[string]func(content []byte) []byte{
		"HEAD 200":              func([]byte) []byte { return nil },
		"one right byte":        func(b []byte) []byte { return b[:1] },
		"all but the last byte": func(b []byte) []byte { return b[:len(b)-1] },
		"wrong bytes":           func(b []byte) []byte { return bytes.Repeat([]byte("x"), len(b)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int64
			evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				d := digest.Digest(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
				content := s.content[d]
				if strings.HasSuffix(r.URL.Path, "/manifests/1") { // names A's layer and config
					content = []byte(strings.Replace(string(s.manifest), `"schemaVersion":2`, `"schemaVersion":2 `, 1))
					w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
					_, _ = w.Write(content)
					return
				}
				if content == nil {
					w.WriteHeader(http.StatusNotFound)
					return
				}
				w.Header().Set("Docker-Content-Digest", d.String())
				w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
				w.Header().Set("Content-Length", strconv.Itoa(len(content)))
				if r.Method == http.MethodHead {
					return
				}
				asked.Add(1)
				b := sends(content)
				if b == nil {
					w.Header().Del("Content-Length")
					w.WriteHeader(http.StatusNotFound)
					return
				}
				if from, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
					first, _, _ := strings.Cut(from, "-")
					if at, err := strconv.Atoi(first); err == nil && at < len(content) {
						w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, len(content)-1, len(content)))
						w.Header().Set("Content-Length", strconv.Itoa(len(content)-at))
						w.WriteHeader(http.StatusPartialContent)
						b = b[min(at, len(b)):]
					}
				}
				_, _ = w.Write(b)
			}))
			t.Cleanup(evil.Close)
			p := proxy.Start(t, proxy.Options{Config: fmt.Sprintf(`
upstreams:
  reg.test: {endpoints: ["%s"], access: passthrough, tags: [{match: "*", ttl: 1h}]}
  evil.test: {endpoints: ["%s"]}
`, ten.url, evil.URL)})
			a := basic("a", passwordOfA)
			_ = get(t, p, "/v2/reg.test/acme/secret/manifests/1", "Authorization", a, "Accept", anything)
			for _, d := range []v1.Descriptor{s.layer, s.config} {
				_ = get(t, p, "/v2/reg.test/acme/secret/blobs/"+d.Digest.String(), "Authorization", a)
			}
			p.WaitIdle(t)
			_ = get(t, p, "/v2/evil.test/any/thing/manifests/1", "Accept", anything)
			for d, content := range s.content {
				for _, kind := range []string{"blobs", "manifests"} {
					for _, header := range [][]string{{"Range", "bytes=0-99"}, nil} {
						path := "/v2/evil.test/any/thing/" + kind + "/" + d.String()
						_ = ask(t, p, "HEAD", path)
						x := ask(t, p, "GET", path, header...)
						complete := x.err == nil && (x.status == http.StatusOK || x.status == http.StatusPartialContent)
						// It may be sent what the upstream has sent, and no more.
						if complete && (name != "all but the last byte" || len(x.body) >= len(content)) || bytes.Contains(x.body, content) {
							t.Errorf("%s %s: got %s", path, header, x)
						}
					}
				}
			}
			if asked.Load() == 0 {
				t.Error("the upstream was not asked for the bytes")
			}
			wantBytes(t, "A's layer", s.content[s.layer.Digest], get(t, p, "/v2/reg.test/acme/secret/blobs/"+s.layer.Digest.String(), "Authorization", a).body)
		})
	}
}

// A layer that two upstreams have is fetched from each: clients of one don't wait for
// what trickles from the other.
func TestASlowUpstreamIsNoTroubleToAnothersClients(t *testing.T) {
	t.Parallel()
	layer := randomBytes("a layer that two have", 524_288)
	d := digest.FromBytes(layer)
	end := make(chan struct{})
	var slowly atomic.Bool
	serve := func(slow bool) *httptest.Server {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasSuffix(r.URL.Path, d.String()) {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			w.Header().Set("Docker-Content-Digest", d.String())
			if !slow || r.Method == http.MethodHead {
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(layer))
				return
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(layer)))
			for i := range layer {
				_, _ = w.Write(layer[i : i+1])
				w.(http.Flusher).Flush()
				slowly.Store(true)
				select {
				case <-time.After(5 * time.Second):
				case <-end:
					return
				case <-r.Context().Done():
					return
				}
			}
		}))
		t.Cleanup(s.Close)
		return s
	}
	slow, fast := serve(true), serve(false)
	t.Cleanup(func() { close(end) })
	p := proxy.Start(t, proxy.Options{Config: fmt.Sprintf(`
upstreams:
  slow.test: {endpoints: ["%s"]}
  docker.io: {endpoints: ["%s"]}
`, slow.URL, fast.URL)})
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	res, err := open(ctx, p, "GET", "/v2/slow.test/any/thing/blobs/"+d.String())
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	until(t, "the slow upstream to send", slowly.Load)
	wantBytes(t, "the layer", layer, get(t, p, "/v2/library/thing/blobs/"+d.String()).body)
}
