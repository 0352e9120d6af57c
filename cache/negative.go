package cache

import (
	"errors"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

// account is whose credential an upstream was asked with: what it says to one
// it may not say to another. Today there is one for each upstream, its own.
type account string

const ownAccount account = ""

// negative remembers for a short time what upstreams have said is not there, or
// not to be had. A failure to find out is never among it. All methods are safe
// for concurrent use.
type negative struct {
	said recent[*oci.Error]
}

// get gives what was said to who of key.
func (n *negative) get(who account, key string) (*oci.Error, bool) {
	return n.said.get(string(who) + "\x00" + key)
}

// note remembers err for d, if it is an upstream's word on key.
func (n *negative) note(who account, key string, err error, d time.Duration) {
	var e *oci.Error
	if (oci.IsAbsent(err) || oci.IsRefused(err)) && errors.As(err, &e) {
		n.said.put(string(who)+"\x00"+key, e, d)
	}
}

// clear forgets everything.
func (n *negative) clear() { n.said.clear() }

// drop forgets key.
func (n *negative) drop(who account, key string) { n.said.drop(string(who) + "\x00" + key) }
