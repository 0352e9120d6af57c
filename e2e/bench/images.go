package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/store"
)

const (
	// tagsOfRepository is how many tags each repository of fillImages has.
	tagsOfRepository = 10
	// blobsOfImage is how many contents each of its images has: the manifest, its config
	// and three layers.
	blobsOfImage = 5
)

// fillImages makes a cache directory with n contents, a manifest, config or layer each:
// images of five contents, ten tags in each repository, a tenth of them of quay.io and the
// others of docker.io ("docker.io/team07/app-00107:3"). The program finds all of them as
// if it had fetched them. Layers have a few bytes. It syncs no file: a crash of the
// machine may damage the cache.
func fillImages(ctx context.Context, dir string, n int) (err error) {
	s, err := store.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	ix, _, err := index.Open(filepath.Join(dir, "index.db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ix.Close()) }()
	blobs := filepath.Join(dir, "blobs", digest.SHA256.String())
	for b := range 256 {
		if err := os.MkdirAll(filepath.Join(blobs, fmt.Sprintf("%02x", b)), 0o700); err != nil {
			return err
		}
	}
	now := time.Now()
	put := func(c *index.Change, mediaType string, content []byte) (v1.Descriptor, error) {
		d := digest.FromBytes(content)
		if err := os.WriteFile(filepath.Join(blobs, d.Encoded()[:2], d.Encoded()), content, 0o600); err != nil {
			return v1.Descriptor{}, err
		}
		stamp, err := s.Stamp(d)
		if err != nil {
			return v1.Descriptor{}, err
		}
		c.Links[d] = index.Link{MediaType: mediaType, Size: stamp.Size, Proof: index.Fetched, Manifest: mediaType == v1.MediaTypeImageManifest}
		c.Blobs[d] = index.Blob{Stamp: stamp, Verified: now, Used: now, Uses: 1}
		return v1.Descriptor{MediaType: mediaType, Digest: d, Size: stamp.Size}, nil
	}
	// A transaction of the index is faster when it is large.
	const together = 10_000
	var changes []index.Change
	flush := func() error {
		defer func() { changes = changes[:0] }()
		return ix.Put(changes...)
	}
	for i := range n / blobsOfImage {
		if err := ctx.Err(); err != nil {
			return err
		}
		number := i / tagsOfRepository
		upstream := "docker.io"
		if number%10 == 9 {
			upstream = "quay.io"
		}
		c := index.Change{
			Upstream: upstream, Repository: fmt.Sprintf("team%02d/app-%05d", number%100, number), Tag: fmt.Sprint(i % tagsOfRepository),
			Links: map[digest.Digest]index.Link{}, Blobs: map[digest.Digest]index.Blob{},
		}
		m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
		if m.Config, err = put(&c, v1.MediaTypeImageConfig, fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","config":{"Labels":{"image":"%d"}}}`, i)); err != nil {
			return err
		}
		for layer := range blobsOfImage - 2 {
			l, err := put(&c, v1.MediaTypeImageLayerGzip, fmt.Appendf(nil, "layer %d of image %d", layer, i))
			if err != nil {
				return err
			}
			m.Layers = append(m.Layers, l)
		}
		b, err := json.Marshal(m)
		if err != nil {
			return err
		}
		root, err := put(&c, m.MediaType, b)
		if err != nil {
			return err
		}
		c.Record = index.Tag{Digest: root.Digest, MediaType: root.MediaType, Size: root.Size, Checked: now}
		if changes = append(changes, c); len(changes) == together {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}
