package hub

import (
	"fmt"
	"net"
	"net/http"
)

// quota is Docker Hub's limit on pulls: manifest GETs.
type quota struct {
	on               bool
	limit, remaining int
	window           int // seconds
}

// LimitPulls puts a limit on manifest GETs, of which HEAD takes none; remaining
// are left now. The window is what the headers say, in seconds: it never ends
// by itself. A limit of 0 lifts it.
func (h *Hub) LimitPulls(limit, remaining, window int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.quota = quota{on: limit > 0, limit: limit, remaining: remaining, window: window}
}

// PullsLeft is how many manifest GETs are left under LimitPulls.
func (h *Hub) PullsLeft() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.quota.remaining
}

// spend takes a pull if the request is one, sets the headers, and answers 429
// where none was left. What is not there costs none.
func (h *Hub) spend(w http.ResponseWriter, r *http.Request, there bool) bool {
	h.mu.Lock()
	q := &h.quota
	if !q.on {
		h.mu.Unlock()
		return true
	}
	ok := true
	if r.Method == http.MethodGet && there {
		if ok = q.remaining > 0; ok {
			q.remaining--
		}
	}
	limit, remaining, window := q.limit, q.remaining, q.window
	h.mu.Unlock()
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	hd := w.Header()
	hd.Set("Ratelimit-Limit", fmt.Sprintf("%d;w=%d", limit, window))
	hd.Set("Ratelimit-Remaining", fmt.Sprintf("%d;w=%d", remaining, window))
	hd.Set("Docker-Ratelimit-Source", host)
	if !ok {
		writeError(w, r, http.StatusTooManyRequests, "TOOMANYREQUESTS",
			"You have reached your pull rate limit. You may increase the limit by authenticating and upgrading: https://www.docker.com/increase-rate-limit")
	}
	return ok
}
