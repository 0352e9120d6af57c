package cache

import (
	"io"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// warmed gives a cache that holds one tagged image with a small and a large
// layer.
func warmed(b *testing.B) (c *Cache, tag rewrite.Target, small, large digest.Digest) {
	b.Helper()
	hub := newRegistry()
	layers := [][]byte{content(1, smallBlob), content(2, 8<<20)}
	hub.tag("library/nginx", "latest", hub.addImage("library/nginx", layers...))
	c, err := Open(Options{
		Dir: b.TempDir(), MemoryBytes: 64 << 20,
		Upstreams: map[string]Upstream{"docker.io": {Origin: hub, Tags: []TagRule{{Match: "*", Immutable: true}}}},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close(b.Context()) })
	tag = tagged("library/nginx", "latest")
	if _, _, err := c.Manifest(b.Context(), tag, rewrite.Accept{}); err != nil {
		b.Fatal(err)
	}
	small, large = digest.FromBytes(layers[0]), digest.FromBytes(layers[1])
	for _, d := range []digest.Digest{small, large} {
		sendWhole(b, c, digested("library/nginx", d))
	}
	return c, tag, small, large
}

func sendWhole(b *testing.B, c *Cache, t rewrite.Target) {
	blob, _, err := c.Blob(b.Context(), t, oci.Whole)
	if err != nil {
		b.Fatal(err)
	}
	defer blob.Close()
	if _, err := blob.Send(io.Discard, oci.Span{From: 0, To: 1}); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkManifestByTagHit(b *testing.B) {
	c, tag, _, _ := warmed(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := c.Manifest(b.Context(), tag, rewrite.Accept{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSmallBlobHit(b *testing.B) {
	c, tag, small, _ := warmed(b)
	b.ReportAllocs()
	for b.Loop() {
		sendWhole(b, c, digested(tag.Repository, small))
	}
}

func BenchmarkLargeBlobHit(b *testing.B) {
	c, tag, _, large := warmed(b)
	b.ReportAllocs()
	for b.Loop() {
		sendWhole(b, c, digested(tag.Repository, large))
	}
}
