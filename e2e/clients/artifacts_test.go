package clients

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

// wantLayout checks an OCI layout for everything of an image.
func wantLayout(t *testing.T, dir string, want *image.Image) {
	t.Helper()
	for d, m := range want.Manifests {
		wantFile(t, filepath.Join(dir, "blobs", d.Algorithm().String(), d.Encoded()), m.Bytes)
	}
	for d, b := range want.Blobs {
		wantFile(t, filepath.Join(dir, "blobs", d.Algorithm().String(), d.Encoded()), b)
	}
}

func TestRegctlCopiesAll(t *testing.T) {
	regctl := need(t, "regctl")
	w := newWorld(t)
	env := []string{"REGCTL_CONFIG=" + filepath.Join(t.TempDir(), "config.json")}
	run(t, env, regctl, "registry", "set", "--tls", "disabled", w.proxy.Host())
	w.twice(t, func(t *testing.T) {
		for repo, want := range map[string]*image.Image{
			"/library/app:list": w.list, "/ghcr.io/org/app:index": w.index,
			"/library/app@" + w.list.Digest.String(): w.list, "/ghcr.io/org/app@" + w.index.Digest.String(): w.index,
		} {
			ref := w.proxy.Host() + repo
			if got := run(t, env, regctl, "manifest", "get", "--format", "raw-body", ref); got != string(want.Bytes()) {
				t.Errorf("regctl manifest get %s: %d bytes, want %d", repo, len(got), len(want.Bytes()))
			}
			dir := t.TempDir()
			run(t, env, regctl, "image", "copy", ref, "ocidir://"+dir+":1")
			wantLayout(t, dir, want)
		}
		if got := run(t, env, regctl, "tag", "ls", w.proxy.Host()+"/ghcr.io/org/app"); got != "index\nlist\n" {
			t.Errorf("regctl tag ls: %q", got)
		}
	})
}

// TestORASFindsWhatIsAttached copies images, and finds and pulls what is attached to them: an SBOM,
// and a signature as today's cosign attaches it, by the referrers API. An older cosign's signature
// has a tag of its own.
func TestORASFindsWhatIsAttached(t *testing.T) {
	oras, crane := need(t, "oras"), need(t, "crane")
	w := newWorld(t)
	subject := w.index.Descriptor()
	const bundle, sbom = "application/vnd.dev.sigstore.bundle.v0.3+json", "application/spdx+json"
	attached := map[string]*image.Image{bundle: image.Artifact(11, bundle, 4000, &subject), sbom: image.Artifact(12, sbom, 100<<10, &subject)}
	for _, a := range attached {
		w.other.Push("org/app", "", a)
	}
	signature := image.Signature(13, subject, "ghcr.io/org/app")
	tag := image.SignatureTag(subject.Digest)
	w.other.Push("org/app", tag, signature)
	repo := w.proxy.Host() + "/ghcr.io/org/app"
	w.twice(t, func(t *testing.T) {
		for ref, want := range map[string]*image.Image{"/library/app:list": w.list, "/ghcr.io/org/app@" + w.index.Digest.String(): w.index} {
			dir := t.TempDir()
			run(t, nil, oras, "copy", "--from-plain-http", w.proxy.Host()+ref, "--to-oci-layout", dir+":1")
			wantLayout(t, dir, want)
		}
		var found struct {
			Referrers []struct {
				Digest       digest.Digest
				ArtifactType string
			}
		}
		out := run(t, nil, oras, "discover", "--plain-http", "--format", "json", repo+":index")
		if err := json.Unmarshal([]byte(out), &found); err != nil {
			t.Fatal(err, out)
		}
		got := map[string]digest.Digest{}
		for _, r := range found.Referrers {
			got[r.ArtifactType] = r.Digest
		}
		for artifactType, a := range attached {
			if got[artifactType] != a.Digest {
				t.Errorf("oras discover finds %v, want %s for %s", got, a.Digest, artifactType)
			}
			dir := t.TempDir()
			run(t, nil, oras, "copy", "--from-plain-http", repo+"@"+a.Digest.String(), "--to-oci-layout", dir+":1")
			wantLayout(t, dir, a)
		}
		if got := run(t, nil, crane, "--insecure", "manifest", repo+":"+tag); got != string(signature.Bytes()) {
			t.Errorf("crane manifest %s: %q", tag, got)
		}
		if got := run(t, nil, crane, "--insecure", "blob", repo+"@"+signature.Layers("")[0].Digest.String()); !strings.Contains(got, subject.Digest.String()) {
			t.Errorf("the signature's payload is %q", got)
		}
	})
}
