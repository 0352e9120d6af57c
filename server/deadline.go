package server

import (
	"sync/atomic"
	"time"
)

// slack is the part of a time-out by which it may come early: setting one costs
// as much as finding a manifest, and on a busy connection each request would set
// three anew that differ by less than a millisecond from those before.
const slack = 16

// deadline knows what a connection's deadline was set to.
type deadline struct {
	armed atomic.Int64 // Unix nanoseconds; zero where there is none
}

// serves tells whether the deadline that is set will do for t, and if not notes
// that it is set to t now.
func (d *deadline) serves(t time.Time) bool {
	if t.IsZero() {
		return d.armed.Swap(0) == 0
	}
	at, armed := t.UnixNano(), d.armed.Load()
	if armed != 0 && armed <= at && at-armed < int64(time.Until(t))/slack {
		return true
	}
	d.armed.Store(at)
	return false
}
