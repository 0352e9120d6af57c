package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/regclient/regclient"
	"github.com/regclient/regclient/config"
	"github.com/regclient/regclient/scheme"
	"github.com/regclient/regclient/scheme/reg"
	"github.com/regclient/regclient/types/ref"
	orasremote "oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// lister is a client that lists too. It remembers nothing and hardly waits between its
// own tries.
type lister interface {
	// pull gets the manifest of a tag as the client pulls, by GET.
	pull(tag string) ([]byte, error)
	blob(d digest.Digest) ([]byte, error)
	tags() ([]string, error)
	// referrers gives digests; a client that doesn't list them gives errNoOperation.
	referrers(d digest.Digest) ([]string, error)
}

var errNoOperation = errors.New("the client has no such operation")

// patienceOfClients bounds one client's work, which may be with a registry that it cannot
// use.
const patienceOfClients = 30 * time.Second

type craneLister struct{ craneClient }

func listWithCrane(t *testing.T, host, repo string) lister {
	r, err := name.NewRepository(host+"/"+repo, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patienceOfClients)
	t.Cleanup(cancel)
	return craneLister{craneClient{r, []remote.Option{remote.WithContext(ctx), remote.WithAuth(authn.Anonymous),
		remote.WithRetryBackoff(remote.Backoff{Duration: time.Millisecond, Factor: 1, Steps: 2})}}}
}

func (c craneLister) pull(tag string) ([]byte, error) {
	got, err := remote.Get(c.repo.Tag(tag), c.opts...)
	if err != nil {
		return nil, err
	}
	return got.Manifest, nil
}

func (c craneLister) tags() ([]string, error) { return remote.List(c.repo, c.opts...) }

func (c craneLister) referrers(d digest.Digest) ([]string, error) {
	index, err := remote.Referrers(c.repo.Digest(d.String()), c.opts...)
	if err != nil {
		return nil, err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var digests []string
	for _, d := range m.Manifests {
		digests = append(digests, d.Digest.String())
	}
	return digests, nil
}

type regLister struct{ regClient }

func listWithRegclient(t *testing.T, host, repo string) lister {
	r, err := ref.New(host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patienceOfClients)
	t.Cleanup(cancel)
	cfg := config.HostNewName(host)
	cfg.TLS = config.TLSDisabled
	return regLister{regClient{ctx, regclient.New(regclient.WithConfigHost(*cfg), regclient.WithSlog(slog.New(slog.NewTextHandler(io.Discard, nil))),
		regclient.WithRegOpts(reg.WithDelay(time.Millisecond, 10*time.Millisecond), reg.WithRetryLimit(2))), r}}
}

func (c regLister) pull(tag string) ([]byte, error) {
	m, err := c.rc.ManifestGet(c.ctx, c.repo.SetTag(tag))
	if err != nil {
		return nil, err
	}
	return m.RawBody()
}

func (c regLister) tags() ([]string, error) {
	l, err := c.rc.TagList(c.ctx, c.repo, scheme.WithTagLimit(1000))
	if err != nil {
		return nil, err
	}
	return l.GetTags()
}

func (c regLister) referrers(d digest.Digest) ([]string, error) {
	l, err := c.rc.ReferrerList(c.ctx, c.repo.SetDigest(d.String()))
	if err != nil {
		return nil, err
	}
	var digests []string
	for _, d := range l.Descriptors {
		digests = append(digests, d.Digest.String())
	}
	return digests, nil
}

type orasLister struct{ orasClient }

func listWithORAS(t *testing.T, host, repo string) lister {
	r, err := orasremote.NewRepository(host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	r.PlainHTTP = true
	r.Client = &auth.Client{Client: http.DefaultClient}
	ctx, cancel := context.WithTimeout(t.Context(), patienceOfClients)
	t.Cleanup(cancel)
	return orasLister{orasClient{ctx, r}}
}

func (c orasLister) pull(tag string) ([]byte, error) {
	_, r, err := c.repo.Manifests().FetchReference(c.ctx, tag)
	return readAndClose(r, err)
}

func (c orasLister) tags() (all []string, err error) {
	err = c.repo.Tags(c.ctx, "", func(page []string) error { all = append(all, page...); return nil })
	return all, err
}

func (c orasLister) referrers(d digest.Digest) (digests []string, err error) {
	err = c.repo.Referrers(c.ctx, v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: d}, "", func(page []v1.Descriptor) error {
		for _, d := range page {
			digests = append(digests, d.Digest.String())
		}
		return nil
	})
	return digests, err
}

// skopeoLister is skopeo itself.
type skopeoLister struct {
	t      *testing.T
	binary string
	from   string
}

func (c *skopeoLister) run(args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), patienceOfClients)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.binary, append([]string{"--insecure-policy"}, args...)...)
	// As root it would note in /var/lib/containers/cache which blobs it has seen.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.t.TempDir(), "_CONTAINERS_ROOTLESS_UID=1000"}
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return out, err
}

