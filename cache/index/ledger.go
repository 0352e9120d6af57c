package index

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// The ledger holds what tags stood for, and when. It grows with their moves, and
// not with how often they are asked for: that a tag still stands for the same is
// told by its record, and written down when it does so no longer. It is written
// together with the records, by the same sync.

const (
	// maxOfTag is how many observations of one tag are kept, the latest.
	maxOfTag = 200
	// Of all tags together, maxEnded observations are kept that have ended, which is when a tag
	// moved or went, and maxStanding that still hold, one for each known tag. They are bounded
	// apart, so that no number of tags that somebody only looks at costs the history of others.
	// Beyond a bound trim drops down to trimmedTo hundredths of it.
	maxEnded    = 200_000
	maxStanding = 1_000_000
	trimmedTo   = 90
)

// Seen says how a tag was seen.
type Seen string

// The ways.
const (
	// SeenHead and SeenGet: by the request of a client for a tag that was new.
	SeenHead Seen = "head"
	SeenGet  Seen = "get"
	// SeenRevalidation: the upstream was asked whether the tag still stood.
	SeenRevalidation Seen = "revalidation"
	// SeenImport: a bundle says so, of the time when its cache was told.
	SeenImport Seen = "import"
)

// Observation is what a tag stood for during a time.
type Observation struct {
	// Digest is empty where the upstream said that there was no such tag.
	Digest digest.Digest
	// First and Last are when it was first and last seen to be so.
	First, Last time.Time
	// How it was seen first; empty where that is not known.
	How Seen
}

// observed is what is written of an Observation, under the tag and the time when it
// was first seen. Last is zero until the tag stands for something else.
type observed struct {
	Digest digest.Digest `json:"digest,omitempty"`
	How    Seen          `json:"how,omitempty"`
	Last   time.Time     `json:"last,omitzero"`
}

var observationsKey = []byte("observations")

// observationKey is the key of what a tag, which join has made, stood for from at on.
func observationKey(tag []byte, at time.Time) []byte {
	key := append(bytes.Clone(tag), separator...)
	return binary.BigEndian.AppendUint64(key, uint64(max(0, at.UnixNano()))) // #nosec G115 -- not negative
}

// readObservation undoes observationKey and reads the value; false for what is none.
func readObservation(tagLen int, key, value []byte) (Observation, observed, bool) {
	var o observed
	if len(key) != tagLen+1+8 || json.Unmarshal(value, &o) != nil {
		return Observation{}, o, false
	}
	first := time.Unix(0, int64(binary.BigEndian.Uint64(key[tagLen+1:]))) // #nosec G115 -- as it was written
	return Observation{Digest: o.Digest, First: first, Last: o.Last, How: o.How}, o, true
}

// lastOf gives the key of the last observation of a tag that cursor finds, and what it
// says; nil for none.
func lastOf(c *cursor, tag []byte) (key []byte, o Observation) {
	key, _ = c.Seek(append(bytes.Clone(tag), separator[0]+1))
	var value []byte
	if key == nil {
		key, value = c.Last()
	} else {
		key, value = c.Prev()
	}
	prefix := append(bytes.Clone(tag), separator...)
	for ; bytes.HasPrefix(key, prefix); key, value = c.Prev() {
		if o, _, ok := readObservation(len(tag), key, value); ok {
			return bytes.Clone(key), o
		}
	}
	return nil, Observation{}
}

