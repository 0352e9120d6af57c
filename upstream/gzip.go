package upstream

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/oci"
)

// isGzip reports whether an answer says that it is compressed, though identity was asked
// for. Proxies and CDNs do that to JSON. Some stores say it of layers, which are gzip files
// anyway: the digest decides which form is right.
func isGzip(h http.Header) bool {
	e := strings.TrimSpace(h.Get("Content-Encoding"))
	return strings.EqualFold(e, "gzip") || strings.EqualFold(e, "x-gzip")
}

const (
	// peekZipped is how much of a blob is read to see whether it is compressed JSON.
	peekZipped = 512
	// maxZipped bounds a blob that is decompressed: configs are smaller.
	maxZipped = 4 << 20
)

// unzip returns the blob d, if res is JSON that was compressed on the way. It returns nil if
// that isn't so; then nothing of the body is lost. Other content is not held up.
func (r *Registry) unzip(ctx context.Context, res *answer, d digest.Digest) ([]byte, *failure) {
	room := &room{memory: r.memory}
	defer room.leave()
	body := room.reader(&uncounted{res.body})
	raw := make([]byte, peekZipped)
	n, err := io.ReadFull(body, raw)
	raw = raw[:n]
	if err == nil && isJSON(raw) {
		var rest []byte
		rest, err = io.ReadAll(io.LimitReader(body, maxZipped-int64(n)+1))
		raw = append(raw, rest...)
	}
	switch {
	case errors.Is(err, errNoRoom):
		return nil, r.crowded(res)
	case err != nil && err != io.EOF && err != io.ErrUnexpectedEOF:
		return nil, r.broken(ctx, res.from, err)
	}
	if isJSON(raw) && len(raw) <= maxZipped && d.Algorithm().FromBytes(raw) != d {
		if z, err := gzip.NewReader(bytes.NewReader(raw)); err == nil {
			plain, err := io.ReadAll(room.reader(io.LimitReader(z, maxZipped+1)))
			if errors.Is(err, errNoRoom) {
				return nil, r.crowded(res)
			}
			if err == nil && len(plain) <= oci.MaxManifestSize && d.Algorithm().FromBytes(plain) == d {
				res.body.count.Add(float64(len(raw)))
				return plain, nil
			}
		}
	}
	res.body.rc = &rejoined{io.MultiReader(bytes.NewReader(raw), res.body.rc), res.body.rc}
	return nil, nil
}

// isJSON reports whether the beginning of a gzip file holds the beginning of a JSON object.
func isJSON(raw []byte) bool {
	z, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return false
	}
	var first [1]byte
	_, err = io.ReadFull(z, first[:])
	return err == nil && first[0] == '{'
}

// uncounted reads a body ahead: its bytes are counted when they are used.
type uncounted struct{ *body }

func (u *uncounted) Read(p []byte) (int, error) {
	u.timer.Reset(u.stall)
	n, err := u.rc.Read(p)
	u.timer.Stop()
	if err != nil && err != io.EOF && context.Cause(u.ctx) != nil {
		err = context.Cause(u.ctx)
	}
	return n, err
}

// rejoined is a body whose beginning has been read.
type rejoined struct {
	io.Reader
	io.Closer
}