// pull copies the image with all its layers.
func (c *skopeoLister) pull(tag string) ([]byte, error) {
	dir := c.t.TempDir()
	if _, err := c.run("copy", "--retry-times", "0", "--all", "--src-tls-verify=false", c.from+":"+tag, "dir:"+dir); err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(dir, "manifest.json"))
}

func (c *skopeoLister) blob(digest.Digest) ([]byte, error) { return nil, errNoOperation }

func (c *skopeoLister) tags() ([]string, error) {
	out, err := c.run("list-tags", "--retry-times", "0", "--tls-verify=false", c.from)
	if err != nil {
		return nil, err
	}
	var list struct{ Tags []string }
	err = json.Unmarshal(out, &list)
	return list.Tags, err
}

func (c *skopeoLister) referrers(digest.Digest) ([]string, error) { return nil, errNoOperation }

// did is what came of one operation of a client.
type did struct {
	got string
	err error
}

// doAll does all that a client can do with a repository of agreeing.
func doAll(c lister, i *image.Image) map[string]did {
	all := map[string]did{}
	note := func(what string, got string, err error) {
		if err != errNoOperation {
			all[what] = did{got, err}
		}
	}
	for _, tag := range []string{"app", "base"} {
		b, err := c.pull(tag)
		note("pull "+tag, digest.FromBytes(b).String(), err)
	}
	for _, d := range slices.Sorted(maps.Keys(i.Blobs)) {
		b, err := c.blob(d)
		note("blob "+d.String(), digest.FromBytes(b).String(), err)
	}
	list := func(what string, l []string, err error) {
		l = slices.Clone(l)
		slices.Sort(l)
		note(what, strings.Join(slices.Compact(l), " "), err)
	}
	tags, err := c.tags()
	list("tags", tags, err)
	referrers, err := c.referrers(i.Digest)
	list("referrers", referrers, err)
	return all
}

// What works directly works through the cache, with every client and every quirk of
// registries that we know: cold, and again.
func TestWhatWorksDirectlyWorksThroughTheCache(t *testing.T) {
	t.Parallel()
	clients := map[string]func(t *testing.T, host, repo string) lister{"crane": listWithCrane, "regclient": listWithRegclient, "oras": listWithORAS}
	if skopeo, err := exec.LookPath("skopeo"); err == nil {
		clients["skopeo"] = func(t *testing.T, host, repo string) lister {
			return &skopeoLister{t, skopeo, "docker://" + host + "/" + repo}
		}
	} else if os.Getenv("ENTREPOT_REQUIRE_CLIENTS") == "1" {
		t.Error("skopeo is not installed")
	}
	for _, q := range hub.Quirks() {
		t.Run(q.Name, func(t *testing.T) {
			// Some clients follow nobody to a private address: neither to a token server nor
			// to a CDN.
			h := hub.New(t, hub.Options{Auth: hub.Open, NoCDN: true})
			p := proxy.New(t, h)
			layer := image.Layer{Size: 100 << 10}
			if q.Large {
				layer.Size = 20 << 20
			}
			base := image.New(image.Options{Seed: 1})
			// Some clients read the first page only, or take for referrers what isn't.
			right := map[string]map[string]string{}
			images := map[string]*image.Image{}
			for n, client := range slices.Sorted(maps.Keys(clients)) {
				repo := "org/" + client
				i := image.New(image.Options{Seed: uint64(n) + 2, Layers: []image.Layer{layer, {}}})
				h.Push(repo, "app", i)
				h.Push(repo, "base", base) // that another repository may have brought in
				h.Push(repo, "c", base)
				of := i.Descriptor()
				var referrers []string
				for n := range 3 {
					a := image.Artifact(uint64(n)+40, "application/x.sig", 100, &of)
					h.Push(repo, "", a)
					referrers = append(referrers, a.Digest.String())
				}
				slices.Sort(referrers)
				right[client] = map[string]string{"tags": "app base c", "referrers": strings.Join(referrers, " ")}
				images[client] = i
			}
			for _, f := range q.Faults {
				h.Inject(f)
			}
			for client, connect := range clients {
				repo := "org/" + client
				direct := doAll(connect(t, h.Host(), repo), images[client])
				for _, state := range []string{"cold", "warm"} {
					through := doAll(connect(t, p.Host(), "docker.io/"+repo), images[client])
					for what, d := range direct {
						switch got := through[what]; {
						case d.err != nil: // so nothing is promised
						case got.err != nil:
							t.Errorf("%s, %s, %s: it works directly, and through the cache: %v", client, state, what, got.err)
						case got.got != d.got && got.got != right[client][what] && (got.got != "" || d.got == right[client][what]):
							t.Errorf("%s, %s, %s: directly %s, through the cache %s", client, state, what, d.got, got.got)
						}
					}
				}
				if q.Name == "none" {
					for what, d := range direct {
						if d.err != nil {
							t.Errorf("%s, %s: %v directly", client, what, d.err)
						}
					}
				}
			}
		})
	}
}
