package operator

import (
	"context"
	"net/http"
	"time"

	"github.com/entrepot-dev/entrepot/cache"
)

// RehearseRequest asks whether pulls would work without the upstreams.
type RehearseRequest struct {
	// Images are those to rehearse; where Since is set those are rehearsed, too, that
	// clients have pulled since.
	Images []ListedImage `json:"images,omitempty"`
	Since  time.Time     `json:"since,omitzero"`
	// Platforms are those that have to be there, as in WarmRequest. Of what clients have
	// pulled those count that they pulled.
	Platforms []string `json:"platforms,omitempty"`
	// WithReferrers has signatures and SBOMs be there, too.
	WithReferrers bool `json:"withReferrers,omitempty"`
	// Offline rehearses cache.offline: tags are then served however old they are.
	Offline bool `json:"offline,omitempty"`
	// Verify hashes what is there.
	Verify bool `json:"verify,omitempty"`
}

// rehearse tells what would become of the pulls of a RehearseRequest. Events are a
// Progress, the result is a cache.Rehearsal.
func (a *API) rehearse(ctx context.Context, r *http.Request, tell Tell) (any, error) {
	var req RehearseRequest
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	if err := checkNamed(req.Images, req.Platforms); err != nil {
		return nil, err
	}
	var images []cache.RehearseImage
	for _, img := range req.Images {
		t, err := Target(a.Router, img.Reference)
		images = append(images, cache.RehearseImage{Name: img.Reference, Target: t, Err: err, Platforms: img.Platforms})
	}
	if !req.Since.IsZero() {
		asked, err := a.Cache.Asked(ctx, req.Since)
		if err != nil {
			return nil, err
		}
		for _, img := range asked {
			of := cache.RehearseImage{Target: img.Target, Platforms: req.Platforms, Listed: img.Referrers, Pulls: img.Pulls}
			if len(req.Platforms) == 0 {
				of.Platforms = img.Platforms
			}
			images = append(images, of)
		}
	}
	return a.Cache.Rehearse(ctx, images, cache.RehearseOptions{
		Platforms: req.Platforms, Referrers: req.WithReferrers, Offline: req.Offline, Verify: req.Verify,
		Tell: func(s cache.WarmState) error { return tell(warmProgress(s)) },
	})
}
