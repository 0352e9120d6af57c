package main

import (
	"bytes"
	"context"
	"io"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"
	orasremote "oras.land/oras-go/v2/registry/remote"
)

// crane pulls all of an image with go-containerregistry, which verifies what it
// gets: so what it gives is to be the truth.
func (c *client) crane(ctx context.Context, e *entry) error {
	repo, err := name.NewRepository(c.w.host+"/"+e.source.name+"/"+e.repo, name.Insecure)
	if err != nil {
		return wrongf("%v", err)
	}
	opts := []remote.Option{remote.WithContext(ctx), remote.WithAuth(authn.Anonymous), remote.WithTransport(c.http.Transport)}
	got, err := remote.Get(repo.Tag(fixedTag), opts...)
	if err != nil {
		return err
	}
	if !bytes.Equal(got.Manifest, e.image.Bytes()) {
		return wrongf("crane: %s is given as %s", e.image.Digest, got.Digest)
	}
	for d, content := range e.image.Blobs {
		l, err := remote.Layer(repo.Digest(d.String()), opts...)
		if err != nil {
			return err
		}
		rc, err := l.Compressed()
		if err != nil {
			return err
		}
		b, err := io.ReadAll(rc)
		rc.Close()
		if err != nil {
			return err
		}
		if !bytes.Equal(b, content) {
			return wrongf("crane: %s: wrong bytes", d)
		}
		c.w.note(func(r *report) { r.whole++; r.bytes += int64(len(b)) })
	}
	return nil
}

// oras copies an image with all that it names into memory, as oras and helm do.
func (c *client) oras(ctx context.Context, e *entry) error {
	repo, err := orasremote.NewRepository(c.w.host + "/" + e.source.name + "/" + e.repo)
	if err != nil {
		return wrongf("%v", err)
	}
	repo.PlainHTTP = true
	repo.Client = c.http
	dst := memory.New()
	root, err := oras.Copy(ctx, repo, fixedTag, dst, fixedTag, oras.DefaultCopyOptions)
	if err != nil {
		return err
	}
	if root.Digest != e.image.Digest {
		return wrongf("oras: %s is given as %s", e.image.Digest, root.Digest)
	}
	b, err := io.ReadAll(must(dst.Fetch(ctx, root)))
	if err != nil || digest.FromBytes(b) != root.Digest {
		return wrongf("oras: %s: %v", root.Digest, err)
	}
	c.w.note(func(r *report) { r.whole++; r.bytes += e.image.Size() })
	return nil
}

func must(r io.ReadCloser, err error) io.Reader {
	if err != nil {
		return bytes.NewReader(nil) // whose digest is another
	}
	return r
}
