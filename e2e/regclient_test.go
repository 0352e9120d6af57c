package e2e

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/regclient/regclient"
	"github.com/regclient/regclient/config"
	"github.com/regclient/regclient/scheme"
	"github.com/regclient/regclient/types/descriptor"
	"github.com/regclient/regclient/types/ref"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// regClient is regclient, of which regctl is made.
type regClient struct {
	ctx  context.Context
	rc   *regclient.RegClient
	repo ref.Ref
}

func newRegClient(t *testing.T, host, repo string) regClient {
	t.Helper()
	r, err := ref.New(host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	cfg := config.HostNewName(host)
	cfg.TLS = config.TLSDisabled
	return regClient{ctx, regclient.New(regclient.WithConfigHost(*cfg), regclient.WithSlog(slog.New(slog.NewTextHandler(io.Discard, nil)))), r}
}

func connectRegClient(t *testing.T, host, repo string) client {
	return newRegClient(t, host, repo)
}

func (c regClient) resolve(tag string) (digest.Digest, error) {
	m, err := c.rc.ManifestHead(c.ctx, c.repo.SetTag(tag))
	if err != nil {
		return "", err
	}
	return m.GetDescriptor().Digest, nil
}

func (c regClient) manifest(d digest.Digest) ([]byte, error) {
	m, err := c.rc.ManifestGet(c.ctx, c.repo.SetDigest(d.String()))
	if err != nil {
		return nil, err
	}
	return m.RawBody()
}

func (c regClient) blob(d digest.Digest) ([]byte, error) {
	r, err := c.rc.BlobGet(c.ctx, c.repo, descriptor.Descriptor{Digest: d})
	if err != nil {
		return nil, err
	}
	return readAndClose(r, nil)
}

func TestRegclientPullsEverything(t *testing.T) { pullsEverything(t, connectRegClient) }

func TestRegclientListsTagsAndReferrersWithTheUpstreamGone(t *testing.T) {
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
				c := newRegClient(t, p.Host(), "docker.io/org/app")
				l, err := c.rc.TagList(c.ctx, c.repo, scheme.WithTagLimit(100))
				if err != nil {
					t.Fatalf("%s: %v", state, err)
				}
				got, err := l.GetTags()
				if err != nil {
					t.Fatalf("%s: %v", state, err)
				}
				for _, tag := range tags {
					if !slices.Contains(got, tag) {
						t.Errorf("%s: want %s among the tags, got %v", state, tag, got)
					}
				}
				rl, err := c.rc.ReferrerList(c.ctx, c.repo.SetDigest(i.Digest.String()))
				if err != nil {
					t.Fatalf("%s: %v", state, err)
				}
				if len(rl.Descriptors) != 3 {
					t.Errorf("%s: want 3 referrers, got %+v", state, rl.Descriptors)
				}
				h.Down()
			}
		})
	}
}

func TestRegclientCopiesAnImageWithItsReferrersToADirectory(t *testing.T) {
	h, p := start(t, believing)
	i := referring(h, "org/app")
	c := newRegClient(t, p.Host(), "docker.io/org/app:1.0")
	to, err := ref.New("ocidir://" + t.TempDir() + ":1.0")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.rc.ImageCopy(c.ctx, c.repo, to, regclient.ImageWithReferrers()); err != nil {
		t.Fatal(err)
	}
	m, err := c.rc.ManifestGet(c.ctx, to)
	if err != nil {
		t.Fatal(err)
	}
	b, err := m.RawBody()
	if err != nil {
		t.Fatal(err)
	}
	wantBytes(t, "copied", i.Bytes(), b)
	rl, err := c.rc.ReferrerList(c.ctx, to.SetDigest(i.Digest.String()))
	if err != nil || len(rl.Descriptors) != 3 {
		t.Errorf("want 3 referrers, got %+v, %v", rl.Descriptors, err)
	}
}