// observe notes that a tag, whose record has been was, stands for d from at on; an
// empty d says that it does not exist. It gives what the tag has stood for before,
// where that was something else.
func (ix *Index) observe(tx *tx, tag []byte, was Tag, d digest.Digest, how Seen, at time.Time) (from digest.Digest, err error) {
	b := tx.Bucket(ledgerBucket)
	key, last := lastOf(b.Cursor(), tag)
	switch {
	case key == nil && was.Digest == d:
		// Nothing is known, or what the record says, which was there before the
		// ledger was.
		if d == "" {
			return "", nil
		}
		at, how = was.Checked, ""
	case key == nil && was.Digest != "":
		last = Observation{Digest: was.Digest, First: was.Checked}
		key = observationKey(tag, was.Checked)
		if err := countObservations(tx, observationCount{standing: 1}); err != nil {
			return "", err
		}
		fallthrough
	case key != nil && last.Digest != d:
		end := last.Last
		if end.IsZero() {
			end = last.First
			if was.Digest == last.Digest && was.Checked.After(end) {
				end = was.Checked
			}
		}
		if err := endAt(tx, key, last, end); err != nil {
			return "", err
		}
		if !at.After(last.First) { // the clock has been set back
			at = last.First.Add(1)
		}
	case key == nil: // the tag is new
	case last.Last.IsZero():
		return "", nil // as it was
	default: // it has been forgotten meanwhile
		if err := countObservations(tx, observationCount{standing: 1, ended: -1}); err != nil {
			return "", err
		}
		return "", putJSON(b, key, observed{Digest: last.Digest, How: last.How})
	}
	from = last.Digest
	if from == "" && key != nil {
		// It was gone: what was it before?
		if before := observations(b.Cursor(), tag); len(before) > 1 {
			from = before[len(before)-2].Digest
		}
	}
	if d == "" || from == d {
		from = ""
	}
	if err := putJSON(b, observationKey(tag, at), observed{Digest: d, How: how}); err != nil {
		return "", err
	}
	if err := countObservations(tx, observationCount{standing: 1}); err != nil {
		return "", err
	}
	return from, bound(tx, b, tag)
}

// bound drops the first observations of a tag that has too many.
func bound(tx *tx, b *bucket, tag []byte) error {
	var keys [][]byte
	prefix := append(bytes.Clone(tag), separator...)
	c := b.Cursor()
	for key, _ := c.Seek(prefix); bytes.HasPrefix(key, prefix); key, _ = c.Next() {
		keys = append(keys, bytes.Clone(key))
	}
	if len(keys) <= maxOfTag {
		return nil
	}
	return dropObservations(tx, keys[:len(keys)-maxOfTag])
}

// dropObservations removes observations, those that are there.
func dropObservations(tx *tx, keys [][]byte) error {
	b, n := tx.Bucket(ledgerBucket), observationCount{}
	for _, key := range keys {
		value := b.Get(key)
		if value == nil {
			continue
		}
		n = n.less(countOf(value))
		if err := b.Delete(key); err != nil {
			return err
		}
	}
	return countObservations(tx, n)
}

// endAt writes that an observation ended.
func endAt(tx *tx, key []byte, o Observation, end time.Time) error {
	if o.Last.IsZero() {
		if err := countObservations(tx, observationCount{standing: -1, ended: 1}); err != nil {
			return err
		}
	}
	return putJSON(tx.Bucket(ledgerBucket), key, observed{Digest: o.Digest, How: o.How, Last: end})
}

// observationCount is how many observations still hold, and how many have ended.
type observationCount struct{ standing, ended int }

func (n observationCount) less(m observationCount) observationCount {
	return observationCount{n.standing - m.standing, n.ended - m.ended}
}

// countOf counts the one observation that is written as value.
func countOf(value []byte) observationCount {
	var o observed
	if json.Unmarshal(value, &o) == nil && o.Last.IsZero() {
		return observationCount{standing: 1}
	}
	return observationCount{ended: 1}
}

// countObservations adds n to the count that is written.
func countObservations(tx *tx, n observationCount) error {
	now := readObservationCount(tx)
	return writeObservationCount(tx, observationCount{now.standing + n.standing, now.ended + n.ended})
}

func writeObservationCount(tx *tx, n observationCount) error {
	v := binary.BigEndian.AppendUint64(nil, uint64(max(0, n.ended))) // #nosec G115 -- not negative
	v = binary.BigEndian.AppendUint64(v, uint64(max(0, n.standing))) // #nosec G115 -- not negative
	return tx.Bucket(metaBucket).Put(observationsKey, v)
}

// readObservationCount returns the count that is written. Older versions wrote one for both:
// trim counts again when that is above a bound.
func readObservationCount(tx *tx) (n observationCount) {
	v := tx.Bucket(metaBucket).Get(observationsKey)
	if len(v) == 8 || len(v) == 16 {
		n.ended = int(binary.BigEndian.Uint64(v)) // #nosec G115 -- as it was written
	}
	if len(v) == 16 {
		n.standing = int(binary.BigEndian.Uint64(v[8:])) // #nosec G115 -- as it was written
	}
	return n
}

