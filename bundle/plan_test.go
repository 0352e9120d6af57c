package bundle

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/oci"
)

func TestABundleThatNoImportTakesIsRefusedEarly(t *testing.T) {
	if err := CheckAll(maxEntries + 1); !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "500001") {
		t.Errorf("want that it is too large, got %v", err)
	}
	if err := CheckAll(maxEntries); err != nil {
		t.Error(err)
	}
	p := &planner{contents: map[digest.Digest]*kept{}, in: map[string]bool{}}
	for _, name := range []string{"a", "b", "c", "a"} {
		p.keep(target("library/app", "1", ""), stored{Content: Content{Digest: digest.FromString(name), Size: 12, Present: true}})
	}
	var c Contents
	for _, k := range p.contents {
		k.In = []string{"docker.io/library/app"}
		c.Contents = append(c.Contents, k.Content)
	}
	b, err := json.Marshal(c.Contents)
	if err != nil || p.listed > len(b) || p.listed < len(b)*8/10 {
		t.Errorf("%d bytes are counted of %d, %v", p.listed, len(b), err)
	}
	if p.isTooLarge() {
		t.Error("three contents are said to be too many")
	}
	if p.listed = maxDocument + 1; !p.isTooLarge() {
		t.Error("a document that is too large is not noticed")
	}
}

// contentsOf gives the digests of a plan that are present, or left out.
func contentsOf(p *Plan, present bool) []digest.Digest {
	var list []digest.Digest
	for _, c := range p.Contents.Contents {
		if c.Present == present {
			list = append(list, c.Digest)
		}
	}
	return list
}

func references(p *Plan) []string {
	list := []string{}
	for _, i := range p.Contents.Images {
		list = append(list, i.String())
	}
	return list
}

func wantList(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: want %q, got %q", what, want, got)
	}
}

// whole gives the digests of all of an image for these platforms, its index included.
func whole(i *image.Image, platforms ...string) []digest.Digest {
	set := map[digest.Digest]bool{i.Digest: true}
	for _, p := range platforms {
		set[i.Platforms[p]] = true
		m := i.Parsed(i.Platforms[p])
		for _, l := range append(m.Layers, m.Config) {
			set[l.Digest] = true
		}
	}
	var list []digest.Digest
	for d := range set {
		list = append(list, d)
	}
	slices.Sort(list)
	return list
}

func TestPlanTakesThePlatformsThatAreHereOrAreNamed(t *testing.T) {
	w := newWorld(t)
	i := image.Index(image.Options{Seed: 1})
	w.push("library/app", "1", i)
	w.pull(target("library/app", "1", ""), i, "linux/amd64", "linux/arm64")
	for _, c := range []struct {
		platforms, want []string
	}{
		{nil, []string{"linux/amd64", "linux/arm64"}},
		{[]string{"linux/arm64"}, []string{"linux/arm64"}},
		{[]string{"linux/s390x", "linux/amd64"}, []string{"linux/amd64"}},
	} {
		p := w.plan(Choice{Images: []Wanted{{Target: target("library/app", "1", "")}}, Platforms: c.platforms})
		if got := contentsOf(p, true); !slices.Equal(got, whole(i, c.want...)) {
			t.Errorf("%q: want %d contents of %q, got %d", c.platforms, len(whole(i, c.want...)), c.want, len(got))
		}
		wantList(t, "platforms", p.Images[0].Platforms, c.want)
	}
	// As a Compose file may name it: for a platform, and for none in particular.
	p := w.plan(Choice{Images: []Wanted{{Target: target("library/app", "1", ""), Platforms: []string{"linux/arm64"}}, {Target: target("library/app", "1", "")}}})
	if len(p.Images) != 1 {
		t.Errorf("want the image once, got %v", p.Images)
	}
	wantList(t, "platforms", p.Images[0].Platforms, []string{"linux/amd64", "linux/arm64"})
	for _, c := range []struct {
		platforms []string
		want      string
	}{
		{[]string{"all"}, "missing: manifest for linux/arm/v7 " + i.Platforms["linux/arm/v7"].String()},
		{[]string{"linux/arm/v7"}, "entrepot warm --platform linux/arm/v7 docker.io/library/app:1"},
		{[]string{"linux/s390x"}, "it is there for linux/amd64, linux/arm64, linux/arm/v7"},
	} {
		_, err := Make(t.Context(), w, Choice{Images: []Wanted{{Target: target("library/app", "1", "")}}, Platforms: c.platforms})
		if e := (*MissingError)(nil); !errors.As(err, &e) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: want %q, got %v", c.platforms, c.want, err)
		}
	}
}

