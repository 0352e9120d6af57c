package upstream

import (
	"context"
	"net/http"
	"os"
	"time"
)

// hop sends req to its host and nowhere else; cancel ends req's context. A blob may be
// long in coming: see attend.
func (r *Registry) hop(req *http.Request, cancel context.CancelCauseFunc) (*http.Response, error) {
	if bulk, _ := req.Context().Value(bulkKey{}).(bool); bulk {
		defer r.attend(req, cancel)()
	}
	return r.routes.roundTrip(req)
}

// attend watches over the wait for the header of a blob's response. A host that has been
// silent for the header timeout is asked for something small: if it answers, it is busy
// and is waited for, up to blobPatience. If it doesn't, the request ends with a timeout;
// so it does if there are more than two endpoints, since no third one is asked while two
// are silent. The caller calls stop once the header is there.
func (r *Registry) attend(req *http.Request, cancel context.CancelCauseFunc) (stop func()) {
	ctx, end := context.WithCancel(req.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		knocking := min(probeTimeout, r.patience/3)
		for {
			timer := time.NewTimer(r.patience - knocking)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return
			}
			small := *req.URL
			small.Path, small.RawPath, small.RawQuery = "/v2/", "", ""
			soon, over := context.WithTimeout(ctx, knocking)
			alive := len(r.endpoints) <= 2 && r.knock(soon, http.MethodGet, &small, nil) != nil
			if !alive {
				<-soon.Done()
			}
			over()
			if ctx.Err() != nil {
				return
			}
			if !alive {
				cancel(os.ErrDeadlineExceeded)
				return
			}
		}
	}()
	return func() {
		end()
		<-done
	}
}
