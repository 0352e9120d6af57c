package fill

import "time"

const (
	// growthSpan is for how long a fill's rate is measured before it is judged.
	growthSpan = 25 * time.Millisecond
	// fastConnection is what a connection brings, in bytes a second, that needs
	// no company: more than most lines, and many disks, take.
	fastConnection = 128 << 20
	// maxDoubts is how many spans after a growth may bring no more than before.
	maxDoubts = 8
	// worthGrowing is how long the rest must still take for another connection
	// to be worth its round trips.
	worthGrowing = 300 * time.Millisecond
)

// growth is the rate at which a fill's bytes come, and what more connections have
// done to it. Fill.mu guards it.
type growth struct {
	since  time.Time // when the measurement began; zero while there is none
	bytes  int64     // that have come since
	before float64   // bytes a second before the last growth; zero before the first
	doubts int       // measurements since then that were not better
}

// judge adds n bytes that have just come, and reports whether doubling the connections may speed up the
// rest.
func (g *growth) judge(now time.Time, n int64, connections int, rest int64) bool {
	if g.doubts >= maxDoubts {
		return false // the line is full, or the upstream limits us and not each connection
	}
	if g.since.IsZero() {
		g.since, g.bytes = now, 0 // what has come until now took unknown time
		return false
	}
	g.bytes += n
	span := now.Sub(g.since)
	if span < growthSpan {
		return false
	}
	rate := float64(g.bytes) / span.Seconds()
	g.since = time.Time{}
	switch {
	case rate > float64(connections)*fastConnection, float64(rest) < rate*worthGrowing.Seconds():
		return false
	case rate < g.before*5/4:
		g.doubts++
		return false
	}
	g.before, g.doubts = rate, 0
	return true
}

// grow starts more writers as long as that speeds up the download: upstreams, or the network, may limit
// each connection. n is how many bytes have just come. f.mu is held.
func (f *Fill) grow(n int64) {
	if f.whole || !f.eager || f.size < 0 || len(f.writers) >= MaxWriters {
		return
	}
	for _, w := range f.writers {
		if !w.begun {
			f.growth.since = time.Time{} // what the last growth brings is not seen yet
			return
		}
	}
	if f.growth.judge(time.Now(), n, len(f.writers), f.size-f.have.Len()) {
		f.cutClaims()
		for range len(f.writers) {
			f.startWriter(0)
		}
	}
}

// cutClaims shortens the claims that span more than a segment. Such a claim was made
// when the blob's size was not known yet. f.mu is held.
func (f *Fill) cutClaims() {
	seg := f.segment()
	if f.size < 2*seg {
		return
	}
	for _, w := range f.writers {
		w.end = min(w.end, w.at+seg)
	}
}
