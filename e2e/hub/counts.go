package hub

import (
	"net/http"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Kind is what a request asks for.
type Kind string

// The kinds of requests. Any stands for all of them in a Fault.
const (
	Any          Kind = ""
	Ping         Kind = "ping"
	Token        Kind = "token"
	ManifestGet  Kind = "manifest GET"
	ManifestHead Kind = "manifest HEAD"
	BlobGet      Kind = "blob GET"  // at the registry: usually answered by a redirect
	BlobHead     Kind = "blob HEAD" // at the registry
	CDNGet       Kind = "cdn GET"
	Tags         Kind = "tags"
	Referrers    Kind = "referrers"
	Push         Kind = "push"
	Other        Kind = "other"
)

// Counts says how often the hub was asked for what, refused requests and those
// that met a fault included. Two of them can be compared with ==.
type Counts struct {
	Pings, Tokens               int64
	ManifestGets, ManifestHeads int64
	BlobGets, BlobHeads         int64
	CDNGets                     int64
	Tags, Referrers             int64
	Pushes, Others              int64
	// CDNBytes is how many bytes of blobs were sent, by the CDN or without it
	// by the registry.
	CDNBytes int64
	// Swallowed is how many requests a BlackHole took, which are not among
	// those above.
	Swallowed int64
	// Challenges is how many requests the registry answered with 401.
	Challenges int64
	// Leaks is how many requests carried an Authorization header to the CDN,
	// or to the token server one that is the registry's token.
	Leaks int64
}

// Total is the number of requests of all kinds.
func (c Counts) Total() int64 {
	return c.Pings + c.Tokens + c.ManifestGets + c.ManifestHeads + c.BlobGets + c.BlobHeads + c.CDNGets +
		c.Tags + c.Referrers + c.Pushes + c.Others
}

// Request is a request that the hub was sent.
type Request struct {
	Kind   Kind
	Method string
	// URL is path and query.
	URL    string
	Header http.Header
}

// maxRequests bounds what Requests remembers.
const maxRequests = 10000

// Counts gives the counters since the start or ResetCounts.
func (h *Hub) Counts() Counts {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.counts
}

// Sent is how many bytes of the blob d were sent to clients.
func (h *Hub) Sent(d digest.Digest) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sent[d.String()]
}

// Requests gives the requests since the start or ResetCounts, in order, the
// first 10000 of them.
func (h *Hub) Requests() []Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.requests)
}

// ResetCounts sets all counters to zero and forgets the requests.
func (h *Hub) ResetCounts() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts = Counts{}
	h.requests = nil
	clear(h.sent)
}

// note counts a request.
func (h *Hub) note(k Kind, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := &h.counts
	n := map[Kind]*int64{
		Ping: &c.Pings, Token: &c.Tokens, ManifestGet: &c.ManifestGets, ManifestHead: &c.ManifestHeads,
		BlobGet: &c.BlobGets, BlobHead: &c.BlobHeads, CDNGet: &c.CDNGets, Tags: &c.Tags, Referrers: &c.Referrers,
		Push: &c.Pushes, Other: &c.Others,
	}[k]
	*n++
	if len(h.requests) < maxRequests {
		h.requests = append(h.requests, Request{Kind: k, Method: r.Method, URL: r.URL.RequestURI(), Header: r.Header.Clone()})
	}
}

// count changes the counters under the lock.
func (h *Hub) count(f func(*Counts)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(&h.counts)
}
