package server

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/valyala/fasthttp"

	"github.com/entrepot-dev/entrepot/rewrite"
)

// tags answers /v2/<name>/tags/list.
func (x *exchange) tags() {
	all, outcome, err := x.s.content.Tags(x.s.base, x.target)
	x.outcome = outcome
	if err == nil {
		all, err = x.page(all)
	}
	if err != nil {
		x.fail(err)
		return
	}
	x.sendJSON(jsonType, struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{x.request.Name, all})
}

// referrers answers /v2/<name>/referrers/<digest>.
func (x *exchange) referrers() {
	found, outcome, err := x.s.content.Referrers(x.s.base, x.target)
	x.outcome = outcome
	if err != nil {
		x.fail(err)
		return
	}
	if wanted, ok := rewrite.QueryValue(x.request.Query, "artifactType"); ok && wanted != "" {
		found = slices.DeleteFunc(slices.Clone(found), func(d v1.Descriptor) bool { return d.ArtifactType != wanted })
		x.header("OCI-Filters-Applied", "artifactType")
	}
	x.sendJSON(v1.MediaTypeImageIndex, v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageIndex,
		Manifests: nonNil(found),
	})
}

// catalog answers /v2/_catalog: what is cached, each name such that it can be
// pulled from here. With ns, the names at that upstream.
func (x *exchange) catalog() {
	all, err := x.s.content.Repositories(x.s.base)
	if err == nil {
		all = x.visible(all)
	}
	if err == nil && x.by.grants != nil {
		all = x.by.grants.Visible(all, x.authorization())
		x.header("Cache-Control", "private")
	}
	if err == nil && x.ns != "" {
		// An ns that is not configured has nothing cached.
		upstream, _ := x.s.router.Upstream(x.ns)
		var there []string
		for _, name := range all {
			if up, repository, _ := strings.Cut(name, "/"); up == upstream {
				there = append(there, repository)
			}
		}
		all = there
	}
	if err == nil {
		all, err = x.page(all)
	}
	if err != nil {
		x.fail(err)
		return
	}
	x.sendJSON(jsonType, struct {
		Repositories []string `json:"repositories"`
	}{all})
}

func (x *exchange) sendJSON(contentType string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		x.fail(err)
		return
	}
	x.send(fasthttp.StatusOK, contentType, append(b, '\n'))
}
