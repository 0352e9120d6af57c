package bundle

import (
	"context"
	"io"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/oci"
)

// Catalog is a cache as it is looked through for what is to be in a bundle. It asks no
// upstream, and nothing that it is asked for counts as used. cache.Cache is one.
type Catalog interface {
	// Named lists all images that are here by name.
	Named(ctx context.Context) ([]oci.Target, error)
	// StandsFor gives the digest that t is served as, and when the upstream last said
	// so, or when the digest was stored.
	StandsFor(t oci.Target) (digest.Digest, time.Time, error)
	// Tree gives what t names and all that is below it.
	Tree(ctx context.Context, t oci.Target, o cache.TreeOptions) (*cache.Tree, error)
	// Stored gives the size of the content of t's digest, and when it was stored, where
	// t's repository has it.
	Stored(t oci.Target) (size int64, at time.Time, ok bool)
}

// Source is a cache as a bundle is made of it. cache.Cache is one.
type Source interface {
	// OpenStored opens content, to be read once. Where it is not what the digest says
	// the last Read gives an error instead of io.EOF. The caller closes it.
	OpenStored(ctx context.Context, d digest.Digest) (io.ReadCloser, error)
}
