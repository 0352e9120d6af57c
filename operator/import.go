package operator

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/bundle"
	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/oci"
)

// importArchive takes in the archive that is the request's body: a bundle, an OCI image
// layout or what "docker save" writes, as a tar. ?name= is what its one image is
// called, ?bytes= its size, for the events alone, which are Progress. A tag that stands for
// something else stays as it is unless ?replace=true. The result is a
// cache.Imported. An archive that is wrong is a problem with the status 422, one for
// which there is no room with 507, and another import that runs with 409.
func (a *API) importArchive(ctx context.Context, r *http.Request, cut func(), tell Tell) (any, error) {
	q := r.URL.Query()
	var bytes int64
	if text := q.Get("bytes"); text != "" {
		var err error
		if bytes, err = strconv.ParseInt(text, 10, 64); err != nil || bytes < 0 {
			return nil, invalidf("bytes is the size of the archive, such as %simport?bytes=1048576", Prefix)
		}
	}
	replace, err := flag(r, "replace")
	if err != nil {
		return nil, err
	}
	o := bundle.ReadOptions{
		Name:    q.Get("name"),
		Resolve: func(text string) (oci.Target, error) { return Target(a.Router, text) },
		Route: func(upstream, repository string) (oci.Target, error) {
			return a.Router.Route(repository, upstream, "")
		},
		Tell: func(p bundle.ReadProgress) error {
			return tell(Progress{Unit: "blobs", Done: p.Blobs, Total: max(p.Total, p.Blobs), Bytes: p.Bytes, TotalBytes: max(bytes, p.Bytes)})
		},
	}
	if o.Name != "" {
		if _, err := Target(a.Router, o.Name); err != nil {
			return nil, err
		}
	}
	in, err := a.Cache.NewImport()
	if errors.Is(err, cache.ErrImporting) {
		return nil, Errorf(http.StatusConflict, "%s", err)
	}
	if err != nil {
		return nil, err
	}
	in.KeepTags = !replace
	goesOn := in.WhenClosing(cut)
	var done *cache.Imported
	if err = bundle.Read(ctx, r.Body, in, o); err == nil {
		done, err = in.Finish()
	}
	if !goesOn() && err != nil {
		err = Errorf(http.StatusServiceUnavailable, "the proxy is shutting down: import it again when it is back, and it goes on")
	}
	refusal := (*bundle.Refusal)(nil)
	wrong, noRoom := errors.As(err, &refusal), errors.Is(err, cache.ErrNoRoom)
	// What broke off goes on another time.
	if dropped := in.Close(!wrong && !noRoom); err == nil {
		err = dropped
	}
	switch {
	case wrong:
		return nil, Errorf(http.StatusUnprocessableEntity, "%s", refusal)
	case noRoom:
		return nil, Errorf(http.StatusInsufficientStorage, "%s", err)
	case err != nil:
		return nil, err
	}
	a.Log.Info("images have been imported", zap.Int("images", len(done.Images)), zap.Int("blobs", done.Blobs), zap.Int64("bytes", done.Bytes))
	return done, nil
}

var _ bundle.Intake = (*cache.Import)(nil)
