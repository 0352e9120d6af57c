package upstream

import (
	"net/http"
	"strconv"
	"strings"
)

// noteQuota exposes the pulls that the upstream says it grants and has left:
// "ratelimit-limit: 100;w=21600" (Docker Hub; draft-ietf-httpapi-ratelimit-headers).
func (r *Registry) noteQuota(h http.Header) {
	if n, ok := quota(h.Get("RateLimit-Limit")); ok {
		r.metrics.RateLimit.WithLabelValues(r.name).Set(float64(n))
	}
	if n, ok := quota(h.Get("RateLimit-Remaining")); ok {
		r.metrics.RateRemaining.WithLabelValues(r.name).Set(float64(n))
	}
}

func quota(s string) (int, bool) {
	s, _, _ = strings.Cut(s, ";")
	s, _, _ = strings.Cut(s, ",")
	n, err := strconv.Atoi(strings.TrimSpace(s))
	return n, err == nil && n >= 0
}
