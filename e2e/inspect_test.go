package e2e

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// bothWays runs check on the running proxy and then on its directory, and checks that
// both print the same.
func bothWays(t *testing.T, p *proxy.Proxy, check func() []string) {
	t.Helper()
	running := check()
	p.Stop(t)
	stopped := check()
	for i := range running {
		if timeless(running[i]) != timeless(stopped[i]) {
			t.Errorf("running it prints\n%s\nand stopped\n%s", running[i], stopped[i])
		}
	}
}

// passing is what a command prints that changes as time passes: how long ago something
// was, and uses, which are written down some seconds after they happen.
var passing = regexp.MustCompile(`(?m)[^\n]* ago\)?$|"used": "[^"]*"|"uses": \d+`)

// timeless gives what a command prints without what changes as time passes.
func timeless(out string) string { return passing.ReplaceAllString(out, "") }

func TestLsListsWhatIsCached(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	operate(t, p, "ls").want(t, 0, "REFERENCE", "0 images, 0B on disk")
	i, other := image.Index(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
	h.Push("library/app", "1.0", i)
	h.Push("org/tool", "2", other)
	amd64 := i.Platforms["linux/amd64"]
	get(t, p, "/v2/library/app/manifests/1.0")
	get(t, p, "/v2/library/app/manifests/"+amd64.String())
	for _, l := range i.Layers("linux/amd64") {
		get(t, p, "/v2/library/app/blobs/"+l.Digest.String())
	}
	get(t, p, "/v2/library/app/blobs/"+i.Parsed(amd64).Config.Digest.String())
	get(t, p, "/v2/org/tool/manifests/"+other.Digest.String())
	p.WaitIdle(t)
	before := h.Counts()
	bothWays(t, p, func() []string {
		all := operate(t, p, "ls")
		all.want(t, 0, "docker.io/library/app:1.0 ", i.Digest.String()[:19], "linux/amd64 (1 of 3)", "docker.io/org/tool@sha256:", other.Digest.String()[:19], "(0 of 1)", "2 images")
		one := operate(t, p, "ls", "app:1.*", "--output", "json")
		var list struct {
			Images []struct {
				Reference string
				Digest    digest.Digest
				Platforms []struct {
					Name  string
					Whole bool
				}
				Size int64
			}
			Size int64
		}
		if err := json.Unmarshal([]byte(one.out), &list); err != nil || len(list.Images) != 1 || list.Images[0].Digest != i.Digest || list.Size != list.Images[0].Size {
			t.Errorf("%v in\n%s%s", err, one.out, one.err)
		} else if got := list.Images[0].Platforms; len(got) != 3 || got[0].Name != "linux/amd64" || !got[0].Whole || got[1].Whole {
			t.Errorf("platforms %+v", got)
		}
		operate(t, p, "ls", "org/*").want(t, 0, "docker.io/org/tool", "1 image,")
		operate(t, p, "ls", "nothing").want(t, 0, "0 images, 0B on disk")
		operate(t, p, "ls", "a", "b").want(t, 2, "at most 1 arg")
		operate(t, p, "ls", "-o", "xml").want(t, 2, "give table or json")
		return []string{one.out}
	})
	wantUnmoved(t, before, h.Counts())
}

func TestInspectShowsWhatIsCachedAndWhatIsNot(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	h.LimitPulls(100, 100, 3600)
	i := image.Index(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	sbom := image.Artifact(9, "application/spdx+json", 100, new(i.Descriptor()))
	h.Push("library/app", "", sbom)
	amd64, arm64 := i.Platforms["linux/amd64"], i.Platforms["linux/arm64"]
	signature := image.Signature(7, i.Descriptor(), "docker.io/library/app")
	h.Push("library/app", image.SignatureTag(i.Digest), signature)

	// Of an image of which nothing is here the index costs a pull, and each manifest one.
	operate(t, p, "inspect", "app:1.0").want(t, 0, "docker.io/library/app:1.0\n", i.Digest.String(), amd64.String(), `cmd `, "created", "referrer  ", sbom.Digest.String(), "application/spdx+json")
	operate(t, p, "ls").want(t, 0, "0 images, 0B on disk")
	if n := 100 - h.PullsLeft(); n != 2 {
		t.Errorf("inspect took %d pulls of the upstream, want the index and linux/amd64's manifest", n)
	}
	operate(t, p, "inspect", "--cached", "app:1.0").want(t, 1, "docker.io/library/app:1.0 is not in the cache")

	get(t, p, "/v2/library/app/manifests/1.0")
	get(t, p, "/v2/library/app/manifests/"+amd64.String())
	get(t, p, "/v2/library/app/blobs/"+i.Parsed(amd64).Config.Digest.String())
	get(t, p, "/v2/library/app/manifests/"+image.SignatureTag(i.Digest))
	p.WaitIdle(t)
	left := h.PullsLeft()
	bothWays(t, p, func() []string {
		table := operate(t, p, "inspect", "--cached", "app:1.0")
		table.want(t, 0, "index  ", "  linux/amd64  ", "    layer  ", "  linux/arm64  ", "  signature  ")
		cached := func(what, want string) {
			t.Helper()
			for line := range strings.Lines(table.out) {
				if words := strings.Fields(line); len(words) > 4 && (words[0] == what || words[1] == what) {
					if words[3] != want {
						t.Errorf("%s is cached: %s, want %s in %q", what, words[3], want, line)
					}
					return
				}
			}
			t.Errorf("no line tells of %s", what)
		}
		cached(amd64.String(), "yes")
		cached(arm64.String(), "no")
		cached("config", "yes")
		cached("layer", "no")
		cached(signature.Digest.String(), "yes")
		asJSON := operate(t, p, "inspect", "--cached", "--output", "json", "app@"+amd64.String())
		var doc struct {
			Reference string
			Image     struct {
				Digest digest.Digest
				Cached bool
				Config struct{ Platform string }
				Blobs  []struct {
					Kind   string
					Cached bool
				}
			}
		}
		if err := json.Unmarshal([]byte(asJSON.out), &doc); err != nil || doc.Image.Digest != amd64 || !doc.Image.Cached || doc.Image.Config.Platform != "linux/amd64" ||
			len(doc.Image.Blobs) < 2 || doc.Image.Blobs[0].Kind != "config" || !doc.Image.Blobs[0].Cached || doc.Image.Blobs[1].Cached {
			t.Errorf("%v in\n%s%s", err, asJSON.out, asJSON.err)
		}
		raw := operate(t, p, "inspect", "--raw", "app:1.0")
		if raw.out != string(i.Bytes()) || raw.code != 0 {
			t.Errorf("--raw: exit code %d, %d bytes, want %d", raw.code, len(raw.out), len(i.Bytes()))
		}
		raw = operate(t, p, "inspect", "--raw", "--platform", "linux/amd64", "app:1.0")
		if raw.out != string(i.Manifests[amd64].Bytes) {
			t.Errorf("--raw --platform: %d bytes, want %d", len(raw.out), len(i.Manifests[amd64].Bytes))
		}
		operate(t, p, "inspect", "--platform", "linux/riscv64", "--cached", "app:1.0").want(t, 1, "has no manifest for linux/riscv64; it is there for linux/amd64, linux/arm64")
		operate(t, p, "inspect", "--platform", "amd64", "app:1.0").want(t, 2, "os/arch")
		operate(t, p, "inspect", "--raw", "--platform", "all", "app:1.0").want(t, 2, "one platform")
		operate(t, p, "inspect", "--raw", "--verify", "app:1.0").want(t, 2, "--raw")
		operate(t, p, "inspect", "No Such Name").want(t, 2, "is no reference")
		operate(t, p, "inspect", "quay.example.test/app:1").want(t, 1, "not configured")
		operate(t, p, "inspect").want(t, 2, "arg")
		return []string{table.out, asJSON.out}
	})
	if n := left - h.PullsLeft(); n != 0 {
		t.Errorf("what is cached took %d pulls", n)
	}
	// What is not here is asked for also without a proxy that runs.
	operate(t, p, "inspect", "--platform", "linux/arm64", "app:1.0").want(t, 0, arm64.String())
	if n := left - h.PullsLeft(); n != 1 {
		t.Errorf("one manifest that is missing took %d pulls", n)
	}
	operate(t, p, "inspect", "app:none").want(t, 1, "none")
}

func TestInspectVerifiesWhatIsCachedAndWhatIsNot(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	operate(t, p, "inspect", "--verify", "app:1.0").want(t, 0, "(verified)")
	operate(t, p, "ls").want(t, 0, "0 images")
	get(t, p, "/v2/library/app/manifests/1.0")
	pullRaw(t, p, "library/app", i)
	p.WaitIdle(t)
	before := h.Counts()
	operate(t, p, "inspect", "--verify", "--cached", "app:1.0").want(t, 0, "(verified)")
	wantUnmoved(t, before, h.Counts())
	layer := i.Layers("")[0].Digest
	b, err := os.ReadFile(blobFile(p, layer))
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(blobFile(p, layer), b, 0o600); err != nil {
		t.Fatal(err)
	}
	bad := operate(t, p, "inspect", "--verify", "--cached", "app:1.0", "-o", "json")
	bad.want(t, 1, `"bad": 1`, "not the digest's", "could not be verified")
	if _, err := os.Stat(blobFile(p, layer)); !os.IsNotExist(err) {
		t.Errorf("what is damaged is still there: %v", err)
	}
}

func TestPinsAreKeptByTheRunningProxyAndWithoutIt(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	operate(t, p, "pin", "app:1.0").want(t, 1, "docker.io/library/app:1.0 is not in the cache", "entrepot warm docker.io/library/app:1.0")
	operate(t, p, "unpin", "app:1.0").want(t, 0, "docker.io/library/app:1.0 was not pinned")
	get(t, p, "/v2/library/app/manifests/1.0")
	pullRaw(t, p, "library/app", i)
	p.WaitIdle(t)
	bothWays(t, p, func() []string {
		pinned := operate(t, p, "pin", "app:1.0")
		pinned.want(t, 0, "docker.io/library/app:1.0 is pinned: ", " on disk")
		operate(t, p, "pin", "app:1.0").want(t, 0, "docker.io/library/app:1.0 was pinned before: ")
		list := operate(t, p, "ls", "--pinned", "-o", "json")
		list.want(t, 0, `"pinned": true`)
		operate(t, p, "ls").want(t, 0, "PINNED", "yes")
		unpinned := operate(t, p, "unpin", "app:1.0", "-o", "json")
		unpinned.want(t, 0, `"changed": true`)
		operate(t, p, "ls", "--pinned").want(t, 0, "0 images")
		operate(t, p, "pin").want(t, 2, "arg")
		operate(t, p, "pin", "No Such Name").want(t, 2, "is no reference")
		operate(t, p, "unpin", "a", "b").want(t, 0, "docker.io/library/a:latest was not pinned", "docker.io/library/b:latest was not pinned")
		return []string{pinned.out, list.out, unpinned.out}
	})
	// What was pinned on the directory is so for the proxy that starts on it.
	operate(t, p, "pin", "app:1.0").want(t, 0, "is pinned")
	p.Restart(t)
	operate(t, p, "ls", "--pinned").want(t, 0, "docker.io/library/app:1.0", "1 image")
}
