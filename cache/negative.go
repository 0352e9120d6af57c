package cache

import (
	"errors"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

// negative remembers for a short time what upstreams have said is not there, or
// not to be had. A failure to find out is never among it. All methods are safe
// for concurrent use.
type negative struct {
	said recent[*oci.Error]
	// lasted is for how long each was remembered last.
	lasted recent[time.Duration]
}

const (
	// firstNegativeTTL is for how long an upstream's "not found" is remembered the
	// first time: what is asked for a moment too early is there a second later.
	firstNegativeTTL = 800 * time.Millisecond
	// repeatedWithin is how soon after that it must be said again to be remembered
	// for twice as long.
	repeatedWithin = time.Minute
)

// get gives what was said of key.
func (n *negative) get(key string) (*oci.Error, bool) { return n.said.get(key) }

// note remembers err, if it is an upstream's word on key: for a second or so, and for
// twice as long each time that it is said again, up to most.
func (n *negative) note(key string, err error, most time.Duration) {
	var e *oci.Error
	if (oci.IsAbsent(err) || oci.IsRefused(err)) && errors.As(err, &e) {
		d := firstNegativeTTL
		if last, ok := n.lasted.get(key); ok {
			d = 2 * last
		}
		d = min(d, most)
		n.lasted.put(key, d, d+repeatedWithin)
		n.said.put(key, e, d)
	}
}

// clear forgets everything.
func (n *negative) clear() {
	n.said.clear()
	n.lasted.clear()
}

// drop forgets key.
func (n *negative) drop(key string) {
	n.said.drop(key)
	n.lasted.drop(key)
}
