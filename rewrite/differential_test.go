package rewrite

import (
	"regexp"
	"strings"
	"testing"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/oci"
)

// What is read here is read as distribution/reference and go-digest read it, which
// is how clients and registries do, or more strictly: no string may be one thing
// here and another there.

var tagAlone = regexp.MustCompile("^(?:" + reference.TagRegexp.String() + ")$")

// theirName tells whether s is a repository's path to distribution/reference.
func theirName(s string) bool {
	r, err := reference.Parse("registry.test/" + s)
	if err != nil {
		return false
	}
	named, ok := r.(reference.Named)
	_, tagged := r.(reference.Tagged)
	_, digested := r.(reference.Digested)
	return ok && !tagged && !digested && reference.Path(named) == s
}

func differ(t *testing.T, s string) {
	t.Helper()
	if ours, theirs := oci.CheckName(s) == nil, theirName(s); ours != theirs {
		t.Errorf("name %q: here %v, to distribution/reference %v", s, ours, theirs)
	}
	if ours, theirs := oci.IsTag(s), tagAlone.MatchString(s); ours != theirs {
		t.Errorf("tag %q: here %v, to distribution/reference %v", s, ours, theirs)
	}
	ours, err := oci.ParseDigest(s)
	theirs, theirErr := digest.Parse(s)
	stricter := theirErr == nil && theirs.Algorithm() == digest.SHA384 // which nobody pulls by
	if (err == nil) != (theirErr == nil) && !stricter || err == nil && ours != theirs {
		t.Errorf("digest %q: here %v, %v, to go-digest %v, %v", s, ours, err, theirs, theirErr)
	}
	// A whole path names what the reference does that a client would write.
	for _, uri := range []string{"/v2/" + s + "/manifests/latest", "/v2/library/app/manifests/" + s, "/v2/library/app/blobs/" + s,
		"/v2/@2026-11-01/" + s + "/manifests/latest", "/v2/at-" + s + "/app/manifests/latest"} {
		req, err := ParseRequest(uri)
		if err != nil || req.Name == "" || req.Reference() == "" {
			continue
		}
		target, err := mustRouter(t).Route(req.Name, "", "")
		if err != nil {
			continue
		}
		target.Tag, target.Digest = req.Tag, req.Digest
		r, err := reference.Parse(target.String())
		if err != nil {
			t.Errorf("%q: distribution/reference does not read %q: %v", uri, target, err)
			continue
		}
		if named, ok := r.(reference.Named); !ok || reference.Domain(named) != target.Upstream || reference.Path(named) != target.Repository {
			t.Errorf("%q is %q here, and to distribution/reference %q", uri, target, r)
		}
		if tagged, ok := r.(reference.Tagged); ok != (target.Tag != "") || ok && tagged.Tag() != target.Tag {
			t.Errorf("%q has the tag %q here, and to distribution/reference it is %q", uri, target.Tag, r)
		}
		if digested, ok := r.(reference.Digested); ok != (target.Digest != "") || ok && digested.Digest() != target.Digest {
			t.Errorf("%q has the digest %q here, and to distribution/reference it is %q", uri, target.Digest, r)
		}
	}
}

var differing = []string{
	"", "a", "A", "a/b", "a//b", "/a", "a/", "a.b", "a..b", ".a", "a.", "a_b", "a__b", "a___b", "_a", "a_", "a-b", "a--b", "a---b", "-a", "a-",
	"a._b", "a_.b", "a-_b", "a_-b", "a.-b", "a b", "a\x00", "a\n", "a%2fb", "a:b", "a@b", "a:1/b", "ä", "а", "a／b", "a\\b", "a;b", "a~b", "a+b",
	"docker.io", "docker.io/a", "Docker.io/a", "localhost/a", "localhost:5000/a", "[::1]/a", "[::1]:5000/a", "1.2.3.4/a", "a.b:c/d",
	strings.Repeat("a", 127), strings.Repeat("a", 128), strings.Repeat("a", 129), strings.Repeat("a", 255), strings.Repeat("a", 256), strings.Repeat("a/", 127) + "a", strings.Repeat("a/", 127) + "aa",
	"latest", "1.0", "_1", "-1", ".1", "1-", "1.", "v1_2-3.4", "LATEST", "1.0+build", "manifests", "blobs", "tags/list", "uploads", "uploads/x",
	sum256, sum512, strings.ToUpper(sum256), "sha256:", "sha256", ":", sum256 + "0", sum256[:len(sum256)-1], sum256 + ":x", "sha256:" + strings.Repeat("g", 64),
	"sha384:" + strings.Repeat("a", 96), "sha384:" + strings.Repeat("a", 95), "SHA256:" + sum256[7:], "sha256+b64:" + sum256[7:], "md5:" + strings.Repeat("a", 32), "sha512:" + sum256[7:], " " + sum256, sum256 + "\n",
	strings.Repeat("a", 64), "a@" + sum256, "a:1@" + sum256,
	"2026-11-01", "2026-11-01t12-30-00z", "2026-99-01", "at-2026-11-01", "at-2026-11-01/a", "@2026-11-01", "@2026-11-01/a",
}

func TestNamesTagsAndDigestsAreReadAsClientsReadThem(t *testing.T) {
	for _, s := range differing {
		differ(t, s)
	}
}

func FuzzReadAsClientsDo(f *testing.F) {
	for _, s := range differing {
		f.Add(s)
	}
	f.Fuzz(differ)
}
