package rewrite

import (
	"net/url"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/oci"
)

// maxURI is the longest request URI that is read, in bytes.
const maxURI = 8 << 10

// Resource is the kind of thing that a path names.
type Resource uint8

const (
	// Unknown is a path outside the registry API.
	Unknown Resource = iota
	// Root is "/".
	Root
	// Ping is "/v2/", by which clients find out that this is a registry.
	Ping
	// ManifestPath is /v2/<name>/manifests/<tag or digest>.
	ManifestPath
	// BlobPath is /v2/<name>/blobs/<digest>.
	BlobPath
	// UploadPath is /v2/<name>/blobs/uploads/…, which is for pushes only.
	UploadPath
	// TagsPath is /v2/<name>/tags/list.
	TagsPath
	// ReferrersPath is /v2/<name>/referrers/<digest>.
	ReferrersPath
	// CatalogPath is /v2/_catalog.
	CatalogPath
)

// String gives the word that metrics and logs use.
func (r Resource) String() string {
	switch r {
	case Ping:
		return "ping"
	case ManifestPath:
		return "manifest"
	case BlobPath:
		return "blob"
	case TagsPath:
		return "tags"
	case ReferrersPath:
		return "referrers"
	case CatalogPath:
		return "catalog"
	}
	return "other"
}

// Request is what a request's URI names, before it is routed to an upstream.
type Request struct {
	Resource Resource
	// Name is the repository as the client wrote it. Its first component may
	// still be a registry's name, with a port; the others are checked.
	Name string
	// Tag or Digest is set as in Target; for paths without a reference,
	// neither.
	Tag    string
	Digest digest.Digest
	// AsOf is the time that the name began with, as of which a tag is asked for;
	// Name is without it. Zero is now.
	AsOf time.Time
	// Path is the path as the client sent it, undecoded, for links that lead
	// back here.
	Path string
	// Query is what followed the question mark, undecoded.
	Query string
}

// Reference gives the tag or the digest.
func (r *Request) Reference() string {
	if r.Digest != "" {
		return string(r.Digest)
	}
	return r.Tag
}

// ParseRequest reads the URI of a request line, in origin or absolute form. The
// path is percent-decoded exactly once; ".", "..", empty components, control
// characters and whatever else the grammars of the distribution-spec do not
// allow are refused with NAME_INVALID, TAG_INVALID or DIGEST_INVALID. Since a
// repository may be called "manifests", the last marker in the path counts.
//
// The Request shares memory with uri.
func ParseRequest(uri string) (Request, error) {
	if len(uri) > maxURI {
		return Request{}, oci.Errorf(oci.CodeNameInvalid, "the request's URI has %d bytes; at most %d are read", len(uri), maxURI)
	}
	if !strings.HasPrefix(uri, "/") {
		// Absolute form, as a client sends that takes this for a forward proxy.
		_, rest, ok := strings.Cut(uri, "://")
		slash := strings.IndexByte(rest, '/')
		if !ok || slash < 0 {
			return Request{}, nil
		}
		uri = rest[slash:]
	}
	uri, _, _ = strings.Cut(uri, "#") // never sent by a correct client
	path, query, _ := strings.Cut(uri, "?")
	req := Request{Path: path, Query: query}
	if path == "/" {
		req.Resource = Root
		return req, nil
	}
	if strings.IndexByte(path, '%') >= 0 {
		decoded, err := url.PathUnescape(path)
		if err != nil {
			return req, oci.Errorf(oci.CodeNameInvalid, "the path has a percent sign that is not followed by two hex digits")
		}
		path = decoded
	}
	rest, ok := strings.CutPrefix(path, "/v2")
	registry := ""
	if !ok || rest != "" && rest[0] != '/' {
		if registry, rest = cutRegistry(path); registry == "" {
			return req, nil
		}
	}
	switch {
	case rest == "" || rest == "/" || isRepeatedPing(rest):
		req.Resource = Ping
		return req, nil
	case rest == "/_catalog":
		req.Resource = CatalogPath
		return req, nil
	}
	err := req.parse(rest)
	if registry != "" && req.Name != "" {
		req.Name = registry + "/" + req.Name
	}
	return req, err
}

