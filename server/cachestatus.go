package server

import (
	"strconv"
	"time"

	"github.com/entrepot-dev/entrepot/cache"
)

// outcomeHeaders says how the answer was come by: Cache-Status (RFC 9211), and
// Age and Warning for a tag that was not just asked for.
func (x *exchange) outcomeHeaders() {
	if x.target.Upstream == "" {
		return
	}
	h := &x.ctx.Response.Header
	x.scratch = appendCacheStatus(x.scratch[:0], x.outcome, x.target.Upstream)
	x.known(headerCacheStatus, x.scratch)
	o := &x.outcome
	if o.Age > 0 && (o.Status == cache.Hit || o.Status == cache.Revalidated || o.Status == cache.Stale || o.Status == cache.Negative) {
		x.scratch = strconv.AppendInt(x.scratch[:0], int64(o.Age/time.Second), 10)
		x.known(headerAge, x.scratch)
	}
	if o.Status == cache.Stale {
		h.Add("Warning", `110 - "Response is Stale"`)
		// Clients may show a 299 to people (distribution-spec, "Warnings").
		b := append(x.scratch[:0], `299 - "`...)
		b = appendQuotable(b, x.target.Upstream)
		b = append(b, " could not be asked"...)
		if o.Reason != "" {
			b = append(b, " ("...)
			b = appendQuotable(b, o.Reason)
			b = append(b, ')')
		}
		b = append(b, ": this is what it said "...)
		b = append(b, o.Age.Round(time.Second).String()...)
		x.scratch = append(b, ` ago"`...)
		h.AddBytesV("Warning", x.scratch)
	}
}

// appendCacheStatus appends a Cache-Status member. The upstream's name, and why
// where there is a reason, are its detail. The upstream's status is left out where
// it is not known, and "stored" where nothing is, or not yet.
func appendCacheStatus(b []byte, o cache.Outcome, upstream string) []byte {
	b = append(b, "entrepot"...)
	switch {
	case o.Status == cache.Hit, o.Status == cache.Negative, o.Status == cache.Stale && o.Forwarded == 0:
		b = append(b, "; hit"...)
	case o.Status == cache.Revalidated, o.Status == cache.Stale:
		b = append(b, "; fwd=stale"...)
	case o.Status == cache.Collapsed:
		b = append(b, "; fwd=miss; collapsed"...)
	case o.Status == cache.Miss:
		b = append(b, "; fwd=miss"...)
	}
	if o.Forwarded != 0 {
		b = append(b, "; fwd-status="...)
		b = strconv.AppendInt(b, int64(o.Forwarded), 10)
	}
	if o.Stored {
		b = append(b, "; stored"...)
	}
	if o.TTL != 0 {
		b = append(b, "; ttl="...)
		b = strconv.AppendInt(b, int64(o.TTL/time.Second), 10)
	}
	b = append(b, `; detail="`...)
	b = appendQuotable(b, upstream)
	if o.Reason != "" {
		b = append(b, ": "...)
		b = appendQuotable(b, o.Reason)
	}
	if o.Unverified {
		b = append(b, ": unverified-range"...)
	}
	return append(b, '"')
}

// appendQuotable appends s so that it may stand between the quotes of a header's
// string: printable ASCII without quotes and backslashes, at most 200 bytes.
func appendQuotable(b []byte, s string) []byte {
	for i := range min(len(s), 200) {
		c := s[i]
		switch {
		case c < ' ' || c > '~':
			c = '?'
		case c == '"' || c == '\\':
			c = '\''
		}
		b = append(b, c)
	}
	return b
}
