package rewrite

import (
	"errors"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/oci"
)

const (
	sum256 = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	sum512 = "sha512:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

func TestPathNamesAResource(t *testing.T) {
	for uri, want := range map[string]struct {
		resource        Resource
		name, reference string
	}{
		"/":                                        {Root, "", ""},
		"/v2":                                      {Ping, "", ""},
		"/v2/":                                     {Ping, "", ""},
		"/v2/?ns=docker.io":                        {Ping, "", ""},
		"http://cache:5000/v2/":                    {Ping, "", ""},
		"/v2/_catalog?n=10":                        {CatalogPath, "", ""},
		"/v2/a/manifests/latest":                   {ManifestPath, "a", "latest"},
		"/v2/a/b/manifests/manifests/latest":       {ManifestPath, "a/b/manifests", "latest"},
		"/v2/manifests/manifests/latest":           {ManifestPath, "manifests", "latest"},
		"/v2/manifests/blobs/manifests/latest":     {ManifestPath, "manifests/blobs", "latest"},
		"/v2/a/manifests/tags/list":                {TagsPath, "a/manifests", ""},
		"/v2/tags/list/tags/list":                  {TagsPath, "tags/list", ""},
		"/v2/a/tags/list/manifests/list":           {ManifestPath, "a/tags/list", "list"},
		"/v2/a/blobs/uploads/manifests/x":          {ManifestPath, "a/blobs/uploads", "x"},
		"/v2/a/blobs/uploads/":                     {UploadPath, "a", ""},
		"/v2/a/blobs/uploads/some-id?digest=x":     {UploadPath, "a", ""},
		"/v2/a/manifests/" + sum256:                {ManifestPath, "a", sum256},
		"/v2/a/manifests/sha256%3A" + sum256[7:]:   {ManifestPath, "a", sum256},
		"/v2/a/blobs/" + sum512 + "?ns=ghcr.io":    {BlobPath, "a", sum512},
		"/v2/a/referrers/" + sum256:                {ReferrersPath, "a", sum256},
		"/v2/library%2Fnginx/manifests/1.27":       {ManifestPath, "library/nginx", "1.27"},
		"/v2/localhost:5000/app/manifests/v1":      {ManifestPath, "localhost:5000/app", "v1"},
		"/v2/ghcr.io/a__b/c-----d/e.f/manifests/_": {ManifestPath, "ghcr.io/a__b/c-----d/e.f", "_"},
		"/docker.io/v2/":                           {Ping, "", ""},
		"/docker.io/v2":                            {Ping, "", ""},
		"/v2/v2/":                                  {Ping, "", ""},
		"/v2/docker.io/v2/":                        {Ping, "", ""},
		"/docker.io/v2/_catalog":                   {CatalogPath, "", ""},
		"/docker.io/v2/library/a/manifests/1":      {ManifestPath, "docker.io/library/a", "1"},
		"/localhost:5000/v2/a/manifests/1":         {ManifestPath, "localhost:5000/a", "1"},
		"/localhost_5000/v2/a/blobs/" + sum256:     {BlobPath, "localhost_5000/a", sum256},
		"/docker.io/v2/v2/a/b/manifests/1":         {ManifestPath, "docker.io/v2/a/b", "1"},
		"/v2/a.test:1/a.test:1/b/manifests/1":      {ManifestPath, "a.test:1/a.test:1/b", "1"},
		"/v2/v2/a.test:1/b/manifests/1":            {ManifestPath, "v2/a.test:1/b", "1"},
		"/plain/v2/a/manifests/1":                  {Unknown, "", ""},
		"/docker.io/v20/a/manifests/1":             {Unknown, "", ""},
		"/v1/search":                               {Unknown, "", ""},
		"/v20/":                                    {Unknown, "", ""},
		"/v2/a":                                    {Unknown, "", ""},
		"/v2/a/tags/list/":                         {Unknown, "", ""},
		"*":                                        {Unknown, "", ""},
		"":                                         {Unknown, "", ""},
	} {
		got, err := ParseRequest(uri)
		if err != nil {
			t.Errorf("ParseRequest(%q): %v", uri, err)
			continue
		}
		if got.Resource != want.resource || got.Name != want.name || got.Reference() != want.reference {
			t.Errorf("ParseRequest(%q)\n got %v %q %q\nwant %v %q %q", uri, got.Resource, got.Name, got.Reference(), want.resource, want.name, want.reference)
		}
	}
}

func TestPathOutsideTheGrammarIsRefused(t *testing.T) {
	for uri, want := range map[string]oci.Code{
		"/v2/manifests/latest":                                    oci.CodeNameInvalid,
		"/v2//a/manifests/latest":                                 oci.CodeNameInvalid,
		"/v2/a//b/manifests/latest":                               oci.CodeNameInvalid,
		"/v2/a//manifests/latest":                                 oci.CodeNameInvalid,
		"/v2/../a/manifests/latest":                               oci.CodeNameInvalid,
		"/v2/a/../b/manifests/latest":                             oci.CodeNameInvalid,
		"/v2/a/%2e%2e/b/manifests/latest":                         oci.CodeNameInvalid,
		"/v2/a/%252e%252e/b/manifests/latest":                     oci.CodeNameInvalid,
		"/v2/a/.%2fb/manifests/latest":                            oci.CodeNameInvalid,
		"/v2/a%0ab/manifests/latest":                              oci.CodeNameInvalid,
		"/v2/a%00/manifests/latest":                               oci.CodeNameInvalid,
		"/v2/a%/manifests/latest":                                 oci.CodeNameInvalid,
		"/v2/A/manifests/latest":                                  oci.CodeNameInvalid,
		"/v2/a/B/manifests/latest":                                oci.CodeNameInvalid,
		"/v2/a___b/manifests/latest":                              oci.CodeNameInvalid,
		"/v2/a._b/manifests/latest":                               oci.CodeNameInvalid,
		"/v2/a_-b/manifests/latest":                               oci.CodeNameInvalid,
		"/v2/-a/manifests/latest":                                 oci.CodeNameInvalid,
		"/v2/a-/manifests/latest":                                 oci.CodeNameInvalid,
		"/v2/a/b:5000/manifests/latest":                           oci.CodeNameInvalid,
		"/v2/user@host/a/manifests/latest":                        oci.CodeNameInvalid,
		"/v2/" + strings.Repeat("a", 256) + "/manifests/latest":   oci.CodeNameInvalid,
		"/v2/a/manifests/" + strings.Repeat("x", maxURI):          oci.CodeNameInvalid,
		"/v2/a/manifests/":                                        oci.CodeTagInvalid,
		"/v2/a/manifests/.INVALID_MANIFEST_NAME":                  oci.CodeTagInvalid,
		"/v2/a/manifests/x/y":                                     oci.CodeTagInvalid,
		"/v2/a/manifests/x%2e%2e%2fy":                             oci.CodeTagInvalid,
		"/v2/a/manifests/" + strings.Repeat("x", 129):             oci.CodeTagInvalid,
		"/v2/a/manifests/sha256:abc":                              oci.CodeDigestInvalid,
		"/v2/a/manifests/sha256:" + strings.ToUpper(sum256[7:]):   oci.CodeDigestInvalid,
		"/v2/a/blobs/":                                            oci.CodeDigestInvalid,
		"/v2/a/blobs/latest":                                      oci.CodeDigestInvalid,
		"/v2/a/blobs/md5:d41d8cd98f00b204e9800998ecf8427e":        oci.CodeDigestInvalid,
		"/v2/a/blobs/sha512:" + sum256[7:]:                        oci.CodeDigestInvalid,
		"/v2/a/blobs/" + sum256 + "/":                             oci.CodeDigestInvalid,
		"/v2/a/referrers/" + strings.Replace(sum256, "0", ".", 1): oci.CodeDigestInvalid,
	} {
		req, err := ParseRequest(uri)
		var e *oci.Error
		if !errors.As(err, &e) || e.Code != want {
			t.Errorf("ParseRequest(%.80q)\n got %+v, error %v\nwant %s", uri, req, err, want)
			continue
		}
		if strings.ContainsFunc(e.Message, func(r rune) bool { return r < ' ' }) {
			t.Errorf("ParseRequest(%.80q): control character in message %q", uri, e.Message)
		}
	}
}

func TestQueryValueIsDecodedOnce(t *testing.T) {
	for _, c := range []struct {
		query, key, want string
		ok               bool
	}{
		{"n=5&last=a%2Fb", "last", "a/b", true},
		{"last=%252F", "last", "%2F", true},
		{"artifactType=application%2Fx+y", "artifactType", "application/x y", true},
		{"ns=a&ns=b", "ns", "a", true},
		{"ns", "ns", "", true},
		{"nsx=1", "ns", "", false},
		{"ns=%zz", "ns", "", false},
		{"", "ns", "", false},
	} {
		if got, ok := QueryValue(c.query, c.key); got != c.want || ok != c.ok {
			t.Errorf("QueryValue(%q, %q) = %q, %v; want %q, %v", c.query, c.key, got, ok, c.want, c.ok)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, seed := range []string{
		"/", "/v2/", "/v2/_catalog", "/v2/a/b/manifests/manifests/latest", "/v2/a%2Fb/blobs/" + sum256,
		"/v2/a/tags/list?n=1&last=b", "/v2/a/../b/manifests/x", "http://h/v2/a/referrers/" + sum512,
		"/v2/h:1/a/blobs/uploads/x", "/v2/%00/manifests/%",
		"/v2/@2026-11-01/docker.io/a/manifests/1", "/v2/at-2026-11-01t12-30-00z/a/b/tags/list", "/v2/@2026-11-01T12:30:00+02:00/a/b/blobs/" + sum256,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		req, err := ParseRequest(uri)
		if err != nil {
			var e *oci.Error
			if !errors.As(err, &e) {
				t.Fatalf("error %v is not typed", err)
			}
			return
		}
		if strings.Contains(req.Name, "..") || strings.Contains(req.Name, "//") || strings.HasPrefix(req.Name, "/") || len(req.Name) > 2*oci.MaxName+1 {
			t.Errorf("name %q", req.Name)
		}
		for _, s := range []string{req.Name, req.Reference()} {
			if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '%' || r == '?' }) {
				t.Errorf("%q in %q", s, uri)
			}
		}
		if req.Tag != "" && req.Digest != "" {
			t.Errorf("both a tag and a digest: %+v", req)
		}
		if req.Digest != "" && req.Digest.Validate() != nil {
			t.Errorf("digest %q", req.Digest)
		}
		if !req.AsOf.IsZero() && (req.Name == "" || req.AsOf.Unix() < 0 || req.Name[0] == '@') {
			t.Errorf("as of %v: %+v", req.AsOf, req)
		}
		if req.Name != "" {
			target, err := mustRouter(t).Route(req.Name, "", "")
			if err == nil && oci.CheckName(target.Repository) != nil {
				t.Errorf("repository %q", target.Repository)
			}
		}
	})
}
