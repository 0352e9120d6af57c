package app

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/configs"
)

func TestBannerOfTheDefaults(t *testing.T) {
	cfg := configs.Default()
	cfg.Cache.Dir = "/var/lib/entrepot"
	var got bytes.Buffer
	banner{version: "v1.2.3", cfg: cfg, listen: "[::]:5000", admin: "127.0.0.1:5001", open: true,
		others: []string{"192.168.1.7", "10.0.0.7", "2001:db8::7", "2001:db8::8"}, mount: "/var", size: 270_000_000_000}.write(&got)
	want := `Entrepot v1.2.3
  listens  http://localhost:5000
  clients  http://192.168.1.7:5000, http://10.0.0.7:5000, http://[2001:db8::7]:5000, and 1 more
  login    nobody has to log in: whoever reaches this port can pull (see auth)
  admin    http://127.0.0.1:5001 (/metrics, /healthz, /readyz)
  disk     /var/lib/entrepot, up to 201.2GiB: 80% of /var
  memory   up to 64MiB for small content
  mirrors  docker.io (where a request names none), docker.elastic.co, gcr.io, ghcr.io
           mcr.microsoft.com, nvcr.io, public.ecr.aws, quay.io
           registry.k8s.io

Docker 29 and newer, in /etc/docker/certs.d/_default/hosts.toml:
  [host."http://localhost:5000"]
    capabilities = ["pull", "resolve", "referrers"]
Docker with the classic image store, in /etc/docker/daemon.json:
  { "registry-mirrors": ["http://localhost:5000"] }
containerd, in /etc/containerd/certs.d/_default/hosts.toml:
  [host."http://localhost:5000"]
    capabilities = ["pull", "resolve"]
On other machines, write 192.168.1.7 instead of localhost.

`
	if got.String() != want {
		t.Errorf("want\n%s\ngot\n%s", want, got.String())
	}
}

func TestBannerShowsWhatIsUnusual(t *testing.T) {
	cfg := configs.Default()
	cfg.DefaultUpstream = ""
	cfg.Cache.Offline, cfg.Cache.MaxSize = true, configs.Room(500<<30)
	cfg.TLS.Cert = "/tls.crt"
	cfg.Upstreams = map[string]*configs.Upstream{"ghcr.io": {Credentials: configs.Credentials{Password: "hunter2"}}}
	var buf bytes.Buffer
	banner{version: "devel", cfg: cfg, listen: "10.0.0.7:443", others: []string{"10.0.0.7"}, mount: "/srv", size: 1 << 40}.write(&buf)
	got := buf.String()
	for _, want := range []string{"https://10.0.0.7:443\n", "admin    off\n", "mirrors  ghcr.io\n", "offline  ", "up to 500GiB of /srv\n", "login    required", "clients  https://10.0.0.7:443\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("want %q in\n%s", want, got)
		}
	}
	for _, not := range []string{"hunter2", "localhost", "nobody has to"} {
		if strings.Contains(got, not) {
			t.Errorf("do not want %q in\n%s", not, got)
		}
	}
	cfg.Upstreams = nil
	buf.Reset()
	banner{cfg: cfg, listen: ":80"}.write(&buf)
	if !strings.Contains(buf.String(), "mirrors  nothing") {
		t.Errorf("want it said that nothing is mirrored, got\n%s", buf.String())
	}
}

func TestBannerOfALoopbackListener(t *testing.T) {
	var got bytes.Buffer
	banner{cfg: configs.Default(), listen: "127.0.0.1:5000"}.write(&got)
	if !strings.Contains(got.String(), "clients  on this machine only") || !strings.Contains(got.String(), "up to 80% of its file system") {
		t.Errorf("got\n%s", got.String())
	}
}

func TestFileSystemOfADirectory(t *testing.T) {
	dir := t.TempDir()
	mount, size := fileSystem(dir)
	if rel, err := filepath.Rel(mount, dir); err != nil || strings.HasPrefix(rel, "..") || size <= 0 {
		t.Errorf("%s is on %q, of %d bytes", dir, mount, size)
	}
	if mount, size := fileSystem(filepath.Join(dir, "nosuch")); mount != "" || size != 0 {
		t.Errorf("want nothing of a directory that does not exist, got %q, %d", mount, size)
	}
}

// What the banner says to paste is what the ready file says.
func TestBannerAgreesWithTheReadyFiles(t *testing.T) {
	cfg := configs.Default()
	var buf bytes.Buffer
	banner{cfg: cfg, listen: "cache:5000"}.write(&buf)
	said := buf.String()
	for _, name := range []string{"daemon.json", "docker/_default/hosts.toml", "containerd/_default/hosts.toml"} {
		text, err := os.ReadFile(filepath.Join("..", "..", "..", "configs", "clients", name))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			line = strings.Trim(line, " \n")
			if len(line) < 2 || strings.HasPrefix(line, "#") {
				continue
			}
			if !strings.Contains(said, line) {
				t.Errorf("%s has %q, which the banner does not say:\n%s", name, line, said)
			}
		}
	}
}
