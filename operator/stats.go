package operator

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/metrics"
)

const (
	// topImages is how many images are told where nobody says how many.
	topImages = 10
	// maxTopImages is how many may be asked for.
	maxTopImages = 10_000
)

// Stats say what the cache is good for.
type Stats struct {
	// Since is when the proxy started that counts: Served is since then. Zero where none
	// runs.
	Since time.Time `json:"since,omitzero"`
	// Served is what clients were given, by upstream; empty where no proxy runs, for
	// nobody has counted. All is the sum.
	Served map[string]Served `json:"served"`
	All    Served            `json:"all"`
	// Disk is what is stored.
	Disk cache.DiskUse `json:"disk"`
	// Top are the images that were used most since they were fetched.
	Top []cache.Image `json:"top"`
}

// Served is what clients were given of an upstream, manifests and blobs, HEAD and GET.
type Served struct {
	// Hits were answered from the cache; StaleHits of them though the upstream could not be
	// asked whether they still hold.
	Hits      int64 `json:"hits"`
	StaleHits int64 `json:"staleHits"`
	// Joined were answered by a fetch that another client had begun, Misses by one of
	// their own, and Errors by an error.
	Joined int64 `json:"joined"`
	Misses int64 `json:"misses"`
	Errors int64 `json:"errors"`
	// Bytes were sent to clients, and Fetched bytes came from the upstream. Saved is how
	// many more were sent than came.
	Bytes   int64 `json:"bytes"`
	Fetched int64 `json:"fetched"`
	Saved   int64 `json:"saved"`
	// Pulls are the manifests that were fetched by GET, which upstreams count, and
	// PullsSaved the clients' GETs of manifests that were answered without one.
	Pulls      int64 `json:"pulls"`
	PullsSaved int64 `json:"pullsSaved"`
	// Quota is what the upstream still grants; nil where it has not said.
	Quota *StatsQuota `json:"quota,omitempty"`
}

// StatsQuota is what an upstream grants.
type StatsQuota struct {
	// Limit is how many pulls it grants in a window; zero where it has not said.
	Limit int64 `json:"limit"`
	// Remaining are left until Resets, at the latest.
	Remaining int64     `json:"remaining"`
	Resets    time.Time `json:"resets"`
	// Reserve of them are kept for images that aren't cached.
	Reserve int64 `json:"reserve"`
}

// stats answers with Stats, with the ?top= images that were used most.
func (a *API) stats(r *http.Request) (any, error) {
	top := topImages
	if text := r.URL.Query().Get("top"); text != "" {
		var err error
		if top, err = strconv.Atoi(text); err != nil || top < 0 || top > maxTopImages {
			return nil, invalidf("top is a number up to %d, such as %sstats?top=%d", maxTopImages, Prefix, topImages)
		}
	}
	s := Stats{Served: map[string]Served{}, Top: []cache.Image{}}
	use, err := a.Cache.DiskUse(r.Context())
	if err != nil {
		return nil, err
	}
	s.Disk = *use
	if top > 0 {
		if s.Top, err = a.Cache.MostUsed(r.Context(), top); err != nil {
			return nil, err
		}
	}
	if a.Counts != nil {
		s.Since = a.started.UTC()
		s.Served = served(a.Counts)
		for _, u := range s.Served {
			s.All.add(u)
		}
	}
	return s, nil
}

// served sums what is counted, by upstream.
func served(m *metrics.Metrics) map[string]Served {
	list := map[string]*Served{}
	of := func(labels map[string]string) *Served {
		name := labels["upstream"]
		if list[name] == nil {
			list[name] = &Served{}
		}
		return list[name]
	}
	metrics.Each(m.Requests, func(labels map[string]string, v float64) {
		if kind := labels["kind"]; labels["upstream"] == "" || kind != "manifest" && kind != "blob" {
			return
		}
		u, n := of(labels), int64(v)
		switch cache.Status(labels["outcome"]) {
		case cache.Hit, cache.Revalidated:
			u.Hits += n
		case cache.Stale:
			u.Hits += n
			u.StaleHits += n
		case cache.Collapsed:
			u.Joined += n
		case cache.Miss:
			u.Misses += n
		default:
			u.Errors += n
		}
	})
	metrics.Each(m.ClientBytes, func(labels map[string]string, v float64) {
		if labels["upstream"] != "" {
			of(labels).Bytes += int64(v)
		}
	})
	metrics.Each(m.UpstreamBytes, func(labels map[string]string, v float64) { of(labels).Fetched += int64(v) })
	metrics.Each(m.UpstreamPulls, func(labels map[string]string, v float64) { of(labels).Pulls += int64(v) })
	metrics.Each(m.PullsSaved, func(labels map[string]string, v float64) { of(labels).PullsSaved += int64(v) })
	quota := func(labels map[string]string) *StatsQuota {
		u := of(labels)
		if u.Quota == nil {
			u.Quota = &StatsQuota{}
		}
		return u.Quota
	}
	// What remains is known while its window lasts.
	metrics.Each(m.RateRemaining, func(labels map[string]string, v float64) { quota(labels).Remaining = int64(v) })
	metrics.Each(m.RateReset, func(labels map[string]string, v float64) { quota(labels).Resets = time.Unix(int64(v), 0).UTC() })
	metrics.Each(m.RateReserve, func(labels map[string]string, v float64) { quota(labels).Reserve = int64(v) })
	metrics.Each(m.RateLimit, func(labels map[string]string, v float64) {
		if u := of(labels); u.Quota != nil {
			u.Quota.Limit = int64(v)
		}
	})
	all := map[string]Served{}
	for _, name := range slices.Sorted(maps.Keys(list)) {
		u := *list[name]
		u.Saved = max(0, u.Bytes-u.Fetched)
		u.Quota = list[name].Quota
		if u != (Served{}) {
			all[name] = u
		}
	}
	return all
}

// add adds the counts of another upstream.
func (s *Served) add(u Served) {
	s.Hits += u.Hits
	s.StaleHits += u.StaleHits
	s.Joined += u.Joined
	s.Misses += u.Misses
	s.Errors += u.Errors
	s.Bytes += u.Bytes
	s.Fetched += u.Fetched
	s.Saved += u.Saved
	s.Pulls += u.Pulls
	s.PullsSaved += u.PullsSaved
}
