package e2e

import (
	"context"
	"slices"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/name"
	gcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

// craneClient is go-containerregistry, of which crane is made.
type craneClient struct {
	repo name.Repository
	opts []remote.Option
}

func connectCrane(t *testing.T, host, repo string) client {
	t.Helper()
	r, err := name.NewRepository(host+"/"+repo, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return craneClient{r, []remote.Option{remote.WithContext(ctx), remote.WithAuth(authn.Anonymous)}}
}

func (c craneClient) resolve(tag string) (digest.Digest, error) {
	head, err := remote.Head(c.repo.Tag(tag), c.opts...)
	if err != nil {
		return "", err
	}
	got, err := remote.Get(c.repo.Tag(tag), c.opts...)
	if err != nil {
		return "", err
	}
	if got.Digest != head.Digest || got.MediaType != head.MediaType || got.Size != head.Size {
		return "", &mismatch{head, &got.Descriptor}
	}
	return digest.Digest(got.Digest.String()), nil
}

// mismatch is a HEAD that told something else than the GET.
type mismatch struct{ head, get *gcr.Descriptor }

func (m *mismatch) Error() string {
	return "HEAD tells " + m.head.Digest.String() + " and GET " + m.get.Digest.String() + ", or they differ in type or size"
}

func (c craneClient) manifest(d digest.Digest) ([]byte, error) {
	got, err := remote.Get(c.repo.Digest(d.String()), c.opts...)
	if err != nil {
		return nil, err
	}
	return got.Manifest, nil
}

func (c craneClient) blob(d digest.Digest) ([]byte, error) {
	l, err := remote.Layer(c.repo.Digest(d.String()), c.opts...)
	if err != nil {
		return nil, err
	}
	return readAndClose(l.Compressed())
}

func TestCranePullsEverything(t *testing.T) { pullsEverything(t, connectCrane) }

func TestCraneDoesWhatPeopleTypeWithTheUpstreamGone(t *testing.T) {
	h, p := start(t, believing)
	i := image.Index(image.Options{Seed: 1, Flavour: image.Docker})
	h.Push("library/app", "1.0", i)
	tags := manyTags(h, "library/app")
	all := append([]string{"1.0"}, tags...)
	for _, state := range []string{"upstream there", "upstream gone"} {
		for _, repo := range []string{p.Host() + "/docker.io/library/app", p.Host() + "/library/app", p.Host() + "/docker.io/app"} {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			opts := []crane.Option{crane.Insecure, crane.WithContext(ctx), crane.WithAuth(authn.Anonymous)}
			if d, err := crane.Digest(repo+":1.0", opts...); err != nil || d != i.Digest.String() {
				t.Errorf("%s, %s: crane digest: want %s, got %s, %v", state, repo, i.Digest, d, err)
			}
			b, err := crane.Manifest(repo+":1.0", opts...)
			if err != nil {
				t.Errorf("%s, %s: crane manifest: %v", state, repo, err)
			}
			wantBytes(t, "crane manifest", i.Bytes(), b)
			if got, err := crane.ListTags(repo, opts...); err != nil || !slices.Equal(got, all) {
				t.Errorf("%s, %s: crane ls: want %v, got %v, %v", state, repo, all, got, err)
			}
			for _, platform := range image.Platforms {
				pl, err := gcr.ParsePlatform(platform)
				if err != nil {
					t.Fatal(err)
				}
				img, err := crane.Pull(repo+":1.0", append(opts, crane.WithPlatform(pl))...)
				if err != nil {
					t.Fatalf("%s, %s: crane pull --platform %s: %v", state, repo, platform, err)
				}
				if d, err := img.Digest(); err != nil || d.String() != i.Platforms[platform].String() {
					t.Errorf("%s: want %s, got %s, %v", platform, i.Platforms[platform], d, err)
				}
				// Digests, sizes and diff IDs of all that is in it.
				if err := validate.Image(img); err != nil {
					t.Errorf("%s, %s, %s: %v", state, repo, platform, err)
				}
			}
			cancel()
		}
		p.WaitIdle(t)
		h.Down()
	}
}
