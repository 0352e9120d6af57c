package app

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/metrics"
)

// writePair writes a self-signed certificate that ends after left, and its key.
func writePair(t *testing.T, dir string, left time.Duration) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cache.example.test"}, DNSNames: []string{"localhost"},
		NotBefore: now.Add(-365 * 24 * time.Hour), NotAfter: now.Add(left), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: encoded}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

const day = 24 * time.Hour

// TestCertificatesAreWatched lets two months pass: the log warns once a day, the metric
// follows, and a replaced file and a changed configuration are looked at again.
func TestCertificatesAreWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		cert, _ := writePair(t, dir, 40*day)
		cfg := configs.Default()
		cfg.TLS.Cert = cert
		cfg.Upstreams["ghcr.io"].TLS.CA = cert
		core, logs := observer.New(zap.WarnLevel)
		m := metrics.New("", "", "")
		reloaded := make(chan struct{}, 1)
		var current atomic.Pointer[configs.Config]
		current.Store(cfg)
		defer watchCertificates(current.Load, reloaded, zap.New(core), m)()
		pass := func(d time.Duration) (messages []string) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			for _, e := range logs.TakeAll() {
				if strings.HasPrefix(e.ContextMap()["certificate"].(string), "tls.cert: ") {
					messages = append(messages, e.Level.String()+" "+e.Message)
				}
			}
			return messages
		}
		// shown returns how many series there are, and the listener's.
		shown := func() (n int, left time.Duration) {
			t.Helper()
			families, err := m.Registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				if f.GetName() != "entrepot_certificate_expiry_seconds" {
					continue
				}
				for _, series := range f.GetMetric() {
					n++
					if series.GetLabel()[0].GetValue() == "listener" {
						left = time.Duration(series.GetGauge().GetValue()) * time.Second
					}
				}
			}
			return n, left
		}
		left := func() time.Duration { _, d := shown(); return d }
		if got := pass(9 * day); len(got) != 0 || left() < 30*day || left() > 31*day+time.Hour {
			t.Errorf("with 31 days left: %v, %v", got, left())
		}
		soon := "warn certificate ends soon; replace it"
		if got := pass(3 * day); !slices.Equal(got, []string{soon, soon, soon}) {
			t.Errorf("with 28 days left want a warning a day, got %v", got)
		}
		if got := pass(30 * day); got[len(got)-1] != "error certificate not valid; replace it" || left() > 0 || len(got) > 31 {
			t.Errorf("after its end: %v, %v", got, left())
		}
		writePair(t, dir, 20*day)
		if got := pass(2 * time.Minute); !slices.Equal(got, []string{soon}) {
			t.Errorf("after it was replaced by one that ends soon: %v", got)
		}
		writePair(t, dir, 90*day)
		if got := pass(2 * day); len(got) != 0 || left() < 80*day {
			t.Errorf("after it was replaced: %v, %v", got, left())
		}
		if n, _ := shown(); n != 2 {
			t.Errorf("want the listener and one upstream, got %d", n)
		}
		current.Store(configs.Default())
		reloaded <- struct{}{}
		pass(0)
		if n, _ := shown(); n != 0 {
			t.Error("the metric shows files that are no longer configured")
		}
	})
}

// TestEndedCertificateIsReported runs the commands and the proxy with a listener's certificate
// that has ended, and with authorities that end soon.
func TestEndedCertificateIsReported(t *testing.T) {
	dir, authorities := t.TempDir(), t.TempDir()
	cert, key := writePair(t, dir, -24*day)
	ca, _ := writePair(t, authorities, 5*day+time.Hour)
	file := writeFile(t, "entrepot.yml", "tls: {cert: "+cert+", key: "+key+", client_ca: "+ca+"}\nupstreams: {ghcr.io: {tls: {ca: "+ca+", cert: "+cert+", key: "+key+"}}}\n"+
		"cache: {offline: true}\nlisten: 127.0.0.1:1\nadmin: {listen: off}\n")
	run := func(args ...string) (int, string) {
		var out, errs bytes.Buffer
		p := process{args: args, stdout: &out, stderr: &errs, signals: func() (<-chan os.Signal, func()) { return nil, func() {} }}
		code := p.run()
		return code, out.String() + errs.String()
	}
	want := []string{
		"tls.cert: the certificate of cache.example.test in " + cert + " ended 24 days ago, on ",
		"tls.client_ca: the certificate of cache.example.test in " + ca + " ends in 5 days, on ",
		"upstreams.ghcr.io.tls.cert: the certificate of cache.example.test in " + cert + " ended 24 days ago, on ",
		"upstreams.ghcr.io.tls.ca: the certificate of cache.example.test in " + ca + " ends in 5 days, on ",
	}
	code, out := run("config", "check", file)
	for _, w := range want {
		if code != 0 || !strings.Contains(out, "warning: "+w) {
			t.Errorf("config check: code %d, want %q, got\n%s", code, w, out)
		}
	}
	code, out = run("doctor", "--config", file, "--cache-dir", t.TempDir())
	for i, w := range want {
		status := []string{"failure  certificates", "warning  certificates"}[i%2]
		if code != 1 || !regexp.MustCompile(status+` +`+regexp.QuoteMeta(w)).MatchString(out) {
			t.Errorf("doctor: code %d, want %s %q, got\n%s", code, status, w, out)
		}
	}
	p := startServing(t, nil, "--config", file)
	if _, body := get(t, p.admin+"/metrics"); !regexp.MustCompile(`entrepot_certificate_expiry_seconds{role="listener",upstream=""} -2\.07\d*e\+06`).MatchString(body) ||
		strings.Count(body, "\nentrepot_certificate_expiry_seconds{") != 4 {
		t.Errorf("want four series, the listener's of -24 days; got\n%s", body)
	}
}

