package operator

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/oci"
)

// MaxImages is how many images one request may name.
const MaxImages = 20_000

// maxRequest bounds the JSON of a request, in bytes.
const maxRequest = 16 << 20

// ListedImage is an image that a request names.
type ListedImage struct {
	// Reference is as people write it.
	Reference string `json:"reference"`
	// Platforms are those of it that count; none is those of the request.
	Platforms []string `json:"platforms,omitempty"`
}

// WarmRequest asks for images to be fetched.
type WarmRequest struct {
	Images []ListedImage `json:"images"`
	// Platforms are those to fetch, "linux/arm/v7", or "all"; none is those that the
	// cache is configured for.
	Platforms []string `json:"platforms,omitempty"`
	// WithReferrers has signatures and SBOMs fetched too.
	WithReferrers bool `json:"withReferrers,omitempty"`
	// DryRun fetches no more than the manifests that are needed to say what it costs.
	DryRun bool `json:"dryRun,omitempty"`
	// Jobs is how many images and blobs are fetched at a time; zero is as many as are
	// good.
	Jobs int `json:"jobs,omitempty"`
	// WaitForQuota waits until the upstream grants more pulls than are kept for clients.
	WaitForQuota bool `json:"waitForQuota,omitempty"`
}

// warm fetches the images of a WarmRequest. Events are a Progress, the result is a
// cache.Warmed.
func (a *API) warm(ctx context.Context, r *http.Request, tell Tell) (any, error) {
	var req WarmRequest
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	if err := checkNamed(req.Images, req.Platforms); err != nil {
		return nil, err
	}
	images := make([]cache.WarmImage, len(req.Images))
	for i, img := range req.Images {
		images[i].Platforms = img.Platforms
		images[i].Name = img.Reference
		images[i].Target, images[i].Err = Target(a.Router, img.Reference)
	}
	return a.Cache.Warm(ctx, images, cache.WarmOptions{
		Platforms: req.Platforms, Referrers: req.WithReferrers, DryRun: req.DryRun, Jobs: req.Jobs, WaitForQuota: req.WaitForQuota,
		Tell: func(s cache.WarmState) error { return tell(warmProgress(s)) },
	})
}

// checkNamed tells what is wrong with the images and platforms of a request, as an
// *Error.
func checkNamed(images []ListedImage, platforms []string) error {
	if len(images) > MaxImages {
		return invalidf("the request names %d images; at most %d may be named", len(images), MaxImages)
	}
	return CheckPlatforms(platforms)
}

// CheckPlatforms tells what is no platform, and is not cache.AllPlatforms, as an *Error.
func CheckPlatforms(platforms []string) error {
	for _, s := range platforms {
		if s == cache.AllPlatforms {
			continue
		}
		if _, err := oci.ParsePlatform(s); err != nil {
			return invalidf("%q is no platform, such as linux/amd64 or linux/arm/v7, or %s", s, cache.AllPlatforms)
		}
	}
	return nil
}

func warmProgress(s cache.WarmState) Progress {
	p := Progress{Unit: "images", Done: s.Done, Total: s.Total, Bytes: s.Bytes, TotalBytes: s.TotalBytes, Waiting: s.Waiting}
	for _, t := range s.Current {
		p.Current = append(p.Current, Transfer(t))
	}
	return p
}

// decode reads the JSON of a request, which may have no keys that are not known.
func decode(r *http.Request, v any) error { return decodeUpTo(maxRequest, r, v) }

// decodeUpTo is decode for a document of at most so many bytes.
func decodeUpTo(most int64, r *http.Request, v any) error {
	dec := json.NewDecoder(io.LimitReader(r.Body, most))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return invalidf("the body is not the JSON that %sopenapi.yaml describes: %v", Prefix, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return invalidf("there is more in the body than one JSON document")
	}
	return nil
}
