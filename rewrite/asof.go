package rewrite

import (
	"strings"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

// What begins a name that is asked for as of a date. The first can not be written in
// a reference (distribution/reference has '@' before a digest only), the second can.
const (
	asOfSign = "@"
	asOfWord = "at-"
)

// wordTime is how a time is written after asOfWord: a component of a name has small
// letters and no colons. It is UTC.
const wordTime = "2006-01-02t15-04-05z"

// cutAsOf takes "@2026-11-01/" or "at-2026-11-01/" off the front of a repository's
// name, and gives the time that it stands for: of a date its last moment, in UTC. With
// "@" a time may be written as RFC 3339 does, with "at-" as 2026-11-01t12-30-00z. The
// zero time is given for a name that does not begin so.
func cutAsOf(name string) (rest string, asOf time.Time, err error) {
	sign := strings.HasPrefix(name, asOfSign)
	if !sign && !strings.HasPrefix(name, asOfWord) {
		return name, time.Time{}, nil
	}
	first, rest, more := strings.Cut(name, "/")
	if !more {
		return name, time.Time{}, nil
	}
	text, layout := first[len(asOfSign):], time.RFC3339
	if !sign {
		text, layout = first[len(asOfWord):], wordTime
		if !hasShape(text, time.DateOnly) && !hasShape(text, wordTime) {
			return name, time.Time{}, nil // a repository may be called so
		}
	}
	if day, err := time.Parse(time.DateOnly, text); err == nil && day.Unix() >= 0 {
		return rest, day.AddDate(0, 0, 1).Add(-1), nil
	}
	if asOf, err := time.Parse(layout, text); err == nil && asOf.Unix() >= 0 {
		return rest, asOf.UTC(), nil
	}
	return "", time.Time{}, oci.Errorf(oci.CodeNameInvalid, "%s is no date: write @2026-11-01 or @2026-11-01T12:30:00Z, "+
		"and in a reference at-2026-11-01 or at-2026-11-01t12-30-00z, before the rest of the name", oci.Quote(first))
}

// hasShape tells whether s is the layout but for its digits.
func hasShape(s, layout string) bool {
	if len(s) != len(layout) {
		return false
	}
	for i := range len(s) {
		digit := '0' <= layout[i] && layout[i] <= '9'
		if digit != ('0' <= s[i] && s[i] <= '9') || !digit && s[i] != layout[i] {
			return false
		}
	}
	return true
}