func TestPlanRefusesWhatIsNotWholeAndLeavesItOutOfAll(t *testing.T) {
	w := newWorld(t)
	whole, part := image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
	for tag, i := range map[string]*image.Image{"whole": whole, "part": part} {
		w.push("library/app", tag, i)
		w.pull(target("library/app", tag, ""), i)
	}
	lost := part.Layers("")[0].Digest
	if err := os.Remove(w.file(lost)); err != nil {
		t.Fatal(err)
	}
	_, err := Make(t.Context(), w, Choice{Images: []Wanted{{Target: target("library/app", "whole", "")}, {Target: target("library/app", "part", "")}}})
	want := "an image is not cached completely, so no bundle was written:\n" +
		"  docker.io/library/app:part: missing: layer " + lost.String() + "\n" +
		"fetch them first: entrepot warm docker.io/library/app:part\n" +
		"or name the platforms to take with --platform"
	if err == nil || err.Error() != want {
		t.Errorf("want:\n%s\ngot:\n%v", want, err)
	}
	p := w.plan(Choice{All: true})
	wantList(t, "all", references(p), []string{"docker.io/library/app:whole"})
	if len(p.LeftOut) != 1 || p.LeftOut[0].String() != "docker.io/library/app:part: missing: layer "+lost.String() {
		t.Errorf("want the other to be named, got %v", p.LeftOut)
	}
	_, err = Make(t.Context(), w, Choice{Images: []Wanted{{Target: target("library/app", "none", "")}}})
	if err == nil || !strings.Contains(err.Error(), "nothing is known of docker.io/library/app:none") {
		t.Errorf("want that it is not known, got %v", err)
	}
}

// TestPlanOfAllTakesTagsAndWhatIsNamedByDigest also holds that what a tag stood for
// before is not taken, nor a platform's manifest for its own sake.
func TestPlanOfAllTakesTagsAndWhatIsNamedByDigest(t *testing.T) {
	w := newWorld(t)
	index, old, now, bare := image.Index(image.Options{Seed: 1}), image.New(image.Options{Seed: 2}), image.New(image.Options{Seed: 3}), image.New(image.Options{Seed: 4})
	w.push("library/app", "index", index)
	w.pull(target("library/app", "index", ""), index, image.Platforms...)
	w.push("library/app", "moves", old)
	w.pull(target("library/app", "moves", ""), old)
	w.push("library/bare", "", bare)
	w.pull(target("library/bare", "", bare.Digest), bare)
	ghcr := oci.Target{Upstream: "ghcr.io", Repository: "library/bare", Digest: bare.Digest}
	w.pull(ghcr, bare)
	w.push("library/app", "moves", now)
	if _, err := w.Accept(t.Context(), target("library/app", "moves", "")); err != nil {
		t.Fatal(err)
	}
	p := w.plan(Choice{All: true, Platforms: []string{"linux/amd64"}})
	wantList(t, "all", references(p), []string{
		"docker.io/library/app:index", "docker.io/library/app:moves", "docker.io/library/bare@" + bare.Digest.String(), ghcr.String(),
	})
	private := Choice{All: true, Platforms: []string{"linux/amd64"}, Private: func(upstream string) bool { return upstream == "ghcr.io" }}
	without := w.plan(private)
	wantList(t, "all but what is private", references(without), references(p)[:3])
	if l := without.LeftOut; len(l) != 1 || l[0].Reference != ghcr.String() || !strings.Contains(l[0].Reason, "name it") {
		t.Errorf("left out: %v", l)
	}
	private.All, private.Images = false, []Wanted{{Target: ghcr}}
	wantList(t, "what is private and named", references(w.plan(private)), []string{ghcr.String()})
	for _, c := range p.Contents.Contents {
		if c.Digest == bare.Digest {
			wantList(t, "the repositories of a shared manifest", c.In, []string{"docker.io/library/bare", "ghcr.io/library/bare"})
		}
	}
}

