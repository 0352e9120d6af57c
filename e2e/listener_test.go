package e2e

import (
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
	bigint "math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// certificates is a CA that signs what a listener and its clients show.
type certificates struct {
	dir  string
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // of the CA, PEM
}

func newCertificates(t *testing.T) *certificates {
	t.Helper()
	c := &certificates{dir: t.TempDir()}
	c.file, _ = c.issue(t, "ca")
	return c
}

// issue writes a certificate for localhost and 127.0.0.1, and its key.
func (c *certificates) issue(t *testing.T, name string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: bigint.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), BasicConstraintsValid: true,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	parent, signer := c.ca, c.key
	if parent == nil {
		template.IsCA, template.KeyUsage, template.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
		parent, signer = template, private
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &private.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	if c.ca == nil {
		if c.ca, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		c.key = private
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(c.dir, name+".crt"), filepath.Join(c.dir, name+".key")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		// Written beside and renamed, as those who renew certificates do.
		if err := errors.Join(os.WriteFile(path+".new", pem.EncodeToMemory(block), 0o600), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// client gives a client that trusts the CA, and shows a certificate where it has one.
func (c *certificates) client(t *testing.T, cert, key string) *http.Client {
	t.Helper()
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	config.RootCAs.AddCert(c.ca)
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	transport := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: limit}
}

func fetch(t *testing.T, c *http.Client, url string, headers ...string) (status int, body string, serial *bigint.Int) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatalf("GET %s: %v", url, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("GET %s: %v", url, err)
	}
	if res.TLS != nil {
		serial = res.TLS.PeerCertificates[0].SerialNumber
	}
	return res.StatusCode, string(b), serial
}

func TestADaemonIsKnownByItsCertificateAndTheListenersCertificateIsRenewed(t *testing.T) {
	c := newCertificates(t)
	cert, key := c.issue(t, "cache")
	h, p := start(t, fmt.Sprintf("tls: {cert: %s, key: %s, client_ca: %s}\n", cert, key, c.file))
	h.Push("library/app", "1", image.New(image.Options{}))
	secure := "https://" + p.Host()
	nodeCert, nodeKey := c.issue(t, "node-1")
	node, nobody := c.client(t, nodeCert, nodeKey), c.client(t, "", "")
	if status, body, _ := fetch(t, node, secure+"/v2/library/app/manifests/1"); status != http.StatusOK {
		t.Errorf("with a certificate: want 200, got %d %s", status, body)
	}
	until(t, "the log has who asked", func() bool { return strings.Contains(p.Log(), `"caller":"cert:node-1"`) })
	status, body, before := fetch(t, nobody, secure+"/v2/library/app/manifests/1")
	if status != http.StatusForbidden || !strings.Contains(body, "DENIED") {
		t.Errorf("without a certificate: want DENIED, got %d %s", status, body)
	}
	if status, body, _ := fetch(t, http.DefaultClient, p.URL()+"/v2/"); status != http.StatusBadRequest || !strings.Contains(body, "this port speaks https") {
		t.Errorf("plain http: want 400 in words, got %d %s", status, body)
	}
	c.issue(t, "cache")
	until(t, "the new certificate is shown", func() bool {
		_, _, now := fetch(t, nobody, secure+"/v2/")
		return now.Cmp(before) != 0
	})
}

func TestTheAdminListenerWantsToKnowWhoAsks(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(robotToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, p := start(t, fmt.Sprintf(`
admin:
  auth:
    token_file: %s
    htpasswd: %s
`, token, htpasswd(t, "", "op", "wonderland")))
	for _, path := range []string{"/", "/metrics", "/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/cmdline", "/api/v1/explain?reference=nginx", "/none"} {
		for _, auth := range []string{"", "Bearer x", basicAuth("op", "x")} {
			status, body, _ := fetch(t, http.DefaultClient, p.AdminURL()+path, "Authorization", auth)
			if status != http.StatusUnauthorized || !strings.Contains(body, "UNAUTHORIZED") {
				t.Errorf("%s with %q: want 401, got %d %.200s", path, auth, status, body)
			}
		}
		for _, auth := range []string{"Bearer " + robotToken, basicAuth("op", "wonderland")} {
			if status, body, _ := fetch(t, http.DefaultClient, p.AdminURL()+path, "Authorization", auth); status == http.StatusUnauthorized {
				t.Errorf("%s with %q: got %d %.200s", path, auth, status, body)
			}
		}
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if status, body, _ := fetch(t, http.DefaultClient, p.AdminURL()+path); status != http.StatusOK {
			t.Errorf("%s: want 200, got %d %s", path, status, body)
		}
	}
	for _, args := range [][]string{{"explain", "nginx:1"}, {"healthcheck"}} {
		cmd := exec.CommandContext(t.Context(), proxy.Binary(t), append(args, "--config", p.Config())...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("entrepot %v: %v\n%s", args, err, out)
		}
	}
}
