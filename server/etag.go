package server

import (
	"bytes"

	"github.com/opencontainers/go-digest"
)

// digestHeaders names the content: its digest is its strong entity tag.
func (x *exchange) digestHeaders(d digest.Digest) {
	x.scratch = append(append(append(x.scratch[:0], '"'), d...), '"')
	x.known(headerETag, x.scratch)
	x.known(headerDigest, x.scratch[1:len(x.scratch)-1])
}

// isUnmodified tells whether the client has the content already.
func (x *exchange) isUnmodified(d digest.Digest) bool {
	v := x.ctx.Request.Header.Peek("If-None-Match")
	return len(v) > 0 && namesTag(v, string(d))
}

// namesTag tells whether an If-None-Match value names tag: "*", or a list of
// quoted, weak or, as some clients write digests, unquoted tags. Comparison is
// weak (RFC 9110 section 13.1.2).
func namesTag(list []byte, tag string) bool {
	for len(list) > 0 {
		var v []byte
		v, list, _ = bytes.Cut(list, []byte(","))
		v = bytes.TrimSpace(v)
		if string(v) == "*" {
			return true
		}
		v = bytes.TrimPrefix(v, []byte("W/"))
		if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
			v = v[1 : len(v)-1]
		}
		if string(v) == tag {
			return true
		}
	}
	return false
}

// isSameForRange tells whether an If-Range value lets a Range count: it is
// absent, or the tag, strong (RFC 9110 section 13.1.5). A date never does.
func isSameForRange(v []byte, tag string) bool {
	if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
		v = v[1 : len(v)-1]
	}
	return len(v) == 0 || string(v) == tag
}