// TestFilesThatServeRefusesFailInConfigCheckAndDoctor gives all three the same configurations.
func TestFilesThatServeRefusesFailInConfigCheckAndDoctor(t *testing.T) {
	cert, key := writePair(t, t.TempDir(), 365*24*time.Hour)
	_, otherKey := writePair(t, t.TempDir(), 365*24*time.Hour)
	text := writeFile(t, "ca.pem", "no certificate")
	environ := []string{"ENTREPOT_CACHE_OFFLINE=true"}
	for _, c := range []struct {
		config string
		want   []string
	}{
		{"tls: {cert: /none.crt, key: " + key + "}", []string{"tls.cert: open /none.crt: no such file"}},
		{"tls: {cert: " + cert + ", key: /none.key}", []string{"tls.key: open /none.key: no such file"}},
		{"tls: {cert: /none.crt, key: /none.key}", []string{"tls.cert: open /none.crt", "tls.key: open /none.key"}},
		{"tls: {cert: " + cert + ", key: " + otherKey + "}", []string{"tls.cert: " + cert + " and " + otherKey + " are not a certificate and its key"}},
		{"tls: {cert: " + cert + ", key: " + key + ", client_ca: /none.pem}", []string{"tls.client_ca: open /none.pem"}},
		{"tls: {cert: " + cert + ", key: " + key + ", client_ca: " + text + "}", []string{"tls.client_ca: " + text + " holds no PEM certificate"}},
		{"admin: {tls: {cert: " + cert + ", key: /none.key}}", []string{"admin.tls.key: open /none.key"}},
		{"upstreams: {ghcr.io: {tls: {ca: /none.pem}}}", []string{"upstreams.ghcr.io.tls.ca: open /none.pem"}},
		{"upstreams: {ghcr.io: {tls: {cert: " + cert + ", key: /none.key}}}", []string{"upstreams.ghcr.io.tls.key: open /none.key"}},
		{"auth: {oidc: {issuer: 'https://issuer.example.test', audience: a, ca: /none.pem}}", []string{"auth.oidc.ca: open /none.pem"}},
	} {
		file := writeFile(t, "entrepot.yml", c.config+"\n")
		dir := filepath.Join(t.TempDir(), "cache")
		served := runCommand(environ, "serve", "--config", file, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--cache-dir", dir)
		checked := runCommand(environ, "config", "check", file)
		asJSON := runCommand(environ, "config", "check", "-o", "json", file)
		examined := runCommand(environ, "doctor", "--config", file, "--cache-dir", dir)
		for _, w := range c.want {
			key, _, _ := strings.Cut(w, ": ")
			if served.code != 1 || !strings.Contains(served.stderr, file+": "+w) {
				t.Errorf("%s: serve: want %q, got %+v", c.config, w, served)
			}
			if checked.code != 1 || !strings.Contains(checked.stderr, file+": "+w) || strings.Contains(checked.stdout, "ok") {
				t.Errorf("%s: config check: want %q, got %+v", c.config, w, checked)
			}
			if asJSON.code != 1 || !strings.Contains(asJSON.stdout, `"ok": false`) || !strings.Contains(asJSON.stdout, `"key": "`+key+`"`) {
				t.Errorf("%s: config check -o json: want %q, got %+v", c.config, key, asJSON)
			}
			if examined.code != 1 || !regexp.MustCompile(`(?m)^failure +certificates +`+regexp.QuoteMeta(w)).MatchString(examined.stdout) {
				t.Errorf("%s: doctor: want a failure %q, got %+v", c.config, w, examined)
			}
		}
	}
	for _, config := range []string{
		"tls: {cert: " + cert + ", key: " + key + ", client_ca: " + cert + "}",
		"upstreams: {ghcr.io: {tls: {cert: " + cert + ", key: " + key + ", ca: " + cert + "}}}",
	} {
		if got := runCommand(environ, "config", "check", writeFile(t, "entrepot.yml", config+"\n")); got.code != 0 {
			t.Errorf("%s: want ok, got %+v", config, got)
		}
	}
}
