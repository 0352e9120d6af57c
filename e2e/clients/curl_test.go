package clients

import (
	"net/http"
	"net/textproto"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/oci"
)

func TestCurlGetsWhatItAsksFor(t *testing.T) {
	curl := need(t, "curl")
	w := newWorld(t)
	alone := w.list.Platforms["linux/amd64"]
	w.twice(t, func(t *testing.T) {
		for name, c := range map[string]struct {
			path   string
			args   []string
			digest digest.Digest
			of     *image.Image
		}{
			"no Accept":      {"/v2/library/app/manifests/list", []string{"-H", "Accept:"}, w.list.Digest, w.list},
			"curl's Accept":  {"/v2/library/app/manifests/index", nil, w.index.Digest, w.index},
			"only schema 2":  {"/v2/library/app/manifests/list", []string{"-H", "Accept: " + oci.MediaTypeDockerManifest}, alone, w.list},
			"by digest":      {"/v2/library/app/manifests/" + w.list.Digest.String(), nil, w.list.Digest, w.list},
			"another prefix": {"/v2/ghcr.io/org/app/manifests/index", nil, w.index.Digest, w.index},
			"ns":             {"/v2/org/app/manifests/index?ns=ghcr.io", nil, w.index.Digest, w.index},
			// A token that was meant for Docker Hub is nobody's business here.
			"stray token":    {"/v2/library/app/manifests/list", []string{"-H", "Authorization: Bearer of-docker-hub"}, w.list.Digest, w.list},
			"stray password": {"/v2/library/app/manifests/index", []string{"-u", "alice:secret"}, w.index.Digest, w.index},
		} {
			body := filepath.Join(t.TempDir(), "body")
			out := run(t, nil, curl, append(c.args, "-sS", "-D", "-", "-o", body, w.proxy.URL()+c.path)...)
			status, header := parseHeader(t, out)
			if status != "200" || header.Get("Docker-Content-Digest") != c.digest.String() || header.Get("Content-Type") != c.of.Manifests[c.digest].MediaType {
				t.Errorf("%s: status %s, header %v; want digest %s", name, status, header, c.digest)
			}
			wantFile(t, body, c.of.Manifests[c.digest].Bytes)
		}
		for d, want := range w.list.Blobs {
			body := filepath.Join(t.TempDir(), "body")
			run(t, nil, curl, "-sSf", "-o", body, w.proxy.URL()+"/v2/library/app/blobs/"+d.String())
			wantFile(t, body, want)
			// As a download that was broken off and goes on.
			if err := os.Truncate(body, int64(len(want)/2)); err != nil {
				t.Fatal(err)
			}
			run(t, nil, curl, "-sSf", "-C", "-", "-o", body, w.proxy.URL()+"/v2/library/app/blobs/"+d.String())
			wantFile(t, body, want)
		}
		for _, d := range []digest.Digest{w.list.Digest, alone} {
			out := run(t, nil, curl, "-sSI", w.proxy.URL()+"/v2/library/app/manifests/"+d.String())
			status, header := parseHeader(t, out)
			if want := strconv.Itoa(len(w.list.Manifests[d].Bytes)); status != "200" || header.Get("Content-Length") != want || header.Get("Docker-Content-Digest") != d.String() {
				t.Errorf("HEAD %s: status %s, header %v; want length %s", d, status, header, want)
			}
		}
	})
	for _, r := range append(w.hub.Requests(), w.other.Requests()...) {
		if a := r.Header.Get("Authorization"); strings.Contains(a, "of-docker-hub") || strings.HasPrefix(a, "Basic ") {
			t.Errorf("the upstream was shown the client's Authorization: %s %s", r.Method, r.URL)
		}
	}
}

func parseHeader(t *testing.T, out string) (status string, h http.Header) {
	t.Helper()
	h = http.Header{}
	for i, line := range strings.Split(strings.TrimSpace(out), "\r\n") {
		if i == 0 {
			if f := strings.Fields(line); len(f) > 1 {
				status = f[1]
			}
			continue
		}
		if k, v, ok := strings.Cut(line, ": "); ok {
			h.Add(textproto.CanonicalMIMEHeaderKey(k), v)
		}
	}
	return status, h
}
