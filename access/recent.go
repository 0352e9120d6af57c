package access

import (
	"bytes"
	"crypto/x509"
	"time"
)

// maxRecent is the longest Authorization that is kept with a connection, in bytes.
const maxRecent = 2 << 10

// Recent is what a connection has shown last and who that is: it shows the same with
// each request, and hashing that would be a large part of the cost of a hit. It is for
// one goroutine at a time, and to be forgotten with the connection. The zero value is
// ready for use.
type Recent struct {
	// guard is whose verdicts these are.
	guard *Guard

	header []byte
	known  verdict

	certificate *x509.Certificate
	certified   verdict

	// failed is set while the last credential that was verified was wrong.
	failed bool
}

// hasFailed reports whether the last credential that was verified was wrong. r may be
// nil.
func (r *Recent) hasFailed(g *Guard) bool { return r != nil && r.guard == g && r.failed }

// noteFailure notes whether the credential that was just verified was wrong. r may be
// nil.
func (r *Recent) noteFailure(g *Guard, failed bool) {
	if r == nil {
		return
	}
	if r.guard != g {
		*r = Recent{guard: g, header: r.header[:0]}
	}
	r.failed = failed
}

// shown gives who has shown a header before, as long as that holds; nil where that is
// not known. r may be nil.
func (r *Recent) shown(g *Guard, header []byte, now time.Time) *Caller {
	if r == nil || r.guard != g || !now.Before(r.known.until) || !bytes.Equal(header, r.header) || !g.holds(&r.known) {
		return nil
	}
	return r.known.caller
}

// note keeps a verdict. r may be nil.
func (r *Recent) note(g *Guard, header []byte, known verdict) {
	if r == nil || known.caller == nil || len(header) > maxRecent {
		return
	}
	if r.guard != g {
		*r = Recent{guard: g, header: r.header[:0]}
	}
	r.header, r.known = append(r.header[:0], header...), known
}

// holder gives who a certificate stands for, where that was found out on this
// connection. r may be nil.
func (r *Recent) holder(g *Guard, c *x509.Certificate, now time.Time) *Caller {
	if r == nil || r.guard != g || r.certificate != c || !now.Before(r.certified.until) {
		return nil
	}
	return r.certified.caller
}

// noteHolder keeps who that is. r may be nil.
func (r *Recent) noteHolder(g *Guard, c *x509.Certificate, known verdict) {
	if r == nil {
		return
	}
	if r.guard != g {
		*r = Recent{guard: g, header: r.header[:0]}
	}
	r.certificate, r.certified = c, known
}
