package upstream

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/entrepot-dev/entrepot/oci"
)

// The tests here use real sockets of the loopback.

func open(t *testing.T, o Options) *Registry {
	t.Helper()
	o.Name = "reg"
	r, err := build(o, nil, noProxy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func listen(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// listenTLS serves 127.0.0.1 with a certificate of issuer.
func listenTLS(t *testing.T, issuer tls.Certificate, c *tls.Config, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	if c == nil {
		c = &tls.Config{}
	}
	c.Certificates = []tls.Certificate{issue(t, issuer, "127.0.0.1")}
	s.TLS = c
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func TestKindsOfAddresses(t *testing.T) {
	for kind, all := range map[addressKind][]string{
		public:    {"8.8.8.8", "1.1.1.1", "2606:4700::1111", "2001:4860:4860::8888", "172.32.0.1", "100.128.0.1", "64:ff9b::808:808"},
		loopback:  {"127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"},
		private:   {"10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd00:ec2::254", "::ffff:10.0.0.1"},
		linkLocal: {"169.254.169.254", "fe80::1", "fe80::1%eth0", "64:ff9b::a9fe:a9fe"},
		shared:    {"100.64.0.1", "100.127.255.255"},
		reserved: {"0.0.0.0", "0.1.2.3", "::", "255.255.255.255", "224.0.0.1", "ff02::1", "240.0.0.1", "198.18.0.1", "::7f00:1", "2002:7f00:1::", "192.0.0.1",
			"192.0.2.1", "192.88.99.1", "198.51.100.1", "203.0.113.1", "::ffff:0:7f00:1", "64:ff9b:1::7f00:1", "100::1", "2001:0:7f00:1::", "2001:db8::1", "fec0::1", "ff05::2"},
	} {
		for _, s := range all {
			if got := kindOf(netip.MustParseAddr(s)); got != kind {
				t.Errorf("%s is of kind %d, want %d", s, got, kind)
			}
		}
	}
}

func TestANameThatLeadsInsideIsNotDialled(t *testing.T) {
	var asked atomic.Int32
	inside := listen(t, func(w http.ResponseWriter, req *http.Request) { asked.Add(1); serveLayer(w, req) })
	u := mustURL(t, inside.URL)
	u.Host = "localhost:" + u.Port()
	r := open(t, Options{Endpoints: []string{"https://registry.invalid"}})
	ask := func() (*http.Response, error) {
		return r.routes.roundTrip((&http.Request{Method: http.MethodGet, URL: u, Header: http.Header{}}).WithContext(t.Context()))
	}
	res, err := ask()
	if err == nil {
		res.Body.Close()
		t.Fatal("a stranger's name that resolves to the loopback was dialled")
	}
	f := r.broken(t.Context(), "localhost", err)
	wantError(t, f.err, oci.CodeUnavailable, 502, "localhost", "upstreams.reg.redirect_hosts")
	if asked.Load() != 0 {
		t.Error("the host inside was asked")
	}
	r.routes.inside.Or(uint32(private)) // which is not the same inside
	if res, err = ask(); err == nil {
		res.Body.Close()
		t.Fatal("a registry at a private address may redirect to the loopback")
	}
}

func TestARegistryInsideMayRedirectToAStoreInside(t *testing.T) {
	store := listen(t, serveLayer)
	reg := listen(t, redirectTo(store.URL+"/x"))
	wantLayer(t, open(t, Options{Endpoints: []string{reg.URL}}))
	meta := listen(t, redirectTo("http://169.254.169.254/latest"))
	_, err := readBlob(t, open(t, Options{Endpoints: []string{meta.URL}}))
	wantError(t, err, oci.CodeUnavailable, 502, "169.254.169.254")
}

func TestRequestsGoThroughTheProxy(t *testing.T) {
	var seen atomic.Pointer[string]
	proxy := listen(t, func(w http.ResponseWriter, req *http.Request) {
		s := req.Method + " " + req.Host
		seen.Store(&s)
		switch {
		case req.Method == http.MethodConnect: // the store's https: as far as it goes
			w.WriteHeader(http.StatusBadGateway)
		case req.URL.Host == "reg.invalid":
			redirectTo("https://cdn.invalid/x")(w, req)
		default:
			serveLayer(w, req)
		}
	})
	r, err := build(Options{Name: "reg", Endpoints: []string{"http://reg.invalid"}}, nil, http.ProxyURL(mustURL(t, proxy.URL)))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, err = readBlob(t, r)
	wantError(t, err, oci.CodeUnavailable, 502, "cdn.invalid")
	if got := seen.Load(); got == nil || *got != "CONNECT cdn.invalid:443" {
		t.Errorf("the proxy was last asked for %v, want CONNECT cdn.invalid:443", got)
	}
	if r.routes.inside.Load() != 0 {
		t.Error("the proxy's address is taken for the registry's")
	}
}

// A proxy resolves names itself, so what only looks like a name is not left to it.
func TestTheProxyIsNotAskedForAddressesInside(t *testing.T) {
	for _, host := range []string{"10.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.0.0.1.", "localhost", "db.localhost.", "[::1]", "[fd00::1]"} {
		proxy := listen(t, func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Host != "reg.invalid" {
				t.Errorf("the proxy is asked for %s %s", req.Method, req.Host)
			}
			redirectTo("https://"+host+"/x")(w, req)
		})
		r, err := build(Options{Name: "reg", Endpoints: []string{"http://reg.invalid"}}, nil, http.ProxyURL(mustURL(t, proxy.URL)))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		_, err = readBlob(t, r)
		wantError(t, err, oci.CodeUnavailable, 502, "upstreams.reg.redirect_hosts")
	}
	for _, host := range []string{"cdn.test", "0x.test", "1.cdn.test", "cdn1", "localhost.test", "0xcdn"} {
		if isAddressInDisguise(host) {
			t.Errorf("%s is taken for an address", host)
		}
	}
}

func TestCertificatesAreVerified(t *testing.T) {
	issuer, ca := authority(t)
	reg := listenTLS(t, issuer, nil, serveImage)
	wantManifest(t, open(t, Options{Endpoints: []string{reg.URL}, CAFile: ca}), "a")
	wantManifest(t, open(t, Options{Endpoints: []string{reg.URL}, InsecureTLS: true}), "a")
	_, err := open(t, Options{Endpoints: []string{reg.URL}}).Manifest(t.Context(), "a", "latest")
	wantError(t, err, oci.CodeUnavailable, 502, "upstreams.reg.tls.ca")
	name := strings.Replace(reg.URL, "127.0.0.1", "localhost", 1)
	_, err = open(t, Options{Endpoints: []string{name}, CAFile: ca}).Manifest(t.Context(), "a", "latest")
	wantError(t, err, oci.CodeUnavailable, 502, "localhost", "another name")
}

func TestInsecureTLSIsForTheRegistryOnly(t *testing.T) {
	issuer, _ := authority(t)
	cdn := listenTLS(t, issuer, nil, serveLayer)
	reg := listenTLS(t, issuer, nil, redirectTo(cdn.URL+"/x"))
	_, err := readBlob(t, open(t, Options{Endpoints: []string{reg.URL}, InsecureTLS: true}))
	wantError(t, err, oci.CodeUnavailable, 502, "tls.ca")
	wantLayer(t, open(t, Options{Endpoints: []string{reg.URL}, InsecureTLS: true, RedirectHosts: []string{mustURL(t, cdn.URL).Host}}))
}

func TestClientCertificatesAreShownToTheRegistryOnly(t *testing.T) {
	issuer, ca := authority(t)
	pool := x509.NewCertPool()
	pool.AddCert(issuer.Leaf)
	cdn := listenTLS(t, issuer, &tls.Config{ClientAuth: tls.RequestClientCert}, func(w http.ResponseWriter, req *http.Request) {
		if len(req.TLS.PeerCertificates) != 0 {
			t.Error("the store was shown the client certificate")
		}
		serveLayer(w, req)
	})
	// By TLS 1.3 a client without a certificate is refused after the handshake, when
	// the end of the connection may overtake the words that say why.
	reg := listenTLS(t, issuer, &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MaxVersion: tls.VersionTLS12}, redirectTo(cdn.URL+"/x"))

	cert, key := writePair(t, t.TempDir(), issue(t, issuer, "client"))
	wantLayer(t, open(t, Options{Endpoints: []string{reg.URL}, CAFile: ca, CertFile: cert, KeyFile: key}))
	_, err := readBlob(t, open(t, Options{Endpoints: []string{reg.URL}, CAFile: ca}))
	wantError(t, err, oci.CodeUnavailable, 502, "upstreams.reg.tls.cert")
}

// writePair writes a certificate and its key into dir.
func writePair(t *testing.T, dir string, c tls.Certificate) (cert, key string) {
	t.Helper()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})))
	writeFile(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	return cert, key
}

