package hub

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/oci"
)

// route is what a path under /v2/ names.
type route struct {
	kind Kind
	repo string
	ref  string
}

// parseRoute reads a path from the right: a repository may have any name.
func parseRoute(method, path string) route {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		if path == "/v2" {
			return route{kind: Ping}
		}
		return route{kind: Other}
	}
	if rest == "" {
		return route{kind: Ping}
	}
	if repo, ok := strings.CutSuffix(rest, "/tags/list"); ok {
		return route{kind: Tags, repo: repo}
	}
	head := method == http.MethodHead
	for _, c := range []struct {
		word      string
		get, head Kind
	}{
		{"/manifests/", ManifestGet, ManifestHead},
		{"/blobs/", BlobGet, BlobHead},
		{"/referrers/", Referrers, Referrers},
	} {
		i := strings.LastIndex(rest, c.word)
		if i <= 0 || strings.Contains(rest[i+len(c.word):], "/") && !strings.HasPrefix(rest[i:], "/blobs/uploads/") {
			continue
		}
		rt := route{kind: c.get, repo: rest[:i], ref: rest[i+len(c.word):]}
		if head {
			rt.kind = c.head
		}
		if method != http.MethodGet && !head || strings.HasPrefix(rest[i:], "/blobs/uploads/") {
			rt.kind = Push
		}
		return rt
	}
	return route{kind: Other}
}

// serveRegistry answers on the registry's listener.
func (h *Hub) serveRegistry(w http.ResponseWriter, r *http.Request) {
	if h.o.RelativeRedirect && strings.HasPrefix(r.URL.Path, "/registry-v2/") {
		r.Header.Del("Authorization") // same host: it may come along
		h.serveCDN(w, r)
		return
	}
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	rt := parseRoute(r.Method, r.URL.Path)
	h.note(rt.kind, r)
	d, _ := digest.Parse(rt.ref)
	met := h.trouble(ask{kind: rt.kind, repo: rt.repo, digest: d, bytes: h.o.NoCDN && rt.kind == BlobGet, later: isLater(r)})
	if h.before(w, r, met) {
		return
	}
	w, done := zip(w, r, met)
	defer done()
	if rt.kind == Other {
		writeError(w, r, http.StatusNotFound, "UNSUPPORTED", "no such page")
		return
	}
	if !h.authorize(w, r, scopeName(met, rt.repo), rt.kind == Push) {
		return
	}
	switch rt.kind {
	case Ping:
		writeJSON(w, r, "application/json", []byte("{}"))
	case ManifestGet, ManifestHead:
		if h.o.RedirectManifests {
			w.Header().Set("Location", h.CDNURL()+r.URL.Path)
			w.WriteHeader(http.StatusTemporaryRedirect)
			return
		}
		h.serveManifest(w, r, rt, met)
	case BlobGet, BlobHead:
		h.serveBlob(w, r, rt, met)
	case Tags, Referrers:
		if h.movedList(w, r, met) {
			return
		}
		if rt.kind == Tags {
			h.serveTags(w, r, rt, met)
		} else {
			h.serveReferrers(w, r, rt, met)
		}
	case Push:
		h.servePush(w, r, rt)
	}
}

