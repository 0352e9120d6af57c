package bundle

import (
	"bytes"
	"testing"

	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

// TestWhatNothingRefersToIsKnownAcross is about clients that ask for signatures where no
// upstream can be asked: where it is known that there are none, they are told so.
func TestWhatNothingRefersToIsKnownAcross(t *testing.T) {
	w := newWorld(t)
	plain, unasked := image.Index(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
	signed, half := image.New(image.Options{Seed: 3}), image.New(image.Options{Seed: 4})
	ofSigned, ofHalf := signed.Descriptor(), half.Descriptor()
	signature, missing := image.Artifact(5, "application/signature", 100, &ofSigned), image.Artifact(6, "application/signature", 100, &ofHalf)
	images := map[string]*image.Image{"plain": plain, "unasked": unasked, "signed": signed, "half": half}
	for tag, i := range images {
		w.push("library/app", tag, i)
	}
	w.push("library/app", "", signature)
	w.registry.referrers[signed.Digest] = []v1.Descriptor{signature.Descriptor()}
	w.registry.referrers[half.Digest] = []v1.Descriptor{missing.Descriptor()}
	w.pull(target("library/app", "plain", ""), plain, "linux/amd64")
	for _, tag := range []string{"unasked", "signed", "half"} {
		w.pull(target("library/app", tag, ""), images[tag])
	}
	w.pull(target("library/app", "", signature.Digest), signature)
	amd64 := plain.Platforms["linux/amd64"]
	for _, d := range []v1.Descriptor{plain.Descriptor(), {Digest: amd64}, signed.Descriptor(), half.Descriptor()} {
		if _, _, err := w.Referrers(t.Context(), target("library/app", "", d.Digest)); err != nil {
			t.Fatal(err)
		}
	}

	p := w.plan(Choice{All: true})
	for _, i := range p.Contents.Images {
		if want := i.Tag == "plain" || i.Tag == "signed"; i.Listed != want {
			t.Errorf("%s: listed is %v", i, i.Listed)
		}
	}
	in := newInside(t, nil)
	for range 2 { // the second time it is there already
		if _, err := in.take(bytes.NewReader(w.tar(p)), ""); err != nil {
			t.Fatal(err)
		}
		for _, d := range []v1.Descriptor{plain.Descriptor(), {Digest: amd64}} {
			if list, _, err := in.Referrers(t.Context(), target("library/app", "", d.Digest)); err != nil || len(list) != 0 {
				t.Errorf("want nothing to refer to %s, got %v, %v", d.Digest, list, err)
			}
		}
		if list, _, err := in.Referrers(t.Context(), target("library/app", "", signed.Digest)); err != nil || len(list) != 1 || list[0].Digest != signature.Digest {
			t.Errorf("want the signature, got %v, %v", list, err)
		}
		for _, i := range []*image.Image{unasked, half} {
			if list, _, err := in.Referrers(t.Context(), target("library/app", "", i.Digest)); err == nil {
				t.Errorf("want it not to be known what refers to %s, got %v", i.Digest, list)
			}
		}
	}
}
