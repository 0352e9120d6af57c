package upstream

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
)

func (r *Registry) blobAsk(op, method, repo string, d digest.Digest) *ask {
	return &ask{
		op: op, method: method, repo: repo, path: "blobs/" + d.String(),
		what: "the blob " + r.image(repo, d.String()), absent: oci.CodeBlobUnknown,
	}
}

// Stat asks with HEAD whether repo has the blob, and its size. The size is -1 if the
// upstream does not say it, or refuses the HEAD: then only a GET tells whether the
// blob is there.
func (r *Registry) Stat(ctx context.Context, repo string, d digest.Digest) (v1.Descriptor, error) {
	desc := v1.Descriptor{MediaType: oci.MediaTypeOctetStream, Digest: d, Size: -1}
	key := headKey("blob", repo)
	if r.skipsHead(key) {
		return desc, nil
	}
	f := r.do(ctx, r.blobAsk("stat", http.MethodHead, repo, d), func(res *answer) *failure {
		if res.StatusCode != http.StatusOK {
			return r.garbled(res, "answered %d to a HEAD", res.StatusCode)
		}
		// Some say of every HEAD that nothing follows, which is true.
		if isGzip(res.Header) {
			return nil // the length may be that of the compressed form
		}
		if res.ContentLength > 0 || d == d.Algorithm().FromBytes(nil) {
			desc.Size = res.ContentLength
		}
		return nil
	})
	switch {
	case f == nil:
		r.heads.worked(key)
	case isHint(f):
		// If the registry sent us to its store, the signature in that URL may be
		// for GET only.
		r.heads.refused(key)
	default:
		return v1.Descriptor{}, f.err
	}
	return desc, nil
}

// Blob opens the blob's bytes from span.From on. The body says what it really
// carries, which is the whole blob if the upstream doesn't send parts; its bytes are
// not verified. The caller closes it, and ctx bounds its reading too. The registry's
// own URL is asked each time, not the signed one that it redirected to before; only small
// pieces of one blob come from there for a short while (see shortcuts).
func (r *Registry) Blob(ctx context.Context, repo string, d digest.Digest, span oci.Span) (*oci.Body, error) {
	if span.From < 0 || (span.To != oci.Open && span.To <= span.From) {
		return nil, &oci.Error{Code: oci.CodeRangeInvalid, Message: fmt.Sprintf("bytes %d to %d are no range", span.From, span.To)}
	}
	a := r.blobAsk("blob", http.MethodGet, repo, d)
	a.bulk = true
	if span != oci.Whole {
		a.span = &span
	}
	var out *oci.Body
	f := r.do(ctx, a, func(res *answer) *failure {
		refuse := func() {
			r.shortcuts.forget(res.shortcut())
			r.refuse(res.ep)
		}
		var plain io.ReadCloser
		plainSize := int64(-1)
		if res.StatusCode == http.StatusOK && isGzip(res.Header) {
			var f *failure
			if plain, plainSize, f = r.unzip(ctx, res, d); f != nil {
				return f
			}
			if plainSize >= 0 && plain != nil {
				out = &oci.Body{ReadCloser: plain, Span: oci.Span{From: 0, To: plainSize}, Size: plainSize,
					Status: res.StatusCode, Source: res.from, Refuse: refuse}
				return nil
			}
		}
		got, size, f := r.carried(res, span)
		if f != nil {
			return f
		}
		b := res.body
		if got.To != oci.Open {
			b.left = got.To - got.From
		}
		b.explain = func(err error) error {
			f := r.broken(ctx, res.from, err)
			r.metrics.UpstreamErrors.WithLabelValues(r.name, f.reason).Inc()
			r.shortcuts.forget(res.shortcut())
			if f.again != nobody {
				res.ep.rest(afterFailure)
			}
			return f.err
		}
		res.keep = true
		var content io.ReadCloser = b
		if plain != nil {
			content, got, size = plain, oci.Whole, -1
		}
		out = &oci.Body{ReadCloser: content, Span: got, Size: size, Status: res.StatusCode, Source: res.from, Refuse: refuse, NoRanges: res.ep.forgoRanges}
		return nil
	})
	if f != nil {
		return nil, f.err
	}
	r.heads.contradicted(headKey(a.op, repo))
	return out, nil
}

func rangeHeader(s oci.Span) string {
	if s.To == oci.Open {
		return fmt.Sprintf("bytes=%d-", s.From)
	}
	return fmt.Sprintf("bytes=%d-%d", s.From, s.To-1)
}

// carried tells what part of a blob an answer carries, and the blob's size.
func (r *Registry) carried(res *answer, asked oci.Span) (oci.Span, int64, *failure) {
	// Content-Encoding does not count: some stores have it on layers, which are
	// compressed files. The digest tells whether the bytes are right.
	length := res.ContentLength
	switch res.StatusCode {
	case http.StatusOK:
		return oci.Span{From: 0, To: length}, length, nil // -1 is both Open and unknown
	case http.StatusPartialContent:
	default:
		return oci.Span{}, 0, r.garbled(res, "answered %d to a GET of a blob", res.StatusCode)
	}
	got, size, ok := contentRange(res.Header.Get("Content-Range"))
	switch {
	case !ok || len(res.Header.Values("Content-Range")) != 1:
		return oci.Span{}, 0, r.garbled(res, "sent a part of a blob without saying which")
	case length >= 0 && length != got.To-got.From:
		return oci.Span{}, 0, r.garbled(res, "sent %d bytes and says that they are bytes %d to %d", length, got.From, got.To-1)
	case got.From > asked.From || got.To <= asked.From:
		return oci.Span{}, 0, r.garbled(res, "sent the bytes from %d on when asked for those from %d on", got.From, asked.From)
	}
	return got, size, nil
}

// contentRange reads "bytes 0-99/1000" (RFC 9110, section 14.4). The size is -1
// for "*".
func contentRange(s string) (span oci.Span, size int64, ok bool) {
	unit, rest, _ := strings.Cut(strings.TrimSpace(s), " ")
	if !strings.EqualFold(unit, "bytes") {
		return
	}
	bytes, total, ok1 := strings.Cut(strings.TrimSpace(rest), "/")
	first, last, ok2 := strings.Cut(bytes, "-")
	if !ok1 || !ok2 {
		return
	}
	from, ok1 := number(first)
	to, ok2 := number(last)
	if !ok1 || !ok2 || to < from {
		return
	}
	size = -1
	if total = strings.TrimSpace(total); total != "*" {
		if size, ok1 = number(total); !ok1 || size <= to {
			return oci.Span{}, 0, false
		}
	}
	return oci.Span{From: from, To: to + 1}, size, true
}

// number reads digits only, below what could overflow when one is added.
func number(s string) (int64, bool) {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 62)
	return int64(n), err == nil
}
