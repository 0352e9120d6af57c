package clients

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

// registriesConf writes what is offered to users of Podman and its kin.
func registriesConf(t *testing.T, host string) string {
	t.Helper()
	return write(t, t.TempDir(), "registries.conf", readyFile(t, "registries.conf", host))
}

func TestSkopeoInspectsAndCopiesAll(t *testing.T) {
	skopeo := need(t, "skopeo")
	w := newWorld(t)
	conf := registriesConf(t, w.proxy.Host())
	// As root it would note in /var/lib/containers/cache which blobs it has
	// seen; as anyone else it does that at home.
	env := []string{"_CONTAINERS_ROOTLESS_UID=1000"}
	w.twice(t, func(t *testing.T) {
		for ref, want := range map[string]*image.Image{
			"docker://docker.io/library/app:list":                         w.list,
			"docker://app:index":                                          w.index,
			"docker://ghcr.io/org/app:index":                              w.index,
			"docker://docker.io/library/app@" + w.list.Digest.String():    w.list,
			"docker://" + w.proxy.Host() + "/ghcr.io/org/app:index":       w.index,
			"docker://" + w.proxy.Host() + "/library/app:list":            w.list,
			"docker://" + w.proxy.Host() + "/docker.io/library/app:index": w.index,
		} {
			common := []string{"--registries-conf", conf, "--insecure-policy"}
			if got := run(t, env, skopeo, slices.Concat(common, []string{"inspect", "--tls-verify=false", "--raw", ref})...); got != string(want.Bytes()) {
				t.Errorf("inspect --raw %s: %d bytes, want %d", ref, len(got), len(want.Bytes()))
			}
			args := []string{"--override-os", "linux", "--override-arch", "amd64", "inspect", "--tls-verify=false", ref}
			mirrored := !strings.Contains(ref, w.proxy.Host())
			if mirrored {
				// skopeo lists tags at the original registry, mirror or not.
				args = append(args, "--no-tags")
			}
			var inspected struct {
				Digest   digest.Digest
				RepoTags []string
			}
			out := run(t, env, skopeo, slices.Concat(common, args)...)
			if err := json.Unmarshal([]byte(out), &inspected); err != nil || inspected.Digest != want.Digest || mirrored == (len(inspected.RepoTags) > 0) {
				t.Errorf("inspect %s: %v, %+v; want digest %s and tags", ref, err, inspected, want.Digest)
			}
			dir := t.TempDir()
			run(t, env, skopeo, slices.Concat(common, []string{"copy", "--all", "--src-tls-verify=false", ref, "dir:" + dir})...)
			wantFile(t, filepath.Join(dir, "manifest.json"), want.Bytes())
			for _, d := range want.Platforms {
				wantFile(t, filepath.Join(dir, d.Encoded()+".manifest.json"), want.Manifests[d].Bytes)
			}
			for d, b := range want.Blobs {
				wantFile(t, filepath.Join(dir, d.Encoded()), b)
			}
		}
	})
}
