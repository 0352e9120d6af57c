package clients

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// TestCurlAsksTheAdminAPIAsItsPageSays runs the commands of docs/admin-api.md, one after
// the other, on a proxy that has what the page's examples were made of. Each has to be
// answered with 200.
func TestCurlAsksTheAdminAPIAsItsPageSays(t *testing.T) {
	need(t, "curl")
	b, err := os.ReadFile("../../docs/admin-api.md")
	if err != nil {
		t.Fatal(err)
	}
	_, routes, _ := strings.Cut(string(b), "\n## Routes\n")
	h, nginx, app := hub.New(t, hub.Options{}), image.Index(image.Options{Seed: 1}), image.New(image.Options{Seed: 11})
	h.Push("library/nginx", "1.27", nginx)
	h.Push("library/app", "stable", app)
	h.Push("library/ghost", "1", image.New(image.Options{Seed: 12}))
	var others []string // that no test asks
	for _, name := range []string{"ghcr.io", "quay.io", "gcr.io", "registry.k8s.io", "mcr.microsoft.com", "public.ecr.aws", "docker.elastic.co", "nvcr.io"} {
		others = append(others, name+": null")
	}
	p := proxy.Start(t, proxy.Options{
		Upstreams: map[string]*hub.Hub{"docker.io": h},
		Config:    "upstreams: {" + strings.Join(others, ", ") + "}",
	})
	amd64 := nginx.Platforms["linux/amd64"]
	pulled := []string{"/v2/library/nginx/manifests/1.27", "/v2/library/nginx/manifests/" + amd64.String(), "/v2/library/app/manifests/stable"}
	for _, l := range append(nginx.Layers("linux/amd64"), nginx.Parsed(amd64).Config) {
		pulled = append(pulled, "/v2/library/nginx/blobs/"+l.Digest.String())
	}
	for _, path := range pulled {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.URL()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", "*/*")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("GET %s: %s", path, resp.Status)
		}
	}
	p.WaitIdle(t)

	dir := t.TempDir()
	write(t, dir, "layout.tar", string(layoutOf(t, image.New(image.Options{Seed: 20}))))
	if body := regexp.MustCompile("(?s)```text\n(.*?)```\n").FindStringSubmatch(routes); body != nil {
		write(t, dir, "request.json", body[1])
	}
	// curl's own settings: an answer from 400 on is a failure.
	write(t, dir, ".curlrc", "fail-with-body\nshow-error\nmax-time = 60\n")
	env := []string{"HOME=" + dir, "CURL_HOME=" + dir}
	at := strings.NewReplacer("http://127.0.0.1:5001", p.AdminURL(), "/var/lib/entrepot/admin.token", p.AdminTokenFile(), "seconds=30", "seconds=1")
	commands := regexp.MustCompile("(?s)```sh\n(.*?)```\n").FindAllStringSubmatch(routes, -1)
	if len(commands) < 20 {
		t.Fatalf("the page has %d commands only", len(commands))
	}
	for _, c := range commands {
		if out, err := try(t, env, "sh", "-ec", "cd "+dir+"\n"+at.Replace(c[1])); err != nil {
			t.Errorf("%s%v\n%s", c[1], err, out)
		}
	}
}

// layoutOf makes an OCI image layout of i, as a tar.
func layoutOf(t *testing.T, i *image.Image) []byte {
	t.Helper()
	index, err := json.Marshal(v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{i.Descriptor()}})
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{v1.ImageLayoutFile: []byte(`{"imageLayoutVersion":"1.0.0"}`), v1.ImageIndexFile: index}
	for d, m := range i.Manifests {
		files[filepath.Join(v1.ImageBlobsDir, d.Algorithm().String(), d.Encoded())] = m.Bytes
	}
	for d, b := range i.Blobs {
		files[filepath.Join(v1.ImageBlobsDir, d.Algorithm().String(), d.Encoded())] = b
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(files[name])), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
