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

// unzip returns the content of blob d, and its length or -1, if res was compressed on the
// way. The content is res itself, decompressed, if it is long. It returns nil if res is the
// blob as it is; then nothing of the body is lost. The peek holds up no other content.
func (r *Registry) unzip(ctx context.Context, res *answer, d digest.Digest) (io.ReadCloser, int64, *failure) {
	room := &room{memory: r.memory}
	defer room.leave()
	body := room.reader(&uncounted{res.body})
	raw := make([]byte, peekZipped)
	n, err := io.ReadFull(body, raw)
	raw = raw[:n]
	start := unzipStart(raw)
	json := bytes.HasPrefix(start, []byte("{"))
	if err == nil && json {
		var rest []byte
		rest, err = io.ReadAll(io.LimitReader(body, maxZipped-int64(n)+1))
		raw = append(raw, rest...)
	}
	switch {
	case errors.Is(err, errNoRoom):
		return nil, 0, r.crowded(res)
	case err != nil && err != io.EOF && err != io.ErrUnexpectedEOF:
		return nil, 0, r.broken(ctx, res.from, err)
	}
	if json && len(raw) <= maxZipped && d.Algorithm().FromBytes(raw) != d {
		if z, err := gzip.NewReader(bytes.NewReader(raw)); err == nil {
			plain, err := io.ReadAll(room.reader(io.LimitReader(z, maxZipped+1)))
			if errors.Is(err, errNoRoom) {
				return nil, 0, r.crowded(res)
			}
			if err == nil && len(plain) <= oci.MaxManifestSize && d.Algorithm().FromBytes(plain) == d {
				res.body.count.Add(float64(len(raw)))
				return io.NopCloser(bytes.NewReader(plain)), int64(len(plain)), nil
			}
		}
	}
	res.body.rc = &rejoined{io.MultiReader(bytes.NewReader(raw), res.body.rc), res.body.rc}
	if isCompressed(start) {
		return &unzipped{body: res.body, wrong: func(err error) error { return r.broken(ctx, res.from, err).err }}, -1, nil
	}
	return nil, 0, nil
}

// unzipStart returns the first bytes of what the beginning of a gzip file holds; none if it
// isn't one.
func unzipStart(raw []byte) []byte {
	z, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil
	}
	start := make([]byte, 4)
	n, _ := io.ReadFull(z, start) // the rest of the file is missing
	return start[:n]
}

// isCompressed reports whether content begins as gzip or zstd. Nobody makes a layer that is
// compressed twice: a gzip file of such content was made on the way.
func isCompressed(start []byte) bool {
	return bytes.HasPrefix(start, []byte{0x1f, 0x8b}) || bytes.HasPrefix(start, []byte{0x28, 0xb5, 0x2f, 0xfd})
}

// unzipped decompresses a body while it is read.
type unzipped struct {
	*body
	z     *gzip.Reader
	wrong func(error) error // makes the error of bytes that aren't gzip
}

func (u *unzipped) Read(p []byte) (n int, err error) {
	if u.z == nil {
		u.z, err = gzip.NewReader(u.body)
	}
	if err == nil {
		n, err = u.z.Read(p)
	}
	if e := (*oci.Error)(nil); err != nil && err != io.EOF && !errors.As(err, &e) {
		err = u.wrong(err)
	}
	return n, err
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