// cutRegistry splits "/docker.io/v2/library/nginx/…" into "docker.io" and what follows
// "/v2". Clients send that if the URL of their mirror is http://cache:5000/docker.io. The
// registry is empty if the path isn't of that kind.
func cutRegistry(path string) (registry, rest string) {
	first, rest, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	rest, ok := strings.CutPrefix(rest, "v2")
	if !ok || rest != "" && rest[0] != '/' || !looksLikeHost(first) {
		return "", ""
	}
	return first, rest
}

// isRepeatedPing reports whether rest, which follows "/v2", is "/v2/" or
// "/docker.io/v2/": the ping of a client whose mirror's URL has a path.
func isRepeatedPing(rest string) bool {
	rest, ok := strings.CutSuffix(strings.TrimSuffix(rest, "/"), "/v2")
	return ok && (rest == "" || strings.LastIndexByte(rest, '/') == 0 && looksLikeHost(rest[1:]))
}

// looksLikeHost reports whether a part of a path can be a registry and hardly anything
// else: a host with a dot or a port, which may be written as PathName writes it.
func looksLikeHost(s string) bool {
	return (s == "localhost" || strings.ContainsAny(s, ".:_")) && oci.IsHost(strings.ToLower(s))
}

// PathName returns how a registry is written as the first part of a repository's name:
// "registry.example_5000" for "registry.example:5000". No client takes a colon there. An
// underscore is never part of a host's name in DNS.
func PathName(registry string) string { return strings.Replace(registry, ":", "_", 1) }

// parse reads what follows "/v2", from its slash on.
func (r *Request) parse(path string) error {
	at, marker := lastMarker(path)
	if at < 0 {
		return nil
	}
	name, reference := strings.TrimPrefix(path[:at], "/"), path[at+len(marker):]
	switch marker {
	case "/tags/list":
		r.Resource = TagsPath
	case "/manifests/":
		r.Resource = ManifestPath
	case "/referrers/":
		r.Resource = ReferrersPath
	case "/blobs/":
		r.Resource = BlobPath
		if reference == "uploads" || strings.HasPrefix(reference, "uploads/") {
			r.Resource = UploadPath
		}
	}
	name, asOf, err := cutAsOf(name)
	if err == nil {
		err = checkPathName(name)
	}
	if err != nil {
		return err
	}
	r.Name, r.AsOf = name, asOf
	switch r.Resource {
	case BlobPath, ReferrersPath:
		r.Digest, err = oci.ParseDigest(reference)
	case ManifestPath:
		if strings.IndexByte(reference, ':') >= 0 {
			r.Digest, err = oci.ParseDigest(reference)
		} else if r.Tag = reference; !oci.IsTag(reference) {
			// 404, not 400: a tag of that name can not exist, and clients
			// that ask whether it does have their answer.
			r.Tag = ""
			err = &oci.Error{Code: oci.CodeTagInvalid, Status: 404, Message: "there can be no tag " + oci.Quote(reference) +
				": a tag has up to 128 letters, digits, '_', '.' and '-', and begins with none of the last two"}
		}
	}
	return err
}

// lastMarker finds the component of path that says what is asked for, the last
// of those that could: its slash, and the marker from there on.
func lastMarker(path string) (at int, marker string) {
	for end := strings.LastIndexByte(path, '/'); end > 0; {
		begin := strings.LastIndexByte(path[:end], '/')
		if begin < 0 {
			break
		}
		switch path[begin : end+1] {
		case "/manifests/", "/blobs/", "/referrers/":
			return begin, path[begin : end+1]
		case "/tags/":
			if path[end+1:] == "list" {
				return begin, path[begin:]
			}
		}
		end = begin
	}
	return -1, ""
}

// checkPathName is CheckName, but the first of several components may be a registry's
// name. Before and behind it may be what Router.Route takes off.
func checkPathName(name string) error {
	if first, rest, ok := strings.Cut(name, "/"); ok && oci.IsHost(strings.ToLower(first)) {
		if next, _, _ := strings.Cut(rest, "/"); first == "v2" || next == first {
			return checkPathName(rest)
		}
		return oci.CheckName(rest)
	}
	return oci.CheckName(name)
}

// QueryValue gives the first value of key in a query, decoded once, and whether
// key is there. A value that can not be decoded counts as not there.
func QueryValue(query, key string) (string, bool) {
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		k, v, _ := strings.Cut(pair, "=")
		if k != key {
			continue
		}
		if strings.ContainsAny(v, "%+") {
			decoded, err := url.QueryUnescape(v)
			if err != nil {
				return "", false
			}
			v = decoded
		}
		return v, true
	}
	return "", false
}
