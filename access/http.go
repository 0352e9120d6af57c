package access

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"

	"github.com/entrepot-dev/entrepot/oci"
)

// Handler answers by next who may ask, and refuses the others in words.
func (g *Guard) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := Question{Authorization: []byte(r.Header.Get("Authorization"))}
		if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
			q.Peer = peer.Addr()
		}
		for _, v := range r.Header.Values("X-Forwarded-For") {
			q.Forwarded = append(q.Forwarded, []byte(v))
		}
		if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
			q.Certificate = r.TLS.VerifiedChains[0][0]
		}
		_, _, err := g.Identify(q)
		if err == nil {
			next.ServeHTTP(w, r)
			return
		}
		e := &oci.Error{Code: oci.CodeUnknown, Message: "an error inside; the log says more"}
		errors.As(err, &e)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		if e.Challenge != "" {
			w.Header().Set("WWW-Authenticate", e.Challenge)
		}
		w.WriteHeader(e.HTTPStatus())
		// The client is gone where this fails.
		_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": string(e.Code), "message": e.Message}}})
	})
}
