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
	// maxObservations is how many are kept of all tags. Beyond it those go that
	// ended first, down to trimmedTo hundredths of it.
	maxObservations = 200_000
	trimmedTo       = 90
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
		if err := countObservations(tx, 1); err != nil {
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
		if err := putJSON(b, key, observed{Digest: last.Digest, How: last.How, Last: end}); err != nil {
			return "", err
		}
		if !at.After(last.First) { // the clock has been set back
			at = last.First.Add(1)
		}
	case key == nil: // the tag is new
	case last.Last.IsZero():
		return "", nil // as it was
	default: // it has been forgotten meanwhile
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
	if err := countObservations(tx, 1); err != nil {
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

func dropObservations(tx *tx, keys [][]byte) error {
	b, n := tx.Bucket(ledgerBucket), 0
	for _, key := range keys {
		if b.Get(key) == nil {
			continue
		}
		if err := b.Delete(key); err != nil {
			return err
		}
		n++
	}
	return countObservations(tx, -n)
}

// countObservations adds n to the number of observations that is written.
func countObservations(tx *tx, n int) error {
	now := readObservationCount(tx) + n
	return tx.Bucket(metaBucket).Put(observationsKey, binary.BigEndian.AppendUint64(nil, uint64(max(0, now)))) // #nosec G115 -- not negative
}

func readObservationCount(tx *tx) int {
	v := tx.Bucket(metaBucket).Get(observationsKey)
	if len(v) != 8 {
		return 0
	}
	return int(binary.BigEndian.Uint64(v)) // #nosec G115 -- as it was written
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
	return putJSON(b, key, observed{Digest: last.Digest, How: last.How, Last: end})
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

// trim drops the observations that ended first where there are more than most.
func (ix *Index) trim(most int) error {
	n := 0
	err := ix.view(func(tx *tx) error {
		n = readObservationCount(tx)
		return nil
	})
	if err != nil || n <= most {
		return err
	}
	type entry struct {
		key  []byte
		open bool
		end  time.Time
	}
	var all []entry
	err = ix.chunks(ledgerBucket, blobsChunk, func(key, value []byte) bool {
		o, _, ok := readObservation(len(key)-9, key, value)
		e := entry{key: bytes.Clone(key), end: o.First}
		if ok {
			// What still holds goes last.
			e.open = o.Last.IsZero()
			if !e.open {
				e.end = o.Last
			}
		}
		all = append(all, e)
		return true
	}, nil)
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b entry) int {
		if a.open != b.open {
			if a.open {
				return 1
			}
			return -1
		}
		return a.end.Compare(b.end)
	})
	drop := max(0, len(all)-most/100*trimmedTo)
	ix.backupSoon()
	for some := range slices.Chunk(all[:drop], backupChunk) {
		keys := make([][]byte, 0, len(some))
		for _, e := range some {
			keys = append(keys, e.key)
		}
		if err := ix.update(func(tx *tx) error { return dropObservations(tx, keys) }); err != nil {
			return err
		}
	}
	return nil
}
