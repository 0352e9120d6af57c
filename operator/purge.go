package operator

import (
	"context"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache"
)

// purge removes images, and gives a cache.Purged: those of ?reference=, which may be given
// several times, those that were not
// used since ?before=, a time as of RFC 3339, or all of ?upstream=, which may also be given
// with before. With ?force=true also what is pinned; with ?dry=true nothing changes.
func (a *API) purge(r *http.Request) (any, error) {
	q := r.URL.Query()
	o := cache.PurgeOptions{Upstream: q.Get("upstream")}
	var err error
	if o.Force, err = flag(r, "force"); err != nil {
		return nil, err
	}
	if o.Dry, err = flag(r, "dry"); err != nil {
		return nil, err
	}
	if text := q.Get("before"); text != "" {
		if o.Before, err = time.Parse(time.RFC3339, text); err != nil {
			return nil, invalidf("before is a time, such as %spurge?before=2026-11-01T12:30:00Z", Prefix)
		}
	}
	switch text := q.Get("reference"); {
	case text == "" && o.Upstream == "" && o.Before.IsZero():
		return nil, invalidf("say what to purge: %[1]spurge?reference=nginx:1.27, %[1]spurge?before=2026-11-01T12:30:00Z or %[1]spurge?upstream=quay.io", Prefix)
	case text != "" && (o.Upstream != "" || !o.Before.IsZero()):
		return nil, invalidf("a reference goes with neither before nor upstream")
	case text != "":
		for i, text := range q["reference"] {
			t, err := Target(a.Router, text)
			if err != nil {
				return nil, err
			}
			if i == 0 {
				o.Target = t
			} else {
				o.Also = append(o.Also, t)
			}
		}
	}
	if name, ok := a.Router.Upstream(o.Upstream); ok {
		o.Upstream = name
	}
	done, err := a.Cache.Purge(r.Context(), o)
	if err == nil && !o.Dry {
		a.Log.Info("images have been purged", zap.Int("images", len(done.Images)), zap.Int("blobs", done.Blobs), zap.Int64("bytes", done.Size))
	}
	return done, err
}

// collectGarbage removes what nothing leads to; with ?dry=true nothing changes. Events
// and result are a cache.Collected.
func (a *API) collectGarbage(ctx context.Context, r *http.Request, tell Tell) (any, error) {
	dry, err := flag(r, "dry")
	if err != nil {
		return nil, err
	}
	last := time.Now()
	done, err := a.Cache.CollectGarbage(ctx, dry, func(c cache.Collected) error {
		if time.Since(last) < time.Second {
			return ctx.Err()
		}
		last = time.Now()
		return tell(c)
	})
	if err != nil {
		return nil, err
	}
	if !dry {
		a.Log.Info("garbage has been collected", zap.Int("links", done.Links), zap.Int("lists", done.Lists), zap.Int("tags", done.Tags),
			zap.Int("blobs", done.Blobs), zap.Int64("bytes", done.Size), zap.Int("parts", done.Parts), zap.Int64("parts_bytes", done.PartsSize))
	}
	return done, nil
}