func TestPlanTakesReferrersAsFarAsTheyAreWhole(t *testing.T) {
	w := newWorld(t)
	i := image.New(image.Options{Seed: 1})
	subject := i.Descriptor()
	sbom, broken := image.Artifact(2, "application/spdx+json", 100, &subject), image.Artifact(3, "application/x", 100, &subject)
	subject = sbom.Descriptor()
	signed := image.Artifact(4, "application/signature", 100, &subject)
	cosign := image.Signature(5, i.Descriptor(), "docker.io/library/app")
	w.push("library/app", "1", i)
	w.push("library/app", image.SignatureTag(i.Digest), cosign)
	for _, r := range []*image.Image{sbom, broken, signed} {
		w.push("library/app", "", r)
	}
	w.registry.referrers[i.Digest] = []v1.Descriptor{sbom.Descriptor(), broken.Descriptor()}
	w.registry.referrers[sbom.Digest] = []v1.Descriptor{signed.Descriptor()}
	w.pull(target("library/app", "1", ""), i)
	w.pull(target("library/app", image.SignatureTag(i.Digest), ""), cosign)
	for _, r := range []*image.Image{sbom, signed} {
		w.pull(target("library/app", "", r.Digest), r)
	}
	w.manifest(target("library/app", "", broken.Digest))
	for _, d := range []digest.Digest{i.Digest, sbom.Digest} {
		if _, _, err := w.Referrers(t.Context(), target("library/app", "", d)); err != nil {
			t.Fatal(err)
		}
	}
	for what, c := range map[string]Choice{"by name": {Images: []Wanted{{Target: target("library/app", "1", "")}}}, "all": {All: true}} {
		p := w.plan(c)
		want := []string{
			"docker.io/library/app@" + sbom.Digest.String(), "docker.io/library/app@" + signed.Digest.String(),
			"docker.io/library/app:1", "docker.io/library/app:" + image.SignatureTag(i.Digest),
		}
		slices.Sort(want[:2])
		wantList(t, what, references(p), want)
		for n, i := range p.Contents.Images {
			if i.Referrer != (i.Tag != "1") || p.Images[n].Referrer != i.Referrer {
				t.Errorf("%s: %s: referrer is %v", what, i, i.Referrer)
			}
		}
		if len(p.LeftOut) != 1 || !p.LeftOut[0].Referrer || !strings.Contains(p.LeftOut[0].String(), broken.Digest.String()+": missing: layer ") {
			t.Errorf("%s: want what is not whole to be named, got %v", what, p.LeftOut)
		}
		if strings.Contains(string(p.Docker), "sig") {
			t.Errorf("%s: a signature is offered to Docker: %s", what, p.Docker)
		}
	}
}

func TestPlanLeavesOutBlobsThatAreNotNew(t *testing.T) {
	w := newWorld(t)
	old, next := image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
	w.push("library/app", "old", old)
	w.pull(target("library/app", "old", ""), old)
	first := w.plan(Choice{All: true})
	w.push("library/app", "new", next)
	w.pull(target("library/app", "new", ""), next)

	long := time.Now().Add(-time.Hour)
	for _, d := range old.Parsed(old.Digest).Layers {
		if err := os.Chtimes(w.file(d.Digest), long, long); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(w.file(old.Parsed(old.Digest).Config.Digest), long, long); err != nil {
		t.Fatal(err)
	}
	since := &Since{Digest: first.Contents.Digest}
	var have []digest.Digest
	for _, c := range first.Contents.Contents {
		have = append(have, c.Digest)
	}
	for what, c := range map[string]Choice{
		"a bundle": {All: true, Since: since, Have: have},
		"a time":   {All: true, Since: &Since{Time: time.Now().Add(-time.Minute)}},
	} {
		p := w.plan(c)
		want := slices.Sorted(slices.Values([]digest.Digest{old.Layers("")[0].Digest, old.Parsed(old.Digest).Config.Digest}))
		if got := contentsOf(p, false); !slices.Equal(got, want) {
			t.Errorf("%s: want %q left out, got %q", what, want, got)
		}
		if i := p.Images[1]; i.Reference != "docker.io/library/app:old" || i.LeftOut != 2 || i.LeftOutBytes == 0 || i.Blobs != 3 {
			t.Errorf("%s: got %+v", what, i)
		}
		if strings.Contains(string(p.Docker), "app:old") || !strings.Contains(string(p.Docker), "app:new") {
			t.Errorf("%s: want what is whole offered to Docker, and it alone: %s", what, p.Docker)
		}
	}
}
