package bundle

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// remembered is an Intake in memory, which takes little.
type remembered struct {
	content map[digest.Digest][]byte
	added   map[digest.Digest]bool
}

func (m *remembered) Expect(context.Context, iter.Seq2[digest.Digest, int64]) error { return nil }

func (m *remembered) Take(_ context.Context, d digest.Digest, size int64, r io.Reader) (digest.Digest, error) {
	b, err := io.ReadAll(io.LimitReader(r, size))
	switch {
	case err != nil:
		return "", err
	case int64(len(b)) < size:
		return "", io.ErrUnexpectedEOF
	case d == "":
		d = digest.FromBytes(b)
	case d.Algorithm().FromBytes(b) != d:
		return "", oci.Errorf(oci.CodeDigestInvalid, "they are not the digest's")
	}
	m.content[d] = b
	return d, nil
}

func (m *remembered) Has(digest.Digest, int64) bool { return false }

func (m *remembered) Read(d digest.Digest, most int64) ([]byte, error) {
	if b, ok := m.content[d]; ok && int64(len(b)) <= most {
		return b, nil
	}
	return nil, errors.New("it is not there")
}

func (m *remembered) AddListed(t oci.Target, d v1.Descriptor, fetched time.Time) error {
	return m.Add(t, d, fetched)
}

func (m *remembered) Add(t oci.Target, d v1.Descriptor, _ time.Time) error {
	if t.Upstream == "" || oci.CheckName(t.Repository) != nil || m.content[d.Digest] == nil {
		panic("what was never taken in is added, or under no name")
	}
	p, err := oci.ParseManifest(m.content[d.Digest], d.MediaType)
	if err != nil {
		return err
	}
	m.added[d.Digest] = true
	for _, c := range p.Children {
		m.added[c.Digest] = true
	}
	return nil
}

func (m *remembered) Unnamed(most int) []digest.Digest {
	list := slices.DeleteFunc(slices.Sorted(maps.Keys(m.content)), func(d digest.Digest) bool { return m.added[d] })
	return list[:min(most, len(list))]
}

func (m *remembered) Drop(d digest.Digest) error {
	delete(m.content, d)
	return nil
}

// FuzzRead reads what strangers may have made: it ends, takes little, and adds nothing
// that was not taken in under its digest.
func FuzzRead(f *testing.F) {
	small := image.New(image.Options{Seed: 1, Layers: []image.Layer{{Size: 10}}})
	_, p := bundleOf([]named{{"docker.io", "library/app", "1", small}})
	f.Add(p.bytes())
	f.Add(plain([]*image.Image{small}, name("docker.io/library/app:1")).bytes())
	docker, _, _ := saved("app:1")
	f.Add(docker.bytes())
	f.Add([]byte{0x1f, 0x8b, 8})
	router, err := rewrite.NewRouter(rewrite.Routing{Default: "docker.io", Upstreams: map[string][]string{"docker.io": nil, "quay.example.test": nil}})
	if err != nil {
		f.Fatal(err)
	}
	in := &inside{router: router}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &remembered{content: map[digest.Digest][]byte{}, added: map[digest.Digest]bool{}}
		err := Read(t.Context(), bytes.NewReader(b), m, ReadOptions{
			Resolve: in.target,
			Route:   func(upstream, repo string) (oci.Target, error) { return router.Route(repo, upstream, "") },
		})
		if err == nil && (len(m.added) == 0 || len(m.Unnamed(1)) > 0) {
			t.Errorf("it is taken, and %d are added of %d", len(m.added), len(m.content))
		}
	})
}
