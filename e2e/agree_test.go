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
	"sync"
	"sync/atomic"
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
	"golang.org/x/sync/errgroup"
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
const patienceOfClients = 40 * time.Second

type craneLister struct{ craneClient }

func listWithCrane(t *testing.T, host, repo string, as account) lister {
	r, err := name.NewRepository(host+"/"+repo, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patienceOfClients)
	t.Cleanup(cancel)
	who := authn.Anonymous
	if as.user != "" {
		who = &authn.Basic{Username: as.user, Password: as.password}
	}
	return craneLister{craneClient{r, []remote.Option{remote.WithContext(ctx), remote.WithAuth(who),
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

func listWithRegclient(t *testing.T, host, repo string, as account) lister {
	r, err := ref.New(host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patienceOfClients)
	t.Cleanup(cancel)
	cfg := config.HostNewName(host)
	cfg.TLS, cfg.User, cfg.Pass = config.TLSDisabled, as.user, as.password
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

func listWithORAS(t *testing.T, host, repo string, as account) lister {
	r, err := orasremote.NewRepository(host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	r.PlainHTTP = true
	r.Client = &auth.Client{Client: http.DefaultClient, Credential: auth.StaticCredential(host, auth.Credential{Username: as.user, Password: as.password})}
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
	ctx    context.Context
	binary string
	from   string
	as     account
}

// login is the option that gives the account.
func (c *skopeoLister) login(option string) []string {
	if c.as.user == "" {
		return nil
	}
	return []string{option, c.as.user + ":" + c.as.password}
}

func (c *skopeoLister) run(args ...string) ([]byte, error) {
	cmd := exec.CommandContext(c.ctx, c.binary, append([]string{"--insecure-policy"}, args...)...)
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
	args := append([]string{"copy", "--retry-times", "0", "--all", "--src-tls-verify=false"}, c.login("--src-creds")...)
	if _, err := c.run(append(args, c.from+":"+tag, "dir:"+dir)...); err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(dir, "manifest.json"))
}

func (c *skopeoLister) blob(digest.Digest) ([]byte, error) { return nil, errNoOperation }

func (c *skopeoLister) tags() ([]string, error) {
	args := append([]string{"list-tags", "--retry-times", "0", "--tls-verify=false"}, c.login("--creds")...)
	out, err := c.run(append(args, c.from)...)
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

// doAll does all that a client can do with a repository of agreeing, but for what without
// lists.
func doAll(c lister, i *image.Image, without map[string]bool) map[string]did {
	all := map[string]did{}
	note := func(what string, do func() (string, error)) {
		if without[what] {
			return
		}
		if got, err := do(); err != errNoOperation {
			all[what] = did{got, err}
		}
	}
	content := func(b []byte, err error) (string, error) { return digest.FromBytes(b).String(), err }
	list := func(l []string, err error) (string, error) {
		l = slices.Clone(l)
		slices.Sort(l)
		return strings.Join(slices.Compact(l), " "), err
	}
	for _, tag := range []string{"app", "base"} {
		note("pull "+tag, func() (string, error) { return content(c.pull(tag)) })
	}
	for _, d := range slices.Sorted(maps.Keys(i.Blobs)) {
		note("blob "+d.String(), func() (string, error) { return content(c.blob(d)) })
	}
	note("tags", func() (string, error) { return list(c.tags()) })
	note("referrers", func() (string, error) { return list(c.referrers(i.Digest)) })
	return all
}

// rightFor is what doAll gives where all is well.
func rightFor(i, base *image.Image, referrers string) map[string]string {
	right := map[string]string{"pull app": i.Digest.String(), "pull base": base.Digest.String(), "tags": "app base c", "referrers": referrers}
	for d := range i.Blobs {
		right["blob "+d.String()] = d.String()
	}
	return right
}

// agrees says whether what came through the cache is as good as what came directly.
func agrees(direct, through, right string) bool {
	// Some clients read the first page of a list only, or take for referrers what isn't.
	return through == direct || through == right || through == "" && direct != right
}

// account is how a client logs in; it is anonymous if user is empty.
type account struct{ user, password string }

// quirky is a registry with a quirk, and a proxy in front of it.
type quirky struct {
	// host is where clients reach the registry directly.
	host  string
	proxy *proxy.Proxy
	// direct is the account that the registry wants. Entrepot has it too, and wants none.
	direct account
	// content is the hub that has the content.
	content *hub.Hub
	// sever loses all connections that exist.
	sever func()
}

func startQuirky(t *testing.T, q hub.Quirk) *quirky {
	// Some clients follow nobody to a private address: neither to a token server nor
	// to a CDN.
	o := hub.Options{Auth: hub.Open, NoCDN: true}
	var settings []string
	s := &quirky{sever: func() {}}
	if q.Login {
		o.Auth, o.Users, s.direct = hub.Basic, map[string]string{"alice": secret}, account{"alice", secret}
		settings = append(settings, alicesCredentials)
	}
	if q.Tokens {
		o.Auth = hub.Bearer
	}
	h := hub.New(t, o)
	s.host, s.content = h.Host(), h
	if q.RedirectTo != 0 {
		s.content = hub.New(t, hub.Options{Auth: hub.Open, NoCDN: true})
		h.Inject(hub.RedirectAll(q.RedirectTo, s.content.URL()))
		settings = append(settings, fmt.Sprintf("redirect_hosts: [%q]", s.content.Host()))
	}
	if q.Severed {
		w := hub.NewWire(t, h)
		s.host = strings.TrimPrefix(w.URL(h.URL()), "http://")
		s.sever = func() { w.Lose(); w.Mend() }
		settings = append(settings, fmt.Sprintf("endpoints: [%q]", w.URL(h.URL())))
	}
	for _, f := range q.Faults {
		h.Inject(f)
	}
	s.proxy = proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: docker(settings...)})
	return s
}

// What works directly works through the cache, with every client and every quirk of
// registries that we know: cold, and again.
func TestWhatWorksDirectlyWorksThroughTheCache(t *testing.T) {
	t.Parallel()
	clients := map[string]func(t *testing.T, host, repo string, as account) lister{"crane": listWithCrane, "regclient": listWithRegclient, "oras": listWithORAS}
	if skopeo, err := exec.LookPath("skopeo"); err == nil {
		clients["skopeo"] = func(t *testing.T, host, repo string, as account) lister {
			ctx, cancel := context.WithTimeout(t.Context(), patienceOfClients)
			t.Cleanup(cancel)
			return &skopeoLister{t, ctx, skopeo, "docker://" + host + "/" + repo, as}
		}
	} else if os.Getenv("ENTREPOT_REQUIRE_CLIENTS") == "1" {
		t.Error("skopeo is not installed")
	}
	base := image.New(image.Options{Seed: 1})
	images := map[bool]map[string]*image.Image{false: {}, true: {}} // by whether they are large
	for n, client := range slices.Sorted(maps.Keys(clients)) {
		for large, size := range map[bool]int{false: 100 << 10, true: 20 << 20} {
			images[large][client] = image.New(image.Options{Seed: uint64(n) + 2, Layers: []image.Layer{{Size: size}, {}}})
		}
	}
	// Most of a row is waiting.
	var rows errgroup.Group
	rows.SetLimit(4)
	for _, q := range hub.Quirks() {
		rows.Go(func() error {
			t.Run(q.Name, func(t *testing.T) {
				s := startQuirky(t, q)
				var worked atomic.Int64 // operations that work directly
				var connected, severed sync.WaitGroup
				connected.Add(len(clients))
				severed.Go(func() { connected.Wait(); s.sever() })
				var work errgroup.Group
				for client, connect := range clients {
					repo, i := "org/"+client, images[q.Large][client]
					right := rightFor(i, base, pushQuirky(s, q, repo, i, base))
					work.Go(func() error {
						direct := doAll(connect(t, s.host, repo, s.direct), i, nil)
						fails := map[string]bool{}
						for what, d := range direct {
							isList := what == "tags" || what == "referrers"
							switch {
							case d.err == nil && (isList || d.got == right[what]):
								worked.Add(1)
							case q.Name == "none":
								t.Errorf("%s, %s: directly: %s %v", client, what, d.got, d.err)
							case !q.Beyond: // so nothing is promised
								fails[what] = true
							}
						}
						if q.Severed {
							get(t, s.proxy, "/v2/docker.io/"+repo+"/manifests/c")
						}
						connected.Done()
						severed.Wait()
						for _, state := range []string{"cold", "warm"} {
							for what, got := range doAll(connect(t, s.proxy.Host(), "docker.io/"+repo, account{}), i, fails) {
								want := direct[what]
								if q.Beyond {
									want.got = right[what]
								}
								switch {
								case got.err != nil:
									t.Errorf("%s, %s, %s: it works directly, and through the cache: %v", client, state, what, got.err)
								case !agrees(want.got, got.got, right[what]):
									t.Errorf("%s, %s, %s: directly %s, through the cache %s", client, state, what, want.got, got.got)
								}
							}
						}
						return nil
					})
				}
				_ = work.Wait() // nothing gives an error
				if worked.Load() == 0 != q.Beyond {
					t.Errorf("%d operations work directly: a row is beyond clients if none does", worked.Load())
				}
			})
			return nil
		})
	}
	_ = rows.Wait() // nothing gives an error
}

// pushQuirky pushes i, which has three referrers, beside base, which another repository
// may have brought in. It returns the referrers' digests.
func pushQuirky(s *quirky, q hub.Quirk, repo string, i, base *image.Image) string {
	s.content.Push(repo, "app", i)
	s.content.Push(repo, "base", base)
	s.content.Push(repo, "c", base)
	of := i.Descriptor()
	var referrers []string
	for n := range 3 {
		a := image.Artifact(uint64(n)+40, "application/x.sig", 100, &of)
		s.content.Push(repo, "", a)
		referrers = append(referrers, a.Digest.String())
	}
	if q.Login {
		s.content.MakePrivate(repo, s.direct.user)
	}
	slices.Sort(referrers)
	return strings.Join(referrers, " ")
}
