package hub

import (
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/oci"
)

// maxUpload bounds a pushed blob.
const maxUpload = 1 << 30

// servePush takes uploads, monolithic and in chunks, and manifests: as much as
// clients need that make their own content. Deletes are refused.
func (h *Hub) servePush(w http.ResponseWriter, r *http.Request, rt route) {
	id, upload := strings.CutPrefix(rt.ref, "uploads/")
	switch {
	case upload && r.Method == http.MethodPost:
		h.beginUpload(w, r, rt)
	case upload && (r.Method == http.MethodPatch || r.Method == http.MethodPut || r.Method == http.MethodGet):
		h.continueUpload(w, r, rt, id)
	case !upload && r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/"):
		h.putManifest(w, r, rt)
	default:
		writeError(w, r, http.StatusMethodNotAllowed, "UNSUPPORTED", "not here")
	}
}

func (h *Hub) beginUpload(w http.ResponseWriter, r *http.Request, rt route) {
	if d := r.URL.Query().Get("digest"); d != "" {
		h.finishUpload(w, r, rt, nil, d)
		return
	}
	id := rand.Text()
	h.mu.Lock()
	h.uploads[id] = []byte{}
	h.mu.Unlock()
	h.uploadState(w, rt, id, 0)
}

func (h *Hub) uploadState(w http.ResponseWriter, rt route, id string, n int) {
	w.Header().Set("Location", fmt.Sprintf("/v2/%s/blobs/uploads/%s", rt.repo, id))
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(n-1, 0)))
	w.Header().Set("Docker-Upload-UUID", id)
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusAccepted)
}

func (h *Hub) continueUpload(w http.ResponseWriter, r *http.Request, rt route, id string) {
	h.mu.Lock()
	have, ok := h.uploads[id]
	h.mu.Unlock()
	if !ok {
		writeError(w, r, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "upload unknown")
		return
	}
	switch r.Method {
	case http.MethodGet:
		h.uploadState(w, rt, id, len(have))
	case http.MethodPut:
		h.mu.Lock()
		delete(h.uploads, id)
		h.mu.Unlock()
		h.finishUpload(w, r, rt, have, r.URL.Query().Get("digest"))
	default:
		var from int
		if s := r.Header.Get("Content-Range"); s != "" {
			if _, err := fmt.Sscanf(s, "%d-", &from); err != nil || from != len(have) {
				writeError(w, r, http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", "chunks come in order")
				return
			}
		}
		b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxUpload))
		if err != nil {
			writeError(w, r, http.StatusBadRequest, "SIZE_INVALID", "the chunk cannot be read")
			return
		}
		have = append(have[:len(have):len(have)], b...)
		h.mu.Lock()
		h.uploads[id] = have
		h.mu.Unlock()
		h.uploadState(w, rt, id, len(have))
	}
}

func (h *Hub) finishUpload(w http.ResponseWriter, r *http.Request, rt route, have []byte, want string) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxUpload))
	if err != nil {
		writeError(w, r, http.StatusBadRequest, "SIZE_INVALID", "the blob cannot be read")
		return
	}
	have = append(have[:len(have):len(have)], b...)
	d, err := digest.Parse(want)
	if err != nil || d.Algorithm().FromBytes(have) != d {
		writeError(w, r, http.StatusBadRequest, "DIGEST_INVALID", "the blob is not the digest's")
		return
	}
	h.PushBlob(rt.repo, d, have)
	h.created(w, fmt.Sprintf("/v2/%s/blobs/%s", rt.repo, d), d)
}

func (h *Hub) putManifest(w http.ResponseWriter, r *http.Request, rt route) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, oci.MaxManifestSize))
	if err != nil {
		writeError(w, r, http.StatusRequestEntityTooLarge, "MANIFEST_INVALID", "the manifest cannot be read")
		return
	}
	d := digest.FromBytes(b)
	if want, err := digest.Parse(rt.ref); err == nil {
		if d = want.Algorithm().FromBytes(b); d != want {
			writeError(w, r, http.StatusBadRequest, "DIGEST_INVALID", "the manifest is not the digest's")
			return
		}
	}
	i := &image.Image{Digest: d, Manifests: map[digest.Digest]image.Manifest{d: {MediaType: r.Header.Get("Content-Type"), Bytes: b}}}
	tag := rt.ref
	if strings.Contains(tag, ":") {
		tag = ""
	}
	h.Push(rt.repo, tag, i)
	h.created(w, fmt.Sprintf("/v2/%s/manifests/%s", rt.repo, d), d)
}

func (h *Hub) created(w http.ResponseWriter, location string, d digest.Digest) {
	w.Header().Set("Location", location)
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusCreated)
}
