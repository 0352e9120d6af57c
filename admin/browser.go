package admin

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// browsers refuses what a browser of the operator's sends at the bidding of another
// site: such a page reaches listeners that the network does not let its author
// reach. Two ways are shut:
//
//   - Requests from a page of another site (cross-site request forgery), which
//     Sec-Fetch-Site and Origin give away. A link may be followed from anywhere:
//     its answer is shown to the operator and to no page.
//   - A name of the other site that resolves to this machine (DNS rebinding), for
//     its page then counts as this listener's own. With named set the Host must be
//     an address, localhost or one of names. It need not be if everything needs a
//     login: a browser shows what it knows for one name to no other.
//
// Clients that are no browsers send neither header.
type browsers struct {
	next  http.Handler
	named bool
	names []string
}

// before gives what checks requests before next answers them.
func (b browsers) before(next http.Handler) http.Handler {
	b.next = next
	return b
}

func (b browsers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	if b.named && !b.isOwn(r.Host) {
		http.Error(w, "this listener is asked by its address or as localhost; add other names for it to admin.hosts", http.StatusMisdirectedRequest)
		return
	}
	if isForeign(r) {
		http.Error(w, "a page of another site has made this request", http.StatusForbidden)
		return
	}
	b.next.ServeHTTP(w, r)
}

// isOwn tells whether a Host header names this listener.
func (b browsers) isOwn(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.TrimSuffix(strings.ToLower(strings.Trim(name, "[]")), ".")
	if name == "" || name == "localhost" {
		return true
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return true
	}
	return slices.Contains(b.names, name)
}

// foreign is what the standard library holds requests to that change something.
var foreign = http.NewCrossOriginProtection()

// isForeign tells whether a page of another site has made a request. Requests that
// only ask are held to the same rule, for some of them are work; but links.
func isForeign(r *http.Request) bool {
	if (r.Method == http.MethodGet || r.Method == http.MethodHead) &&
		r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document" {
		return false
	}
	asChange := *r
	asChange.Method = http.MethodPost
	return foreign.Check(&asChange) != nil
}