// endObservation writes down until when the tag was seen, whose record goes.
func endObservation(tx *tx, tag []byte, was Tag) error {
	b := tx.Bucket(ledgerBucket)
	key, last := lastOf(b.Cursor(), tag)
	if key == nil || !last.Last.IsZero() || last.Digest == "" || was.Digest != last.Digest {
		return nil
	}
	end := last.First
	if was.Checked.After(end) {
		end = was.Checked
	}
	return endAt(tx, key, last, end)
}

// ObserveAbsent notes that the upstream said at a time that there is no such tag. The
// record of the tag stays. Of a tag that was never seen nothing is noted.
func (ix *Index) ObserveAbsent(upstream, repo, tag string, at time.Time) error {
	if list := ix.History(upstream, repo, tag); len(list) == 0 || list[len(list)-1].Digest == "" {
		return nil
	}
	was, _ := ix.Tag(upstream, repo, tag)
	ix.backupSoon()
	return ix.batch(func(tx *tx) error {
		_, err := ix.observe(tx, join(upstream, repo, tag), was, "", SeenRevalidation, at)
		return err
	})
}

// observations gives those of a tag, in order, as they are written.
func observations(c *cursor, tag []byte) (list []Observation) {
	prefix := append(bytes.Clone(tag), separator...)
	for key, value := c.Seek(prefix); bytes.HasPrefix(key, prefix); key, value = c.Next() {
		if o, _, ok := readObservation(len(tag), key, value); ok {
			list = append(list, o)
		}
	}
	return list
}

// History gives what is known of what a tag stood for, the earliest first, and no two
// of the same digest side by side. Its last observation ends when the tag was last
// confirmed.
func (ix *Index) History(upstream, repo, tag string) []Observation {
	var list []Observation
	_ = ix.view(func(tx *tx) error { // what can not be read is not known
		list = observations(tx.Bucket(ledgerBucket).Cursor(), join(upstream, repo, tag))
		return nil
	})
	return ix.complete(list, upstream, repo, tag)
}

// complete makes a history of what is written of a tag.
func (ix *Index) complete(list []Observation, upstream, repo, tag string) []Observation {
	rec, known := ix.Tag(upstream, repo, tag)
	switch last := len(list) - 1; {
	case last < 0 && known:
		return []Observation{{Digest: rec.Digest, First: rec.Checked, Last: rec.Checked}}
	case last >= 0 && known && list[last].Digest == rec.Digest && rec.Checked.After(list[last].Last):
		list[last].Last = rec.Checked
	}
	for i := range list {
		if list[i].Last.Before(list[i].First) {
			list[i].Last = list[i].First
		}
		if i > 0 && list[i].Digest == list[i-1].Digest { // a backup has filled a gap
			list[i].First, list[i].How = list[i-1].First, list[i-1].How
			list[i-1].First = time.Time{}
		}
	}
	return slices.DeleteFunc(list, func(o Observation) bool { return o.First.IsZero() })
}

// Histories calls fn with the history of each tag that is in the ledger, in the order
// of their names, until fn gives false: the tags of one repository, or where upstream
// is empty all. What changes meanwhile may or may not be seen.
func (ix *Index) Histories(upstream, repo string, fn func(upstream, repo, tag string, list []Observation) bool) error {
	type tagged struct {
		tag  []byte
		list []Observation
	}
	var open tagged // it may go on in the next chunk
	var ready []tagged
	stopped := false
	tell := func(t tagged) {
		parts := bytes.Split(t.tag, separator)
		if stopped || len(parts) != 3 {
			return
		}
		upstream, repo, tag := string(parts[0]), string(parts[1]), string(parts[2])
		stopped = !fn(upstream, repo, tag, ix.complete(t.list, upstream, repo, tag))
	}
	var prefix []byte
	if upstream != "" {
		prefix = join(upstream, repo, "")
	}
	err := ix.chunksOf(ledgerBucket, prefix, blobsChunk, func(key, value []byte) bool {
		if len(key) < 9 {
			return true
		}
		tag := key[:len(key)-9]
		o, _, ok := readObservation(len(tag), key, value)
		if !ok {
			return true
		}
		if !bytes.Equal(tag, open.tag) {
			ready = append(ready, open)
			open = tagged{tag: bytes.Clone(tag)}
		}
		open.list = append(open.list, o)
		return !stopped
	}, func() error {
		for _, t := range ready {
			tell(t)
		}
		ready = ready[:0]
		return nil
	})
	tell(open)
	return err
}

