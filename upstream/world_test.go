package upstream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/oci"
)

// world is a network in memory, of hosts by name and port, in which time is
// that of the test.
type world struct {
	t       *testing.T
	metrics *metrics.Metrics
	logs    *observer.ObservedLogs
	log     *zap.Logger
	ca      string // a PEM file
	issuer  tls.Certificate

	mu    sync.Mutex
	hosts map[string]*memoryListener
	asked []string // "GET host/path", in order
	dials map[string]int
}

// inWorld runs f in a world of its own.
func inWorld(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.DebugLevel)
		w := &world{t: t, metrics: metrics.Discard(), logs: logs, log: zap.New(core), hosts: map[string]*memoryListener{}, dials: map[string]int{}}
		w.issuer, w.ca = authority(t)
		f(t, w)
	})
}

// host lets h answer at addr, with TLS at port 443 and at 8443.
func (w *world) host(addr string, h http.HandlerFunc) {
	l := &memoryListener{conns: make(chan net.Conn), done: make(chan struct{})}
	s := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		w.mu.Lock()
		w.asked = append(w.asked, req.Method+" "+req.Host+req.URL.Path)
		w.mu.Unlock()
		h(rw, req)
	})}
	w.mu.Lock()
	w.hosts[addr] = l
	w.mu.Unlock()
	var serve net.Listener = l
	if strings.HasSuffix(addr, "443") {
		name, _, _ := net.SplitHostPort(addr)
		serve = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{w.issue(name)}})
	}
	go func() { _ = s.Serve(serve) }()
	w.t.Cleanup(func() { _ = s.Close() })
}

// gone lets addr refuse connections.
func (w *world) gone(addr string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.hosts, addr)
}

func (w *world) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	w.mu.Lock()
	l := w.hosts[strings.ToLower(addr)]
	w.dials[addr]++
	w.mu.Unlock()
	if l == nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}
	a, b := net.Pipe()
	ours, theirs := impatient{a}, impatient{b}
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.done:
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// registry makes a client in this world, of https://reg.test if o says nothing else.
func (w *world) registry(o Options) *Registry {
	w.t.Helper()
	if o.Name == "" {
		o.Name = "reg"
	}
	if o.Endpoints == nil {
		o.Endpoints = []string{"https://reg.test"}
	}
	o.CAFile, o.Metrics, o.Log = w.ca, w.metrics, w.log
	r, err := build(o, w.dial, noProxy)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(r.Close)
	return r
}

func noProxy(*http.Request) (*url.URL, error) { return nil, nil }

// count tells how many requests began with prefix, "GET reg.test/v2/".
func (w *world) count(prefix string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, a := range w.asked {
		if strings.HasPrefix(a, prefix) {
			n++
		}
	}
	return n
}

func (w *world) wantCount(prefix string, want int) {
	w.t.Helper()
	if got := w.count(prefix); got != want {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.t.Errorf("%d requests %q, want %d; all: %q", got, prefix, want, w.asked)
	}
}

// impatient lets no write wait that has a deadline. That is the one with which
// TLS says goodbye to a peer that may not listen, under locks on which others
// wait: in a bubble, where a lock holds up the time, it would wait for ever.
type impatient struct{ net.Conn }

func (c impatient) SetWriteDeadline(t time.Time) error {
	if !t.IsZero() {
		t = time.Now().Add(-time.Second)
	}
	return c.Conn.SetWriteDeadline(t)
}

type memoryListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *memoryListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *memoryListener) Addr() net.Addr { return &net.TCPAddr{} }

// authority makes a certificate authority, and writes its certificate to a file.
func authority(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(240 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	writeFile(t, file, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, file
}

func (w *world) issue(name string) tls.Certificate { return issue(w.t, w.issuer, name) }

func issue(t *testing.T, issuer tls.Certificate, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature}
	if ip := net.ParseIP(name); ip != nil {
		tmpl.IPAddresses = []net.IP{ip}
	} else {
		tmpl.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, issuer.Leaf, &key.PublicKey, issuer.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// wantError checks the code and status of err, and that its message has each of
// words and nothing of what must stay secret.
func wantError(t *testing.T, err error, code oci.Code, status int, words ...string) *oci.Error {
	t.Helper()
	var e *oci.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v (%T), want an *oci.Error %s", err, err, code)
	}
	if e.Code != code || e.HTTPStatus() != status {
		t.Errorf("got %s with status %d, want %s with %d: %v", e.Code, e.HTTPStatus(), code, status, err)
	}
	for _, w := range words {
		if !strings.Contains(e.Message, w) {
			t.Errorf("the message %q does not name %q", e.Message, w)
		}
	}
	for _, secret := range []string{"X-Signature", "hunter2", "?"} {
		if strings.Contains(e.Error(), secret) {
			t.Errorf("the error tells %q: %v", secret, e)
		}
	}
	return e
}

// value gives the value of the one series of c with these labels.
func value(t *testing.T, c interface {
	GetMetricWithLabelValues(...string) (prometheus.Counter, error)
}, labels ...string) float64 {
	t.Helper()
	m, err := c.GetMetricWithLabelValues(labels...)
	if err != nil {
		t.Fatal(err)
	}
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		t.Fatal(err)
	}
	return d.GetCounter().GetValue()
}

const (
	image    = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}`
	ociImage = "application/vnd.oci.image.manifest.v1+json"
)

var imageDigest = digest.FromString(image)

// serveImage answers with image, whatever is asked.
func serveImage(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", ociImage)
	w.Header().Set("Docker-Content-Digest", imageDigest.String())
	w.Header().Set("Content-Length", fmt.Sprint(len(image)))
	_, _ = io.WriteString(w, image)
}

// tokenServer is a token server and the registry's side of it.
type tokenServer struct {
	realm, service string
	answer         func(n int) string // the body of the nth answer, n from 1
	user, password string             // wanted, where user is not ""

	mu      sync.Mutex
	n       int
	good    map[string]bool
	scopes  []string // of each request
	basic   []string // user:password of each request, "" where none
	queries []url.Values
}

func (s *tokenServer) serve(w http.ResponseWriter, req *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = req.ParseForm()
	user, password, _ := req.BasicAuth()
	s.basic = append(s.basic, strings.Trim(user+":"+password, ":"))
	s.scopes = append(s.scopes, strings.Join(req.Form["scope"], " "))
	s.queries = append(s.queries, req.Form)
	if s.user != "" && (user != s.user || password != s.password) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	s.n++
	token := fmt.Sprintf("token-%d", s.n)
	if s.good == nil {
		s.good = map[string]bool{}
	}
	s.good[token] = true
	body := fmt.Sprintf(`{"token":%q,"expires_in":300}`, token)
	if s.answer != nil {
		body = s.answer(s.n)
	}
	_, _ = io.WriteString(w, body)
}

// guard lets only requests with a good token reach h.
func (s *tokenServer) guard(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		token, _ := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
		s.mu.Lock()
		good := s.good[token]
		s.mu.Unlock()
		if good {
			h(w, req)
			return
		}
		_, rest, _ := strings.Cut(req.URL.Path, "/v2/")
		repo := rest
		for _, sep := range []string{"/manifests/", "/blobs/", "/tags/", "/referrers/"} {
			repo, _, _ = strings.Cut(repo, sep)
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service=%q,scope="repository:%s:pull"`, s.realm, s.service, repo))
		w.WriteHeader(http.StatusUnauthorized)
	}
}

// forget makes all tokens bad.
func (s *tokenServer) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.good = nil
}

func (s *tokenServer) basics() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.basic)
}
