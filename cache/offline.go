package cache

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
)

// offline stands for an upstream that must not be asked.
type offline struct {
	upstream string
	// denial returns why what is stored of a digest cannot be read; nil for nothing.
	denial func(digest string) error
}

func (o offline) err(repo, ref string) error {
	if why := o.denial(ref); why != nil {
		return deniedError(ref, fmt.Errorf("%w: %w", errOffline, why))
	}
	what := o.upstream + "/" + repo
	if ref != "" {
		what += " " + ref
	}
	return &oci.Error{
		Code: oci.CodeUnavailable,
		Message: fmt.Sprintf("the proxy is offline and %s is not in its cache: import a bundle that has it "+
			"(entrepot import; entrepot missing lists what the next bundle needs), or set cache.offline: false", what),
		Err: errOffline,
	}
}

var errOffline = fmt.Errorf("offline")

func (o offline) Resolve(_ context.Context, repo, ref string) (v1.Descriptor, error) {
	return v1.Descriptor{}, o.err(repo, ref)
}

func (o offline) Manifest(_ context.Context, repo, ref string) (*oci.Manifest, error) {
	return nil, o.err(repo, ref)
}

func (o offline) Stat(_ context.Context, repo string, d digest.Digest) (v1.Descriptor, error) {
	return v1.Descriptor{}, o.err(repo, d.String())
}

func (o offline) Blob(_ context.Context, repo string, d digest.Digest, _ oci.Span) (*oci.Body, error) {
	return nil, o.err(repo, d.String())
}

func (o offline) Tags(_ context.Context, repo string) ([]string, error) {
	return nil, o.err(repo, "(list of tags)")
}

func (o offline) Referrers(_ context.Context, repo string, d digest.Digest) ([]v1.Descriptor, error) {
	return nil, o.err(repo, "(referrers of "+d.String()+")")
}
