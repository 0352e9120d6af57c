package operator

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/bundle"
)

// maxContents bounds the JSON of a request that holds the contents of a bundle, in bytes.
const maxContents = 256 << 20

// ExportRequest is what POST export/plan is sent: a bundle.Choice.
type ExportRequest struct {
	// Images are wanted whole.
	Images []ListedImage `json:"images,omitempty"`
	// All, Platforms, Since and Have are as in a bundle.Choice.
	All       bool            `json:"all,omitempty"`
	Platforms []string        `json:"platforms,omitempty"`
	Since     *bundle.Since   `json:"since,omitempty"`
	Have      []digest.Digest `json:"have,omitempty"`
}

// ExportFrom is what POST export is sent: Plan.Contents and Plan.Docker of a
// bundle.Plan, the one of now or an earlier one.
type ExportFrom struct {
	Contents *bundle.Contents `json:"contents"`
	Docker   []byte           `json:"docker"`
}

// planExport answers with the bundle.Plan of an ExportRequest.
func (a *API) planExport(r *http.Request) (any, error) {
	var request ExportRequest
	if err := decodeUpTo(maxContents, r, &request); err != nil {
		return nil, err
	}
	if len(request.Images) == 0 && !request.All {
		return nil, invalidf("name the images to export, or ask for all")
	}
	if err := CheckPlatforms(request.Platforms); err != nil {
		return nil, err
	}
	choice := bundle.Choice{All: request.All, Private: a.Private, Platforms: request.Platforms, Since: request.Since, Have: request.Have}
	for _, image := range request.Images {
		t, err := Target(a.Router, image.Reference)
		if err != nil {
			return nil, err
		}
		if err := CheckPlatforms(image.Platforms); err != nil {
			return nil, err
		}
		choice.Images = append(choice.Images, bundle.Wanted{Target: t, Platforms: image.Platforms})
	}
	if request.All {
		contents, _ := a.Cache.Totals()
		if err := bundle.CheckAll(contents); err != nil {
			return nil, Errorf(http.StatusUnprocessableEntity, "%s", err)
		}
		end, err := a.Cache.BeginWalk(r.Context())
		if err != nil {
			return nil, err
		}
		defer end()
	}
	plan, err := bundle.Make(r.Context(), a.Cache, choice)
	if errors.Is(err, bundle.ErrTooLarge) {
		return nil, Errorf(http.StatusUnprocessableEntity, "%s", err)
	}
	if missing := (*bundle.MissingError)(nil); errors.As(err, &missing) {
		missing.Offline = a.Cache.Offline()
		return nil, Errorf(http.StatusNotFound, "%s", err.Error())
	}
	return plan, err
}

// export answers with the tar of a bundle of an ExportFrom, from ?from= on, in bytes.
func (a *API) export(ctx context.Context, r *http.Request, w io.Writer) error {
	var request ExportFrom
	if err := decodeUpTo(maxContents, r, &request); err != nil {
		return err
	}
	var from int64
	if text := r.URL.Query().Get("from"); text != "" {
		var err error
		if from, err = strconv.ParseInt(text, 10, 64); err != nil || from < 0 {
			return invalidf("from is a place in the tar, such as %sexport?from=1048576", Prefix)
		}
	}
	if request.Contents == nil {
		return invalidf("send contents and docker of what %sexport/plan has answered", Prefix)
	}
	files, err := bundle.Lay(request.Contents, request.Docker)
	if errors.Is(err, bundle.ErrContents) || err == nil && from > files.Size {
		return invalidf("there is no such bundle, or no byte %d of it", from)
	}
	if errors.Is(err, bundle.ErrTooLarge) {
		return invalidf("%s", err)
	}
	if err != nil {
		return err
	}
	return files.WriteTar(ctx, w, from, a.Cache)
}