// Trimmed has fn called after the ledger was above a bound, with how many observations were
// dropped that had ended, and that still held. Set it before the Index is used.
func (ix *Index) Trimmed(fn func(ended, standing int)) { ix.trimmed = fn }

// trim drops observations if there are more than the bounds: of those that have ended the ones
// that ended first, and of those that hold the newest of tags that have never moved, whose
// record tells as much but for when they were first seen. A tag that has moved keeps what it
// resolves to now.
func (ix *Index) trim(maxEnded, maxStanding int) error {
	var n observationCount
	err := ix.view(func(tx *tx) error {
		n = readObservationCount(tx)
		return nil
	})
	if err != nil || n.ended <= maxEnded && n.standing <= maxStanding {
		return err
	}
	n = observationCount{}
	var ended, standing []int64 // when those ended, and when these were first seen
	err = ix.eachObservation(func(_ []byte, o Observation, moved bool) {
		switch {
		case !o.Last.IsZero():
			ended = append(ended, o.Last.UnixNano())
		case !moved:
			standing = append(standing, o.First.UnixNano())
		default:
			n.standing++
		}
	}, nil)
	if err != nil {
		return err
	}
	n = observationCount{n.standing + len(standing), len(ended)}
	err = ix.update(func(tx *tx) error { return writeObservationCount(tx, n) })
	if err != nil || n.ended <= maxEnded && n.standing <= maxStanding {
		return err
	}
	slices.Sort(ended)
	slices.Sort(standing)
	dropEnded := excess(n.ended, maxEnded, len(ended))
	dropStanding := excess(n.standing, maxStanding, len(standing))
	var endedBy, seenFrom int64
	if dropEnded > 0 {
		endedBy = ended[dropEnded-1]
	}
	if dropStanding > 0 {
		seenFrom = standing[len(standing)-dropStanding]
	}
	ix.backupSoon()
	var keys [][]byte
	dropped := observationCount{}
	err = ix.eachObservation(func(key []byte, o Observation, moved bool) {
		switch {
		case !o.Last.IsZero():
			if dropped.ended < dropEnded && o.Last.UnixNano() <= endedBy {
				keys = append(keys, bytes.Clone(key))
				dropped.ended++
			}
		case !moved && dropped.standing < dropStanding && o.First.UnixNano() >= seenFrom:
			keys = append(keys, bytes.Clone(key))
			dropped.standing++
		}
	}, func() error {
		for some := range slices.Chunk(keys, backupChunk) {
			if err := ix.update(func(tx *tx) error { return dropObservations(tx, some) }); err != nil {
				return err
			}
		}
		keys = keys[:0]
		return nil
	})
	if ix.trimmed != nil && dropped != (observationCount{}) {
		ix.trimmed(dropped.ended, dropped.standing)
	}
	return err
}

// excess returns how many of n to drop, of which there are at most have, for a bound.
func excess(n, bound, have int) int {
	if n <= bound {
		return 0
	}
	return min(have, n-bound/100*trimmedTo)
}

// eachObservation calls fn for each observation in the ledger, with whether its tag has an
// earlier one, and between after each chunk, while no transaction runs.
func (ix *Index) eachObservation(fn func(key []byte, o Observation, moved bool), between func() error) error {
	var tag []byte
	return ix.chunks(ledgerBucket, blobsChunk, func(key, value []byte) bool {
		if len(key) < 9 {
			return true
		}
		o, _, ok := readObservation(len(key)-9, key, value)
		if !ok {
			return true
		}
		moved := bytes.Equal(tag, key[:len(key)-9])
		tag = append(tag[:0], key[:len(key)-9]...)
		fn(key, o, moved)
		return true
	}, between)
}
