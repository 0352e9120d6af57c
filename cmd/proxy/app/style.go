package app

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
)

// How all commands print a time, a size, a digest and a number, so that they look alike.

// second writes a time to the second.
func second(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// when writes a time and how long ago that was, as "2026-11-21T08:14:02Z (4 days ago)"; a dash
// for the zero time.
func when(t, now time.Time) string {
	if t.IsZero() {
		return "–"
	}
	return second(t) + " (" + strings.ToLower(units.HumanDuration(max(0, now.Sub(t)))) + " ago)"
}

// column writes a time in a table on w: as when does on a terminal, and to the second into a
// pipe, where rows must not change while time passes.
func column(w io.Writer, t, now time.Time) string {
	if widthOf(w) == 0 {
		return shortTime(when(t, now))
	}
	return when(t, now)
}

// bytesOf writes a size, as "72.4MiB".
func bytesOf(n int64) string { return units.BytesSize(float64(n)) }

// whole writes a digest in full.
func whole(d digest.Digest) string {
	if d == "" {
		return "(none)"
	}
	return string(d)
}

// short writes the beginning of a digest, which tells it from others.
func short(d digest.Digest) string { return shortDigest(whole(d)) }

// count writes n of something.
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