func (h *Hub) serveManifest(w http.ResponseWriter, r *http.Request, rt route, met []*rule) {
	d, m, ok := h.manifest(rt.repo, digestTag(rt.ref, met))
	if !isUncounted(met) && !h.spend(w, r, ok) {
		return
	}
	if !ok {
		writeError(w, r, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
		return
	}
	if strings.Contains(rt.ref, ":") {
		// By digest: as it is.
	} else if d2, m2, ok := h.negotiate(rt.repo, m, strings.Join(r.Header.Values("Accept"), ",")); ok {
		d, m = d2, m2
	}
	bare, body := false, m.Bytes
	named := d
	for _, f := range met {
		bare = bare || f.bare
		if f.lie {
			named = another(d)
		}
		if f.end == flip && f.at < int64(len(body)) {
			body = append([]byte{}, body...)
			body[f.at] ^= 1
		}
	}
	if !bare {
		w.Header().Set("Docker-Content-Digest", named.String())
	}
	w.Header().Set("ETag", `"`+d.String()+`"`)
	writeJSON(w, r, m.MediaType, body)
}

func (h *Hub) manifest(repo, ref string) (digest.Digest, image.Manifest, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.repos[repo]
	if r == nil {
		return "", image.Manifest{}, false
	}
	d, ok := r.tags[ref]
	if !ok {
		d = digest.Digest(ref)
	}
	m, ok := r.manifests[d]
	return d, m, ok
}

// negotiate chooses linux/amd64 out of an index for a client that takes none.
func (h *Hub) negotiate(repo string, m image.Manifest, accept string) (digest.Digest, image.Manifest, bool) {
	index := m.MediaType == v1.MediaTypeImageIndex || m.MediaType == oci.MediaTypeDockerManifestList
	if !index || accept == "" || strings.Contains(accept, "*/*") ||
		strings.Contains(accept, v1.MediaTypeImageIndex) || strings.Contains(accept, oci.MediaTypeDockerManifestList) {
		return "", m, false
	}
	var parsed v1.Index
	if json.Unmarshal(m.Bytes, &parsed) != nil {
		return "", m, false
	}
	for _, c := range parsed.Manifests {
		if c.Platform != nil && c.Platform.OS == "linux" && c.Platform.Architecture == "amd64" {
			return h.manifest(repo, c.Digest.String())
		}
	}
	return "", m, false
}

func (h *Hub) serveBlob(w http.ResponseWriter, r *http.Request, rt route, met []*rule) {
	d := digest.Digest(rt.ref)
	h.mu.Lock()
	var content []byte
	var ok bool
	if repo := h.repos[rt.repo]; repo != nil {
		content, ok = repo.blobs[d]
	}
	h.mu.Unlock()
	if !ok {
		writeError(w, r, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
		return
	}
	switch {
	case h.o.NoCDN || rt.kind == BlobHead:
		named := d
		for _, f := range met {
			if f.lie {
				named = another(d)
			}
		}
		w.Header().Set("Docker-Content-Digest", named.String())
		h.sendBlob(w, r, d, content, met)
	case h.o.RelativeRedirect:
		w.Header().Set("Location", h.signed(d))
		w.WriteHeader(http.StatusTemporaryRedirect)
	default:
		w.Header().Set("Location", h.CDNURL()+h.signed(d))
		w.WriteHeader(http.StatusTemporaryRedirect)
	}
}

// another gives a digest that is not d.
func another(d digest.Digest) digest.Digest { return digest.FromString("not " + d.String()) }

func (h *Hub) serveTags(w http.ResponseWriter, r *http.Request, rt route, met []*rule) {
	h.mu.Lock()
	repo := h.repos[rt.repo]
	var tags []string
	if repo != nil {
		tags = slices.Sorted(maps.Keys(repo.tags))
	}
	h.mu.Unlock()
	if repo == nil {
		writeError(w, r, http.StatusNotFound, "NAME_UNKNOWN", "repository name not known to registry")
		return
	}
	for _, f := range met {
		if f.list != nil && f.list.gcr {
			h.serveGoogleTags(w, rt, tags)
			return
		}
	}
	q := r.URL.Query()
	if last := q.Get("last"); last != "" {
		i, found := slices.BinarySearch(tags, last)
		if found {
			i++
		}
		tags = tags[i:]
	}
	limit := h.pageSize(met)
	if n, err := strconv.Atoi(q.Get("n")); err == nil && n >= 0 {
		if limit == 0 || n < limit {
			limit = n
		}
		if n == 0 {
			tags = nil
		}
	}
	var next url.Values
	if limit > 0 && len(tags) > limit {
		tags = tags[:limit]
		next = url.Values{"n": {strconv.Itoa(limit)}, "last": {tags[limit-1]}}
	}
	h.linkPage(w, r, next, met)
	if tags == nil {
		tags = []string{}
	}
	b, err := json.Marshal(map[string]any{"name": rt.repo, "tags": tags})
	if err != nil {
		panic(err)
	}
	writeJSON(w, r, "application/json", b)
}

func (h *Hub) serveReferrers(w http.ResponseWriter, r *http.Request, rt route, met []*rule) {
	h.mu.Lock()
	off := h.noRefs
	h.mu.Unlock()
	if off {
		writeError(w, r, http.StatusNotFound, "UNSUPPORTED", "404 page not found")
		return
	}
	subject, err := digest.Parse(rt.ref)
	if err != nil {
		writeError(w, r, http.StatusBadRequest, "DIGEST_INVALID", "invalid digest")
		return
	}
	q := r.URL.Query()
	filter := q.Get("artifactType")
	h.mu.Lock()
	found := []v1.Descriptor{}
	if repo := h.repos[rt.repo]; repo != nil {
		found = repo.referrers(subject, filter)
	}
	h.mu.Unlock()
	if filter != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	from, _ := strconv.Atoi(q.Get("page")) // zero where it is absent
	found = found[min(max(from, 0), len(found)):]
	var next url.Values
	if limit := h.pageSize(met); limit > 0 && len(found) > limit {
		found = found[:limit]
		q.Set("page", strconv.Itoa(from+limit))
		next = q
	}
	h.linkPage(w, r, next, met)
	index := image.Referrers(found...)
	writeJSON(w, r, v1.MediaTypeImageIndex, index.Bytes())
}

// writeJSON answers 200 with a body, or to a HEAD without it.
func writeJSON(w http.ResponseWriter, r *http.Request, mediaType string, b []byte) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(b) // the client may be gone
	}
}

func writeError(w http.ResponseWriter, r *http.Request, status int, code, message string) {
	b := errorJSON(code, message)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write([]byte(b)) // the client may be gone
	}
}
