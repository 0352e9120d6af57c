package server

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// maxWatchers bounds who watches at a time, maxUntaken the requests that wait for
	// one of them, and maxSeen each text of one, in bytes.
	maxWatchers = 8
	maxUntaken  = 256
	maxSeen     = 256
)

// Seen is a request that was answered, as who watches is told of it.
type Seen struct {
	At           time.Time
	Method, Kind string
	// Upstream is empty where none was found.
	Upstream, Repository, Reference string
	// Outcome and Reason are those of the log, Error what the client was told.
	Outcome, Reason, Error string
	Status                 int
	Bytes                  int64
	// Client is the address that asked, and UserAgent what it says of itself.
	Client, UserAgent string
}

// Interest says of which requests somebody wants to be told: of those that have one of
// these. The zero Interest is in all.
type Interest struct {
	// Repository and Client are compared as they are; Agent is a part of a user agent.
	Repository, Client, Agent string
}

func (i Interest) in(s *Seen) bool {
	return i == Interest{} ||
		i.Repository != "" && s.Repository == i.Repository ||
		i.Client != "" && s.Client == i.Client ||
		i.Agent != "" && strings.Contains(s.UserAgent, i.Agent)
}

// Watch is told of requests. Make one with Server.Watch.
type Watch struct {
	// Requests gives them as they are over.
	Requests <-chan Seen
	requests chan Seen
	interest Interest
	dropped  atomic.Int64
	server   *Server
}

// Dropped is how many were not told, for they came faster than they were taken.
func (w *Watch) Dropped() int64 { return w.dropped.Load() }

// Stop ends it. Requests is not closed.
func (w *Watch) Stop() {
	w.server.watches.change(func(list []*Watch) []*Watch {
		return slices.DeleteFunc(list, func(other *Watch) bool { return other == w })
	})
}

// errTooManyWatches says that as many watch as may.
var errTooManyWatches = &oci.Error{Code: oci.CodeTooManyRequests, Status: http.StatusTooManyRequests,
	Message: "as many as may are watching the requests already; ask again when they are done"}

// Watch tells of the requests from now on that are of interest, until Stop is called. As
// long as nobody watches, a request costs no more than to find that out.
func (s *Server) Watch(i Interest) (*Watch, error) {
	w := &Watch{requests: make(chan Seen, maxUntaken), interest: i, server: s}
	w.Requests = w.requests
	full := false
	s.watches.change(func(list []*Watch) []*Watch {
		if full = len(list) >= maxWatchers; full {
			return list
		}
		return append(list, w)
	})
	if full {
		return nil, errTooManyWatches
	}
	return w, nil
}

// watches are those who watch just now.
type watches struct {
	now atomic.Pointer[[]*Watch] // nil where nobody does

	mu sync.Mutex // held by who changes now
}

func (w *watches) change(f func([]*Watch) []*Watch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []*Watch
	if now := w.now.Load(); now != nil {
		list = slices.Clone(*now)
	}
	if list = f(list); len(list) == 0 {
		w.now.Store(nil)
		return
	}
	w.now.Store(&list)
}

// show tells those who watch of an exchange that is over.
func (x *exchange) show(list []*Watch, now time.Time, outcome string) {
	repository := x.target.Repository
	if repository == "" {
		repository = x.request.Name
	}
	// All of these are copies: the request's bytes are read into again.
	s := Seen{
		At: now, Method: brief(string(x.ctx.Method())), Kind: x.request.Resource.String(), Upstream: x.target.Upstream,
		Repository: brief(repository), Reference: brief(x.request.Reference()), Outcome: outcome, Reason: x.outcome.Reason,
		Status: x.status, Bytes: x.out.sent, Client: x.client(), UserAgent: brief(string(x.ctx.UserAgent())),
	}
	if e := (*oci.Error)(nil); errors.As(x.err, &e) {
		s.Error = brief(e.Message)
	}
	for _, w := range list {
		if !w.interest.in(&s) {
			continue
		}
		select {
		case w.requests <- s:
		default:
			w.dropped.Add(1)
		}
	}
}

// brief copies the beginning of a stranger's text.
func brief(text string) string {
	return strings.Clone(strings.ToValidUTF8(text[:min(len(text), maxSeen)], "�"))
}
