package client

import (
	"slices"
	"time"

	"github.com/prometheus/procfs"
)

// findDaemon finds the one process with one of these names; false where there is none,
// or more than one, of which nobody knows which is meant.
func findDaemon(names []string) (*daemon, bool) {
	all, err := procfs.AllProcs()
	if err != nil {
		return nil, false
	}
	var found *daemon
	for _, p := range all {
		name, err := p.Comm()
		if err != nil || !slices.Contains(names, name) {
			continue
		}
		if found != nil {
			return nil, false
		}
		stat, err := p.Stat()
		if err != nil {
			continue // it has just ended
		}
		started, err := stat.StartTime()
		if err != nil {
			continue
		}
		found = &daemon{name: name, pid: p.PID, started: time.Unix(0, int64(started*float64(time.Second)))}
		if environ, err := p.Environ(); err == nil { // else it is another user's
			found.environ = environ
		}
	}
	return found, found != nil
}
