package operator

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"
)

// Interest says of which requests somebody wants to be told: of those that have one of
// these. The zero Interest is in all.
type Interest struct {
	// Repository is one without its upstream, "library/nginx", Client an address, and
	// Agent a part of a user agent.
	Repository, Client, Agent string
}

// Watched is an event of POST watch. The first one, without a request, says that every
// request from now on will be told.
type Watched struct {
	Request *Request `json:"request,omitempty"`
}

// Request is one of a client's that was answered.
type Request struct {
	// Time is when its answer was over.
	Time   time.Time `json:"time"`
	Method string    `json:"method"`
	// Kind is what was asked for, as the log names it: "manifest", "blob", "ping".
	Kind string `json:"kind"`
	// Upstream is empty where none was found.
	Upstream   string `json:"upstream,omitempty"`
	Repository string `json:"repository,omitempty"`
	Reference  string `json:"reference,omitempty"`
	// Outcome and Reason are those of the log, Error what the client was told.
	Outcome string `json:"outcome"`
	Reason  string `json:"reason,omitempty"`
	Error   string `json:"error,omitempty"`
	Status  int    `json:"status"`
	// Bytes is how many of the body were sent.
	Bytes int64 `json:"bytes"`
	// Client is the address that asked, and UserAgent what it says of itself.
	Client    string `json:"client"`
	UserAgent string `json:"userAgent,omitempty"`
}

// WatchResult is the result of POST watch.
type WatchResult struct {
	// Told is how many requests were told, Dropped how many were not, for they came
	// faster than they could be.
	Told    int   `json:"told"`
	Dropped int64 `json:"dropped"`
}

// maxWatch is for how long one may watch.
const maxWatch = 10 * time.Minute

// watch tells of the clients' requests for ?seconds=, of those that have ?repository=,
// ?client= or ?agent= where one of them is given.
func (a *API) watch(ctx context.Context, r *http.Request, tell Tell) (any, error) {
	q := r.URL.Query()
	seconds, err := strconv.Atoi(q.Get("seconds"))
	if err != nil || seconds < 1 || seconds > int(maxWatch/time.Second) {
		return nil, invalidf("say for how many seconds, %d at most: %swatch?seconds=30", int(maxWatch/time.Second), Prefix)
	}
	if a.Watch == nil {
		return nil, Errorf(http.StatusConflict, "nothing is served, so that there are no requests to watch")
	}
	watching, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
	defer cancel()
	var result WatchResult
	result.Dropped, err = a.Watch(watching, Interest{Repository: q.Get("repository"), Client: q.Get("client"), Agent: q.Get("agent")},
		func() error { return tell(Watched{}) },
		func(seen *Request) error {
			result.Told++
			return tell(Watched{Request: seen})
		})
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return nil, err
	}
	return result, nil
}
