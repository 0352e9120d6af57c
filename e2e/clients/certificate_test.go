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
	"slices"
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
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4zero}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
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
	if !strings.Contains(p.Log(), `"caller":"cert:node-1"`) {
		t.Error("the pull did not come through as node-1")
	}
}

// nodeFiles gives a directory as /etc/docker/certs.d/HOST is, which Docker, Podman and
// Skopeo read: dir itself, or below.
func nodeFiles(t *testing.T, dir, ca, cert, key string) string {
	t.Helper()
	for name, from := range map[string]string{"ca.crt": ca, "client.cert": cert, "client.key": key} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		write(t, dir, name, string(b))
	}
	return dir
}

func TestSkopeoIsKnownByItsCertificate(t *testing.T) {
	skopeo := need(t, "skopeo")
	p, want, ca, cert, key := newCertified(t)
	env := []string{"_CONTAINERS_ROOTLESS_UID=1000"}
	got := run(t, env, skopeo, "--insecure-policy", "inspect", "--cert-dir", nodeFiles(t, t.TempDir(), ca, cert, key), "--raw", "docker://"+p.Host()+"/library/app:1")
	if got != string(want.Bytes()) {
		t.Errorf("%d bytes, want %d", len(got), len(want.Bytes()))
	}
}

// A daemon can not log in to its mirror, but it shows its certificate to it, as to
// the cache by its own name.
func TestDockerDaemonIsKnownByItsCertificate(t *testing.T) {
	needRoot(t, "dockerd")
	need(t, "dockerd")
	docker := need(t, "docker")
	p, want, ca, cert, key := newCertified(t)
	// Docker verifies no certificate of the loopback, and shows none. To Linux this is
	// the loopback by another address.
	host := strings.Replace(p.Host(), "127.0.0.1", "0.0.0.0", 1)
	mirror := strings.Replace(readyFile(t, "daemon.json", host), "http://", "https://", 1)
	direct := host + "/library/app:1"
	pull := func(t *testing.T, etc, name string) (string, error) {
		t.Helper()
		client := runDockerdWith(t, mirror, etc)
		out, err := try(t, nil, docker, slices.Concat([]string{"--config", t.TempDir()}, client, []string{"pull", "--platform", "linux/amd64", name})...)
		if err == nil {
			wantDockerImage(t, run(t, nil, docker, slices.Concat([]string{"--config", t.TempDir()}, client, []string{"image", "inspect", name})...), "linux/amd64", want)
		}
		return out, err
	}
	pulled := false
	for name, ref := range map[string]string{"by the cache's name": direct, "through the mirror": "app:1"} {
		t.Run(name, func(t *testing.T) {
			etc := t.TempDir()
			nodeFiles(t, filepath.Join(etc, "certs.d", host), ca, cert, key)
			before := p.Metrics(t).Sum("entrepot_client_bytes_total", "kind", "blob")
			if out, err := pull(t, etc, ref); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			pulled = true
			if p.Metrics(t).Sum("entrepot_client_bytes_total", "kind", "blob") == before {
				t.Error("the layers did not come through the cache")
			}
		})
	}
	if pulled && !strings.Contains(p.Log(), `"caller":"cert:node-1"`) {
		t.Error("the pulls did not come through as node-1")
	}
	t.Run("without one", func(t *testing.T) {
		etc := t.TempDir()
		b, err := os.ReadFile(ca)
		if err != nil {
			t.Fatal(err)
		}
		write(t, etc, filepath.Join("certs.d", host, "ca.crt"), string(b))
		if out, err := pull(t, etc, direct); err == nil || !strings.Contains(err.Error(), "client certificate") {
			t.Errorf("want it refused for want of a certificate, got %v, %s", err, out)
		}
	})
}