// TestRenewedClientCertificatesAreShown asks the registry over new connections, while the
// files are exchanged and while they are unusable.
func TestRenewedClientCertificatesAreShown(t *testing.T) {
	issuer, ca := authority(t)
	var shown atomic.Value
	reg := listenTLS(t, issuer, &tls.Config{ClientAuth: tls.RequireAnyClientCert}, func(w http.ResponseWriter, req *http.Request) {
		shown.Store(req.TLS.PeerCertificates[0].Subject.CommonName)
		w.Header().Set("Connection", "close")
		serveLayer(w, req)
	})
	dir := t.TempDir()
	cert, key := writePair(t, dir, issue(t, issuer, "old"))
	r := open(t, Options{Endpoints: []string{reg.URL}, CAFile: ca, CertFile: cert, KeyFile: key})
	for _, c := range []struct {
		want   string
		change func()
	}{
		{"old", func() {}},
		{"new", func() { writePair(t, dir, issue(t, issuer, "new")) }},
		{"new", func() { writeFile(t, key, "nonsense") }},
	} {
		c.change()
		wantLayer(t, r)
		if got := shown.Load(); got != c.want {
			t.Errorf("the registry was shown the certificate of %v, want %s", got, c.want)
		}
	}
}

func TestPlainHTTPWhereTLSIsConfiguredIsTold(t *testing.T) {
	reg := listen(t, serveImage)
	_, err := open(t, Options{Endpoints: []string{strings.Replace(reg.URL, "http:", "https:", 1)}}).Manifest(t.Context(), "a", "latest")
	wantError(t, err, oci.CodeUnavailable, 502, "http://", "upstreams.reg.endpoints")
}

func TestHTTP2IsSpoken(t *testing.T) {
	issuer, ca := authority(t)
	var proto atomic.Int32
	reg := listenTLS(t, issuer, nil, func(w http.ResponseWriter, req *http.Request) {
		proto.Store(int32(req.ProtoMajor))
		if strings.Contains(req.URL.Path, "/blobs/") {
			serveContent(w, req)
			return
		}
		serveImage(w, req)
	})
	r := open(t, Options{Endpoints: []string{reg.URL}, CAFile: ca})
	wantManifest(t, r, "a")
	if proto.Load() != 2 {
		t.Errorf("the registry was asked over HTTP/%d, want 2", proto.Load())
	}
	wantLayer(t, r)
}

func TestClosingTwiceIsNoHarm(t *testing.T) {
	r, err := New(Options{Name: "reg", Endpoints: []string{"https://registry.invalid"}})
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	r.Close()
}
