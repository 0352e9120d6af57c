package e2e

import (
	"context"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// orasClient is oras-go, of which oras and helm are made.
type orasClient struct {
	ctx  context.Context
	repo *remote.Repository
}

func newORAS(t *testing.T, host, repo string) orasClient {
	t.Helper()
	r, err := remote.NewRepository(host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	r.PlainHTTP = true
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return orasClient{ctx, r}
}

func connectORAS(t *testing.T, host, repo string) client { return newORAS(t, host, repo) }

func (c orasClient) resolve(tag string) (digest.Digest, error) {
	d, err := c.repo.Resolve(c.ctx, tag)
	return d.Digest, err
}

func (c orasClient) manifest(d digest.Digest) ([]byte, error) {
	_, r, err := c.repo.Manifests().FetchReference(c.ctx, d.String())
	return readAndClose(r, err)
}

func (c orasClient) blob(d digest.Digest) ([]byte, error) {
	_, r, err := c.repo.Blobs().FetchReference(c.ctx, d.String())
	return readAndClose(r, err)
}

func TestORASPullsEverything(t *testing.T) { pullsEverything(t, connectORAS) }

func TestORASCopiesAGraphWithTheUpstreamGone(t *testing.T) {
	h, p := start(t, believing)
	for tag, i := range map[string]*image.Image{
		"index": image.Index(image.Options{Seed: 1}),
		"chart": image.HelmChart(2, "app", "1.2.3"),
		"512":   image.New(image.Options{Seed: 3, Algorithm: digest.SHA512}),
	} {
		h.Push("org/app", tag, i)
		for _, state := range []string{"upstream there", "upstream gone"} {
			c := newORAS(t, p.Host(), "docker.io/org/app")
			store := memory.New()
			root, err := oras.Copy(c.ctx, c.repo, tag, store, tag, oras.DefaultCopyOptions)
			if err != nil {
				t.Fatalf("%s, %s: %v", tag, state, err)
			}
			want := i.Descriptor()
			if root.Digest != want.Digest || root.MediaType != want.MediaType || root.Size != want.Size {
				t.Errorf("%s, %s: want %+v, got %+v", tag, state, want, root)
			}
			h.Down()
		}
		if err := h.Up(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestORASListsTagsAndReferrersWithTheUpstreamGone(t *testing.T) {
	for name, api := range map[string]bool{"referrers API": true, "referrers tag": false} {
		t.Run(name, func(t *testing.T) {
			h := hub.New(t, hub.Options{PageSize: 10})
			p := proxy.New(t, h)
			i := referring(h, "org/app")
			if !api {
				h.UseReferrersAPI(false)
				h.TagReferrers("org/app", i.Digest)
			}
			tags := manyTags(h, "org/app")
			for _, state := range []string{"upstream there", "upstream gone"} {
				c := newORAS(t, p.Host(), "docker.io/org/app")
				var got []string
				if err := c.repo.Tags(c.ctx, "", func(page []string) error { got = append(got, page...); return nil }); err != nil {
					t.Fatalf("%s: %v", state, err)
				}
				for _, tag := range tags {
					if !slices.Contains(got, tag) {
						t.Errorf("%s: want %s among the tags, got %v", state, tag, got)
					}
				}
				for kind, want := range map[string]int{"": 3, "application/x.sbom": 2, "application/x.sig": 1, "application/x.none": 0} {
					var found []v1.Descriptor
					err := c.repo.Referrers(c.ctx, i.Descriptor(), kind, func(page []v1.Descriptor) error { found = append(found, page...); return nil })
					if err != nil || len(found) != want {
						t.Errorf("%s: referrers of type %q: want %d, got %+v, %v", state, kind, want, found, err)
					}
				}
				h.Down()
			}
		})
	}
}
