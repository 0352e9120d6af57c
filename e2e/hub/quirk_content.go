package hub

import (
	"bytes"
	"compress/gzip"
	"net/http"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

// Gzipped compresses the answers of a kind on the way, whatever encoding was asked for, as
// some proxies and CDNs do. encoding is "gzip" or "x-gzip".
func Gzipped(k Kind, encoding string) Fault { return Fault{kind: k, zip: encoding} }

// zipped sends what a handler writes compressed.
type zipped struct {
	http.ResponseWriter
	encoding string
	z        *gzip.Writer
}

func (w *zipped) WriteHeader(status int) {
	if status == http.StatusOK {
		w.Header().Set("Content-Encoding", w.encoding)
		w.Header().Del("Content-Length")
	}
	w.ResponseWriter.WriteHeader(status)
	if status == http.StatusOK {
		w.z = gzip.NewWriter(w.ResponseWriter)
	}
}

func (w *zipped) Write(b []byte) (int, error) {
	if w.z == nil {
		return w.ResponseWriter.Write(b)
	}
	return w.z.Write(b)
}

func (w *zipped) close() {
	if w.z != nil {
		_ = w.z.Close() // the client may be gone
	}
}

// zip wraps w if one of the faults compresses. done ends the answer.
func zip(w http.ResponseWriter, r *http.Request, met []*rule) (_ http.ResponseWriter, done func()) {
	for _, f := range met {
		if f.zip != "" && r.Method != http.MethodHead {
			z := &zipped{ResponseWriter: w, encoding: f.zip}
			return z, z.close
		}
	}
	return w, func() {}
}

// PushManifest puts a manifest of any bytes into a repository, with the media type that
// the registry says.
func (h *Hub) PushManifest(name, tag, mediaType string, b []byte) digest.Digest {
	d := digest.FromBytes(b)
	h.Push(name, tag, &image.Image{Digest: d, Manifests: map[digest.Digest]image.Manifest{d: {MediaType: mediaType, Bytes: bytes.Clone(b)}}})
	return d
}

// Forget removes a blob from a repository, as a registry that never took it.
func (h *Hub) Forget(name string, d digest.Digest) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.repo(name).blobs, d)
}
