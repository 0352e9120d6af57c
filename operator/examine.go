package operator

import (
	"context"
	"net/http"
	"time"

	"github.com/entrepot-dev/entrepot/upstream"
)

// Process is the answer to GET process: what a process can tell of itself.
type Process struct {
	// PID is its number, and UID that of its user.
	PID int `json:"pid"`
	UID int `json:"uid"`
	// OpenFiles is how many files it may open, and OpenFilesWanted how many it has
	// open when its configured limits are reached.
	OpenFiles       int `json:"openFiles"`
	OpenFilesWanted int `json:"openFilesWanted"`
	// Blobs is how many blobs and manifests are stored, and Bytes their size.
	Blobs int64 `json:"blobs"`
	Bytes int64 `json:"bytes"`
	// Degraded says what is wrong with the cache's disk; empty where nothing is.
	Degraded string `json:"degraded,omitempty"`
}

func (a *API) process(*http.Request) (any, error) {
	p := a.Process
	p.Degraded = a.Cache.Degraded()
	p.Blobs, p.Bytes = a.Cache.Size()
	return p, nil
}

// Configuration is the answer to GET configuration: the one in force.
type Configuration struct {
	// File is the one that it was read from; empty where there was none.
	File string `json:"file,omitempty"`
	// Values are its keys' as JSON, secrets hidden.
	Values map[string]string `json:"values"`
	// YAML is the same as a configuration file, secrets hidden.
	YAML string `json:"yaml"`
	// Problem is what is wrong with what would be read now; empty where nothing is.
	Problem string `json:"problem,omitempty"`
	// Changed are the keys that a reload would take over, as what would be read now
	// has them, NeedRestart those that a restart would. Changed secrets are among them.
	Changed     []string `json:"changed"`
	NeedRestart []string `json:"needRestart"`
}

func (a *API) configuration(*http.Request) (any, error) {
	if a.Configuration == nil {
		return nil, Errorf(http.StatusConflict, "nothing is served, so that no configuration is in force")
	}
	c := a.Configuration()
	// Lists, also where they are empty.
	c.Changed, c.NeedRestart = append([]string{}, c.Changed...), append([]string{}, c.NeedRestart...)
	return c, nil
}

// examineTimeout bounds the examination of all upstreams: who has not answered by then
// is as good as gone to a client.
const examineTimeout = 6 * time.Second

// Upstreams is the answer to GET upstreams: what came of asking each whether it
// answers.
type Upstreams struct {
	// Offline is set where none was asked, for none is to be.
	Offline   bool                   `json:"offline"`
	Endpoints []upstream.Examination `json:"endpoints"`
}

func (a *API) upstreams(r *http.Request) (any, error) {
	u := Upstreams{Offline: a.Cache.Offline(), Endpoints: []upstream.Examination{}}
	if !u.Offline && a.Examine != nil {
		ctx, cancel := context.WithTimeout(r.Context(), examineTimeout)
		defer cancel()
		u.Endpoints = append(u.Endpoints, a.Examine(ctx)...)
	}
	return u, nil
}
