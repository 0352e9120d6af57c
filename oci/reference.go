package oci

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// Target is what a request names, once routed: one thing in one repository of
// one configured upstream. Every cache key is made of it, and so always holds
// the upstream.
type Target struct {
	// Upstream is the configured name: "docker.io", never an alias of it.
	Upstream string
	// Repository is the full name at the upstream: "library/nginx".
	Repository string
	// Tag is set where the reference is a tag, Digest where it is a digest;
	// never both. Both are empty for tags/list.
	Tag    string
	Digest digest.Digest
	// AsOf, where it is set, asks for what the tags stood for then. It is part of
	// no key: what a digest names does not change.
	AsOf time.Time
}

// Reference gives the tag or the digest, as it stands in a URL.
func (t Target) Reference() string {
	if t.Digest != "" {
		return t.Digest.String()
	}
	return t.Tag
}

// String gives the reference as people write it:
// "docker.io/library/nginx:1.27", "docker.io/library/nginx@sha256:…".
func (t Target) String() string {
	s := t.Upstream + "/" + t.Repository
	switch {
	case t.Digest != "":
		s += "@" + t.Digest.String()
	case t.Tag != "":
		s += ":" + t.Tag
	}
	return s
}
