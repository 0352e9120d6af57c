package index

import (
	"bytes"
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// What clients have asked for is kept for AskedFor, of maxAsked references at most:
// beyond that those go that were asked for longest ago.
const (
	AskedFor = 30 * 24 * time.Hour
	maxAsked = 50_000
	// askedChunk is how many are written in one transaction.
	askedChunk = 1000
	// askedTrim is how often is looked for what is too old, or too much.
	askedTrim = time.Hour
)

// Asked is how often clients have asked for a reference of a repository.
type Asked struct {
	Upstream, Repository string
	// Tag is set where they asked for a tag, else Digest was asked for, or where
	// Referrers is set what refers to it.
	Tag       string
	Digest    digest.Digest // of a tag what they were given last
	Referrers bool
	// Last is when they asked last.
	Last time.Time
	// Days are in order, none twice; those on which they did not ask are not there.
	Days []AskedDay
}

// AskedDay is how often clients have asked on one day.
type AskedDay struct {
	// Day is the number of the day since 1970-01-01, UTC.
	Day int64 `json:"day"`
	// Gets have brought content, Heads asked what there is.
	Gets  int64 `json:"gets,omitempty"`
	Heads int64 `json:"heads,omitempty"`
}

// DayOf gives the number of a time's day, as in AskedDay.
func DayOf(t time.Time) int64 { return t.Unix() / (24 * 60 * 60) }

// askedRecord is what is written of an Asked, under its name.
type askedRecord struct {
	Digest digest.Digest `json:"digest,omitempty"`
	Last   int64         `json:"last"`
	Days   []AskedDay    `json:"days"`
}

// referrersPrefix begins the name of what refers to a digest; no tag can begin so.
const referrersPrefix = "referrers/"

func (a *Asked) key() []byte {
	name := a.Tag
	switch {
	case a.Referrers:
		name = referrersPrefix + string(a.Digest)
	case name == "":
		name = string(a.Digest)
	}
	return join(a.Upstream, a.Repository, name)
}

// readAsked undoes key and reads the value; false for what is none.
func readAsked(key, value []byte) (Asked, bool) {
	parts := strings.Split(string(key), string(separator))
	var r askedRecord
	if len(parts) != 3 || json.Unmarshal(value, &r) != nil {
		return Asked{}, false
	}
	a := Asked{Upstream: parts[0], Repository: parts[1], Digest: r.Digest, Last: time.Unix(r.Last, 0), Days: r.Days}
	switch d, refers := strings.CutPrefix(parts[2], referrersPrefix); {
	case refers:
		a.Digest, a.Referrers = digest.Digest(d), true
	case strings.Contains(parts[2], ":"):
		a.Digest = digest.Digest(parts[2])
	default:
		a.Tag = parts[2]
	}
	return a, true
}

// AddAsked adds what clients have asked for to what is known of it. Days that are
// longer ago than AskedFor before now are dropped.
func (ix *Index) AddAsked(list []Asked, now time.Time) error {
	for chunk := range slices.Chunk(list, askedChunk) {
		err := ix.update(func(tx *tx) error {
			b := tx.Bucket(askedBucket)
			for _, a := range chunk {
				if err := addAsked(b, &a, now); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	ix.mu.Lock()
	due := now.Sub(ix.askedTrimmed) > askedTrim || now.Before(ix.askedTrimmed)
	if due {
		ix.askedTrimmed = now
	}
	ix.mu.Unlock()
	if !due {
		return nil
	}
	return ix.trimAsked(now, maxAsked)
}

func addAsked(b *bucket, a *Asked, now time.Time) error {
	key := a.key()
	r := askedRecord{Last: a.Last.Unix()}
	days := a.Days
	if was, ok := readAsked(key, b.Get(key)); ok {
		days = append(was.Days, days...)
		r.Last = max(r.Last, was.Last.Unix())
	}
	if a.Tag != "" {
		r.Digest = a.Digest
	}
	slices.SortStableFunc(days, func(x, y AskedDay) int { return cmp.Compare(x.Day, y.Day) })
	first := DayOf(now.Add(-AskedFor))
	for _, d := range days {
		if last := len(r.Days) - 1; last >= 0 && r.Days[last].Day == d.Day {
			r.Days[last].Gets += d.Gets
			r.Days[last].Heads += d.Heads
		} else if d.Day >= first {
			r.Days = append(r.Days, d)
		}
	}
	return putJSON(b, key, r)
}

// trimAsked drops what nobody has asked for lately, and of more than most what was
// asked for longest ago.
func (ix *Index) trimAsked(now time.Time, most int) error {
	type aged struct {
		key  []byte
		last time.Time
	}
	var all []aged
	err := ix.chunks(askedBucket, askedChunk, func(key, value []byte) bool {
		a, _ := readAsked(key, value) // what can not be read is as old as can be
		all = append(all, aged{bytes.Clone(key), a.Last})
		return true
	}, func() error { return nil })
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(x, y aged) int { return x.last.Compare(y.last) })
	drop := max(0, len(all)-most)
	for drop < len(all) && now.Sub(all[drop].last) > AskedFor {
		drop++
	}
	for chunk := range slices.Chunk(all[:drop], askedChunk) {
		err := ix.update(func(tx *tx) error {
			b := tx.Bucket(askedBucket)
			for _, a := range chunk {
				if err := b.Delete(a.key); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// AskedSince gives what clients have asked for at a time or after it, in the order of
// the names.
func (ix *Index) AskedSince(since time.Time) ([]Asked, error) {
	var list []Asked
	err := ix.chunks(askedBucket, askedChunk, func(key, value []byte) bool {
		// Times are kept by the second.
		if a, ok := readAsked(key, value); ok && !a.Last.Before(since.Truncate(time.Second)) {
			list = append(list, a)
		}
		return true
	}, func() error { return nil })
	return list, err
}
