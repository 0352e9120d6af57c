package cache

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
)

// Metered is what an Origin may be beside: one whose upstream grants so many
// pulls and no more.
type Metered interface {
	// SparePull tells whether a manifest may be fetched for the sake of what is
	// here already, to refresh it or ahead of a client. It gives nil, or an
	// *oci.Error that says why what is left is kept for what is not here.
	SparePull(ctx context.Context) error
	// SparePulls is SparePull for n pulls at a time. With the error it says when more
	// are granted; zero where that is not known.
	SparePulls(ctx context.Context, n int) (again time.Duration, err error)
}

// Origin is one upstream as the cache sees it. All methods are safe for
// concurrent use, honour ctx, and give an *oci.Error: absent (oci.IsAbsent) and
// refused (oci.IsRefused) are the upstream's own word, everything else is a
// failure to find out.
type Origin interface {
	// Resolve asks with HEAD what ref, a tag or a digest, stands for now. It
	// is never counted as a pull and never becomes a GET. The descriptor's
	// digest is empty where the upstream does not say it. An error that
	// oci.IsHint reports is a hint: Manifest decides.
	Resolve(ctx context.Context, repo, ref string) (v1.Descriptor, error)
	// Manifest fetches a manifest or index, at most oci.MaxManifestSize
	// bytes. The digest is computed from the bytes; where ref is a digest,
	// the two agree.
	Manifest(ctx context.Context, repo, ref string) (*oci.Manifest, error)
	// Stat asks with HEAD whether repo has the blob, and its size. The size
	// is -1 where the upstream does not say it; then it may not even have said
	// that the blob is there.
	Stat(ctx context.Context, repo string, d digest.Digest) (v1.Descriptor, error)
	// Blob opens the blob's bytes from span.From on. The body says what it
	// really carries; its bytes are not verified. The caller closes it.
	Blob(ctx context.Context, repo string, d digest.Digest, span oci.Span) (*oci.Body, error)
	// Tags lists all tags of repo, sorted, each once.
	Tags(ctx context.Context, repo string) ([]string, error)
	// Referrers lists the manifests whose subject is d, by the referrers API
	// or, where the upstream lacks it, by the tag schema. None is an empty
	// list, not an error. An error that wraps oci.ErrUnconfirmed says that there may
	// be none.
	Referrers(ctx context.Context, repo string, d digest.Digest) ([]v1.Descriptor, error)
}
