package clients

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// newCertified is a proxy that knows its clients by certificates, and the files that
// a node has: the CA, its certificate and its key.
func newCertified(t *testing.T) (p *proxy.Proxy, want *image.Image, ca, cert, key string) {
	t.Helper()
	dir := t.TempDir()
	issue := func(name string, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), BasicConstraintsValid: true,
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		}
		if parent == nil {
			template.IsCA, template.KeyUsage, template.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
			parent, signer = template, private
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &private.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		keyDER, err := x509.MarshalECPrivateKey(private)
		if err != nil {
			t.Fatal(err)
		}
		write(t, dir, name+".crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
		write(t, dir, name+".key", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})))
		return parsed, private
	}
	root, signer := issue("ca", nil, nil)
	issue("cache", root, signer)
	issue("node-1", root, signer)
	file := func(name string) string { return filepath.Join(dir, name) }
	h := hub.New(t, hub.Options{})
	want = image.Index(image.Options{Seed: 1, Flavour: image.Docker, Layers: []image.Layer{{Size: 5000}}})
	h.Push("library/app", "1", want)
	p = proxy.Start(t, proxy.Options{
		Upstreams: map[string]*hub.Hub{"docker.io": h},
		Config:    fmt.Sprintf("tls: {cert: %s, key: %s, client_ca: %s}\n", file("cache.crt"), file("cache.key"), file("ca.crt")),
	})
	return p, want, file("ca.crt"), file("node-1.crt"), file("node-1.key")
}

func TestContainerdIsKnownByItsCertificate(t *testing.T) {
	needRoot(t, "containerd")
	need(t, "containerd")
	p, want, ca, cert, key := newCertified(t)
	_, ctr := startContainerd(t)
	hosts := t.TempDir()
	write(t, hosts, "docker.io/hosts.toml", fmt.Sprintf(`[host."https://%s"]
  capabilities = ["pull", "resolve"]
  ca = %q
  client = [[%q, %q]]
`, p.Host(), ca, cert, key))
	ctr("images", "pull", "--hosts-dir", hosts, "--all-platforms", "--snapshotter", "native", "docker.io/library/app:1")
	if got := ctr("content", "get", want.Digest.String()); got != string(want.Bytes()) {
		t.Errorf("%d bytes, want %d", len(got), len(want.Bytes()))
	}
	if !strings.Contains(p.Log(), `"caller":"node-1"`) {
		t.Error("the pull did not come through as node-1")
	}
}

func TestSkopeoIsKnownByItsCertificate(t *testing.T) {
	skopeo := need(t, "skopeo")
	p, want, ca, cert, key := newCertified(t)
	// The directory of /etc/docker/certs.d/HOST, as Docker, Podman and Skopeo read it.
	dir := t.TempDir()
	for name, from := range map[string]string{"ca.crt": ca, "client.cert": cert, "client.key": key} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		write(t, dir, name, string(b))
	}
	env := []string{"_CONTAINERS_ROOTLESS_UID=1000"}
	got := run(t, env, skopeo, "--insecure-policy", "inspect", "--cert-dir", dir, "--raw", "docker://"+p.Host()+"/library/app:1")
	if got != string(want.Bytes()) {
		t.Errorf("%d bytes, want %d", len(got), len(want.Bytes()))
	}
}
