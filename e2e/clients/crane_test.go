package clients

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

func TestCraneDoesWhatPeopleType(t *testing.T) {
	crane := need(t, "crane")
	w := newWorld(t)
	w.twice(t, func(t *testing.T) {
		for repo, want := range map[string]*image.Image{"/library/app:list": w.list, "/ghcr.io/org/app:index": w.index} {
			ref := w.proxy.Host() + repo
			if got := run(t, nil, crane, "--insecure", "manifest", ref); got != string(want.Bytes()) {
				t.Errorf("crane manifest %s: %d bytes, want %d", repo, len(got), len(want.Bytes()))
			}
			if got := run(t, nil, crane, "--insecure", "digest", ref); strings.TrimSpace(got) != want.Digest.String() {
				t.Errorf("crane digest %s: %s, want %s", repo, got, want.Digest)
			}
			name, tag, _ := strings.Cut(repo, ":")
			if got := run(t, nil, crane, "--insecure", "ls", w.proxy.Host()+name); !strings.Contains(got, tag+"\n") {
				t.Errorf("crane ls %s: %q, want %s in it", name, got, tag)
			}
			for platform, d := range want.Platforms {
				if got := run(t, nil, crane, "--insecure", "digest", "--platform", platform, ref); strings.TrimSpace(got) != d.String() {
					t.Errorf("crane digest --platform %s %s: %s, want %s", platform, repo, got, d)
				}
				dir := filepath.Join(t.TempDir(), "layout")
				run(t, nil, crane, "--insecure", "pull", "--platform", platform, "--format", "oci", ref, dir)
				wantFile(t, filepath.Join(dir, "blobs", "sha256", d.Encoded()), want.Manifests[d].Bytes)
				for _, l := range want.Layers(platform) {
					wantFile(t, filepath.Join(dir, "blobs", "sha256", l.Digest.Encoded()), want.Blobs[l.Digest])
				}
			}
		}
	})
}
