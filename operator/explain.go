package operator

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/distribution/reference"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// explain answers with a cache.Explanation of ?reference=.
func (a *API) explain(r *http.Request) (any, error) {
	text := r.URL.Query().Get("reference")
	if text == "" {
		return nil, invalidf("name a reference: %sexplain?reference=docker.io/library/nginx:1.27", Prefix)
	}
	t, err := Target(a.Router, text)
	if err != nil {
		return nil, err
	}
	return a.Cache.Explain(r.Context(), t)
}

// Target reads a reference as people write it: "nginx" is
// docker.io/library/nginx:latest. Where a digest and a tag are given the digest
// counts.
func Target(router *rewrite.Router, text string) (oci.Target, error) {
	if name, ok := router.Upstream(text); ok && strings.ContainsAny(text, ".:") {
		return oci.Target{}, invalidf("%s is a registry and not an image: name an image of it, such as %s/team/app:1.0; `entrepot ls %s` lists those that are cached", text, name, text)
	}
	named, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		return oci.Target{}, fmt.Errorf("%w: %w", invalidf("%q is no reference of an image, such as docker.io/library/nginx:1.27", text), err)
	}
	t, err := router.Route(reference.Path(named), reference.Domain(named), "")
	if err != nil {
		return oci.Target{}, orOfDefault(router, named, err)
	}
	switch r := reference.TagNameOnly(named).(type) {
	case reference.Digested:
		t.Digest = r.Digest()
	case reference.Tagged:
		t.Tag = r.Tag()
	}
	return t, nil
}

// orOfDefault adds to err, the router's refusal of named, what the reference of the default
// upstream would be. A name without a registry is one of docker.io here, and one of the default
// upstream in what a client pulls from the proxy by its address.
func orOfDefault(router *rewrite.Router, named reference.Named, err error) error {
	var e *oci.Error
	if name := router.Default(); name != "" && reference.Domain(named) == "docker.io" && errors.As(err, &e) {
		hint := *e
		hint.Message += fmt.Sprintf("; did you mean %s/%s?", name, reference.FamiliarString(named))
		return &hint
	}
	return err
}
