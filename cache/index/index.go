// Package index remembers what the tree of content can not say by itself: what
// a tag stood for and when, which repository may serve which digest, and the
// lists that upstreams gave.
//
// It promises that what a Put has accepted outlives a crash, that reads wait
// for no write to the disk, and that a damaged file is set aside rather than
// trusted. A backup beside it, written now and then, spares the upstreams most
// questions after that; the rest can be learned again from the tree and from them.
package index

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"
)

// Tag is what a tag stood for when its upstream was last asked.
type Tag struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	Size      int64         `json:"size"`
	// Checked is when the upstream was asked that last confirmed it.
	Checked time.Time `json:"checked"`
	// Previous is what the tag stood for before, where that is stored and
	// Digest may not be yet: the upstream was only asked what the tag is.
	Previous digest.Digest `json:"previous,omitempty"`
	// Since is when it was first seen to stand for Digest, where Held is set.
	Since time.Time `json:"since,omitzero"`
	// Held is what it stood for before it moved, as long as nobody has accepted
	// the move: the rules of the tag say whether that is served.
	Held *Held `json:"held,omitempty"`
	// Gone is set where the upstream says that there is no such tag any more.
	Gone bool `json:"gone,omitempty"`
}

// Held is what a tag stood for.
type Held struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	Size      int64         `json:"size"`
}

// Proof is why a digest is taken for content of a repository.
type Proof string

const (
	// Named: a manifest of the repository names the digest. This lets the
	// repository ask for the content, and is no proof that it has it: not every
	// registry checks what manifests name.
	Named Proof = "named"
	// Confirmed: the upstream has answered a HEAD for it with a yes.
	Confirmed Proof = "confirmed"
	// Fetched: the upstream has sent the bytes on this repository's account, or
	// an imported bundle carried them for it.
	Fetched Proof = "fetched"
)

// rank orders proofs. That of an older version, the empty one, counts as Named.
func (p Proof) rank() int {
	switch p {
	case Confirmed:
		return 1
	case Fetched:
		return 2
	}
	return 0
}

// Max returns the stronger of both proofs.
func (p Proof) Max(other Proof) Proof {
	if p == "" || other.rank() > p.rank() {
		return other
	}
	return p
}

// Link says that a digest belongs to a repository, and how that is known.
type Link struct {
	// MediaType is as the manifest or the upstream gave it; may be empty.
	MediaType string `json:"mediaType,omitempty"`
	// Size is the content's size in bytes, or -1 where it is not known.
	Size int64 `json:"size"`
	// Manifest is set for manifests and indexes.
	Manifest bool `json:"manifest,omitempty"`
	// Proof is empty in links that an older version has put.
	Proof Proof `json:"proof,omitempty"`
}

// List is what an upstream listed, and when: tags, or the descriptors of
// referrers.
type List struct {
	Tags      []string        `json:"tags,omitempty"`
	Referrers []v1.Descriptor `json:"referrers,omitempty"`
	Checked   time.Time       `json:"checked"`
}

// Kinds of list.
const (
	Tags      = "tags"
	Referrers = "referrers"
)

var (
	tagsBucket  = []byte("tags")
	linksBucket = []byte("links")
	listsBucket = []byte("lists")
	// ledgerBucket holds an observed under the tag and the time, see ledger.go.
	ledgerBucket = []byte("ledger")
	blobsBucket  = []byte("blobs")
	// pinsBucket holds a Pin under the repository and the tag or digest.
	pinsBucket = []byte("pins")
	metaBucket = []byte("meta")
	// askedBucket holds an askedRecord under the name of what was asked for.
	askedBucket = []byte("asked")
)

// flushEvery is how long a Touch may wait for the disk.
const flushEvery = 5 * time.Second

// Index is an open index file. All methods are safe for concurrent use.
type Index struct {
	path    string
	options Options
	db      atomic.Pointer[db] // replaced when it is found damaged, or by a smaller copy
	// broken holds the file that a reader has found damaged.
	broken    chan *db
	replacing sync.Mutex // held while db is replaced
	// compacting is held while the file is compacted.
	compacting sync.Mutex
	lost       func(aside string, cause error)
	stop       chan struct{}
	// loops are the goroutines that Close waits for.
	loops sync.WaitGroup
	wake  chan struct{} // holds one token while there is something to flush

	blobs, bytes atomic.Int64 // the totals
	counted      func(blobs, bytes int64)
	trimmed      func(ended, standing int)

	// putting is held for reading by who puts, and taken by a watch as it begins: so each
	// Put is over by then, or is seen.
	putting sync.RWMutex
	watch   *Watch // nil while nobody watches

	backup  string        // the path of the backup
	changed chan struct{} // holds one token while the backup is behind
	dropped chan struct{} // holds one token while the file may have become wasteful

	lists listUses

	// share is how many bytes the index may use, zero if that has no bound; notice is the size
	// of the file from which grown is called. What least bytes remain DropNames can't reduce.
	share, notice, least atomic.Int64
	grown                atomic.Pointer[func()]

	mu      sync.Mutex
	touched map[string]Tag       // confirmed again, not yet on disk
	used    map[string]time.Time // last uses of blobs, not yet on disk
	// askedTrimmed is when what clients asked for was last trimmed.
	askedTrimmed time.Time
}

// Open opens the index file at path, or begins one. A damaged file is quarantined under the
// name that aside gives (empty if there was no damage), and a new one begun. The caller
// calls Close.
func Open(path string) (ix *Index, aside string, err error) { return OpenWith(path, Options{}) }

// Options say how an index is opened.
type Options struct {
	// Adopt gives each new file of the index to its owner; nil leaves it to this process's
	// user.
	Adopt func(*os.File) error
	// ReadOnly opens a file that is there on a file system that cannot be written: every
	// write is an error that is syscall.EROFS, and nothing is repaired.
	ReadOnly bool
}

// errReadOnly is the error of a write to an index that was opened read-only.
var errReadOnly = fmt.Errorf("the index was opened on a read-only file system: %w", syscall.EROFS)

// OpenWith is Open with options.
func OpenWith(path string, o Options) (ix *Index, aside string, err error) {
	d, t, err := open(path, "", o)
	if o.ReadOnly && (damaged(err) || errors.Is(err, fs.ErrNotExist)) {
		return nil, "", fmt.Errorf("the index %s is missing or damaged, and cannot be restored on a read-only file system: make it writable and start entrepot once: %w", path, err)
	}
	if damaged(err) {
		if aside, err = setAside(path); err != nil {
			return nil, "", err
		}
		d, t, err = open(path, aside, o)
	}
	if err != nil {
		return nil, aside, fmt.Errorf("open index %s: %w", path, err)
	}
	ix = &Index{path: path, options: o, broken: make(chan *db, 1), stop: make(chan struct{}), wake: make(chan struct{}, 1), touched: map[string]Tag{}, used: map[string]time.Time{},
		backup: backupPath(path), changed: make(chan struct{}, 1), dropped: make(chan struct{}, 1)}
	ix.db.Store(d)
	ix.blobs.Store(t.blobs)
	ix.bytes.Store(t.bytes)
	if o.ReadOnly {
		return ix, "", nil
	}
	// What a crash has left of a copy and of a backup that were being written.
	_ = os.Remove(compactPath(path))
	if left, err := filepath.Glob(ix.backup + "-*"); err == nil {
		for _, name := range left {
			_ = os.Remove(name)
		}
	}
	ix.loops.Go(ix.flushLoop)
	ix.loops.Go(ix.backupLoop)
	ix.loops.Go(ix.replaceLoop)
	ix.loops.Go(ix.compactLoop)
	ix.shrinkSoon()
	return ix, aside, nil
}

// open opens the file at path, or begins one as the successor of aside, the name of a file
// that was quarantined.
func open(path, aside string, o Options) (d *db, t totals, err error) {
	if err := checkFile(path); err != nil {
		return nil, t, err
	}
	err = guarded(func() error {
		d, t, err = begin(path, aside, o)
		return err
	})
	return d, t, err
}

// buckets are all there are. A file that has one has all: add no other without a new name
// for the file or a rule for those that lack it.
var buckets = [][]byte{tagsBucket, linksBucket, listsBucket, blobsBucket, metaBucket, askedBucket, ledgerBucket, pinsBucket}

func begin(path, aside string, o Options) (d *db, t totals, err error) {
	// The list of free pages is in the file: to find them by a walk over all
	// others would make the start longer with every blob.
	bolt, err := bbolt.Open(path, 0o600, o.bolt())
	if err != nil {
		return nil, t, err
	}
	f, err := formatOf(bolt)
	if err == nil && o.ReadOnly && (f.fresh || !f.sealed) {
		err = damage("an older version has written it, or a start that crashed")
	}
	if err == nil && f.fresh {
		if err = create(bolt, aside); err == nil {
			f, err = formatOf(bolt)
		}
	}
	if err != nil {
		return nil, t, errors.Join(err, bolt.Close())
	}
	if !f.sealed {
		if err = addBuckets(bolt); err == nil {
			f, err = formatOf(bolt)
		}
		if err != nil {
			return nil, t, errors.Join(err, bolt.Close())
		}
	}
	d = start(bolt, f.sealed, f.last)
	if f.whole {
		d.markWhole()
	}
	return d, f.totals, nil
}

// bolt returns the options of an index file.
func (o Options) bolt() *bbolt.Options {
	return &bbolt.Options{Timeout: time.Second, ReadOnly: o.ReadOnly, FreelistType: bbolt.FreelistMapType, NoStatistics: true, OpenFile: o.openFile}
}

// openFile opens or makes a file of the index, and gives it to its owner.
func (o Options) openFile(name string, flag int, mode os.FileMode) (*os.File, error) {
	f, err := os.OpenFile(name, flag, mode) // #nosec G304 -- the cache directory's and our own name
	if err != nil || o.Adopt == nil {
		return f, err
	}
	if err := o.Adopt(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// addBuckets makes the buckets that a file of an older version lacks.
func addBuckets(bolt *bbolt.DB) error {
	return bolt.Update(func(b *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := b.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
}

// format is what an index file says of itself.
type format struct {
	fresh  bool // nothing is in it
	sealed bool // see db
	whole  bool
	totals totals
	last   int64 // the transaction that was committed last
}

// newFile is the transaction that bbolt gives a file that it begins. The next makes the buckets.
const newFile = 1

// formatOf reads the format of a file. The totals, which are in each, tell whether its values
// are sealed.
func formatOf(bolt *bbolt.DB) (f format, err error) {
	err = bolt.View(func(b *bbolt.Tx) error {
		t := newTx(&db{}, b, false)
		f.last = int64(t.id)
		if first, _ := b.Cursor().First(); first == nil {
			if t.id > newFile {
				return damage("it has no buckets after %d transactions", t.id)
			}
			f.fresh = true
			return nil
		}
		t.checkPath(t.root, metaBucket)
		bucket := b.Bucket(metaBucket)
		if bucket == nil {
			return damage("no bucket %q", metaBucket)
		}
		written := bucket.Get(totalsKey)
		if written == nil {
			return damage("the totals are missing")
		}
		t.d.sealed = len(written) != totalsLen
		f.sealed = t.d.sealed
		for _, name := range buckets {
			if f.sealed { // files of older versions may lack some
				t.Bucket(name)
			}
		}
		f.totals, _ = readTotals(t)
		f.whole = t.Bucket(metaBucket).Get(wholeKey) != nil
		return nil
	})
	return f, err
}

// create makes the buckets of a new file.
func create(bolt *bbolt.DB, aside string) error {
	return bolt.Update(func(b *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := b.CreateBucket(name); err != nil {
				return err
			}
		}
		put := func(key, value []byte) error {
			return b.Bucket(metaBucket).Put(key, sealed(metaBucket, key, value))
		}
		err := errors.Join(put(totalsKey, totals{}.encode()), put(sourcedKey, []byte{1}), put(usageKey, []byte(`{"counted":true}`)))
		if aside != "" {
			return errors.Join(err, put(asideKey, []byte(filepath.Base(aside))))
		}
		if _, failed := os.Stat(backupPath(bolt.Path())); errors.Is(failed, fs.ErrNotExist) {
			err = errors.Join(err, put(wholeKey, []byte{1})) // there is nothing to restore
		}
		return err
	})
}

// Close writes what is still to write, the backup included, and closes the
// file.
func (ix *Index) Close() error {
	close(ix.stop)
	ix.loops.Wait()
	if ix.options.ReadOnly {
		return ix.db.Load().close()
	}
	err := ix.flush()
	select {
	case <-ix.changed:
		err = errors.Join(err, ix.writeBackup())
	default:
	}
	d := ix.db.Load()
	select {
	case <-d.dead:
		// The next start must not find the file that this one holds a lock on. It restores what
		// was lost, so that the damage is no error of Close.
		if failed := ix.replace(d); failed != nil {
			return errors.Join(err, failed)
		}
		if errors.Is(err, errDamaged) {
			err = nil
		}
		d = ix.db.Load()
	default:
	}
	return errors.Join(err, d.close())
}

func (ix *Index) flushLoop() {
	for {
		select {
		case <-ix.wake:
		case <-ix.stop:
			return
		}
		select {
		case <-time.After(flushEvery):
			// Uses that can not be written are tried again with the next; a
			// tag that is lost is only asked for sooner; so is a ledger that is
			// too long.
			_ = ix.flush()
			_ = ix.trim(maxEnded, maxStanding)
		case <-ix.stop:
			return
		}
	}
}

func (ix *Index) flush() error {
	ix.mu.Lock()
	pending, used := ix.touched, ix.used
	ix.touched, ix.used = map[string]Tag{}, map[string]time.Time{}
	ix.mu.Unlock()
	if len(pending) == 0 && len(used) == 0 {
		return nil
	}
	if len(pending) > 0 {
		ix.backupSoon()
	}
	err := ix.update(func(tx *tx) error {
		b := tx.Bucket(tagsBucket)
		for key, t := range pending {
			// A tag that was put or dropped since it was touched stays so.
			var now Tag
			j := b.Get([]byte(key))
			if j == nil || json.Unmarshal(j, &now) == nil && now.Checked.After(t.Checked) {
				continue
			}
			if err := putJSON(b, []byte(key), t); err != nil {
				return err
			}
		}
		b = tx.Bucket(blobsBucket)
		for key, now := range used {
			// What was dropped since it was used stays so.
			known, ok := decodeBlob(b.Get([]byte(key)))
			if !ok {
				continue
			}
			known.use(now)
			if err := b.Put([]byte(key), known.encode()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		ix.mu.Lock()
		for key, now := range used {
			if _, newer := ix.used[key]; !newer {
				ix.used[key] = now
			}
		}
		ix.mu.Unlock()
		// The tags stay lost: what was put or dropped meanwhile would be hidden by
		// what they were before.
	}
	return err
}

// Tag gives what a tag stood for; false where it is not known.
func (ix *Index) Tag(upstream, repo, tag string) (Tag, bool) {
	key := join(upstream, repo, tag)
	ix.mu.Lock()
	t, ok := ix.touched[string(key)]
	ix.mu.Unlock()
	if ok {
		return t, true
	}
	ok = ix.get(tagsBucket, key, &t)
	return t, ok
}

// PutTag remembers what a tag stands for.
func (ix *Index) PutTag(upstream, repo, tag string, t Tag) error {
	return ix.Put(Change{Upstream: upstream, Repository: repo, Tag: tag, Record: t})
}

// Touch remembers what a tag stands for, as PutTag does, but does not wait for
// the disk: a crash in the next seconds may lose it. It is for a tag that was
// found unchanged.
func (ix *Index) Touch(upstream, repo, tag string, t Tag) {
	if ix.options.ReadOnly { // it would be kept in memory for good
		return
	}
	ix.mu.Lock()
	ix.touched[string(join(upstream, repo, tag))] = t
	ix.mu.Unlock()
	ix.flushSoon()
}

func (ix *Index) flushSoon() {
	select {
	case ix.wake <- struct{}{}:
	default: // a flush is due anyway
	}
}

// DropTags forgets tags of a repository, but those of which w, where it is not nil, has
// seen that they were put since it began. It gives how many it has forgotten. What they
// stood for stays in the ledger.
func (ix *Index) DropTags(upstream, repo string, tags []string, w *Watch) (dropped int, err error) {
	ix.backupSoon()
	for some := range slices.Chunk(tags, dropChunk) {
		touched := map[string]Tag{}
		ix.mu.Lock()
		for _, tag := range some {
			key := string(join(upstream, repo, tag))
			if t, ok := ix.touched[key]; ok && !w.seen([]byte(key)) {
				touched[key] = t
				delete(ix.touched, key)
			}
		}
		ix.mu.Unlock()
		gone := 0
		err := ix.batch(func(tx *tx) error {
			b := tx.Bucket(tagsBucket)
			gone = 0
			for _, tag := range some {
				key := join(upstream, repo, tag)
				// Who puts one tells w before, and waits for this transaction or is in it.
				if w.seen(key) {
					continue
				}
				was, ok := touched[string(key)]
				if !ok {
					was = readTag(b, key)
				}
				if err := errors.Join(endObservation(tx, key, was), b.Delete(key)); err != nil {
					return err
				}
				gone++
			}
			return nil
		})
		if err != nil {
			return dropped, err
		}
		dropped += gone
	}
	return dropped, nil
}

// TagNames lists the tags of a repository that are known, sorted.
func (ix *Index) TagNames(upstream, repo string) ([]string, error) {
	var names []string
	prefix := join(upstream, repo, "")
	err := ix.view(func(tx *tx) error {
		c := tx.Bucket(tagsBucket).Cursor()
		for key, _ := c.Seek(prefix); bytes.HasPrefix(key, prefix); key, _ = c.Next() {
			names = append(names, string(key[len(prefix):]))
		}
		return nil
	})
	return names, err
}

// Link returns the link of a repository to d; false if there is none.
func (ix *Index) Link(upstream, repo string, d digest.Digest) (Link, bool) {
	if l := ix.LinksTo(upstream, repo, []digest.Digest{d})[0]; l != nil {
		return *l, true
	}
	return Link{}, false
}

// decodeLink reads a link; false where there is none, or none that can be read. Most are as
// putLink writes them, with nothing escaped, and are read without the cost of parsing JSON.
func decodeLink(v []byte) (l Link, ok bool) {
	rest, plain := bytes.CutPrefix(v, []byte("{"))
	if mediaType, has := bytes.CutPrefix(rest, []byte(`"mediaType":"`)); has {
		var name []byte
		name, rest, plain = bytes.Cut(mediaType, []byte(`",`))
		plain = plain && !bytes.ContainsAny(name, "\\\"")
		l.MediaType = string(name)
	}
	size, has := bytes.CutPrefix(rest, []byte(`"size":`))
	end := bytes.IndexAny(size, ",}")
	if plain && has && end > 0 {
		rest = size[end:]
		rest, l.Manifest = bytes.CutPrefix(rest, []byte(`,"manifest":true`))
		for _, p := range []Proof{Fetched, Confirmed, Named} {
			if after, is := bytes.CutPrefix(rest, []byte(`,"proof":"`+p+`"`)); is {
				rest, l.Proof = after, p
			}
		}
		var err error
		if l.Size, err = strconv.ParseInt(string(size[:end]), 10, 64); err == nil && string(rest) == "}" {
			return l, true
		}
	}
	l = Link{}
	return l, decode(v, &l)
}

// PutLinks puts links of a repository, all or none.
func (ix *Index) PutLinks(upstream, repo string, links map[digest.Digest]Link) error {
	return ix.Put(Change{Upstream: upstream, Repository: repo, Links: links})
}

// separator stands between the parts of a key; no name, tag or digest can hold it.
var separator = []byte{0}

func join(parts ...string) []byte {
	n := len(parts)
	for _, p := range parts {
		n += len(p)
	}
	key := make([]byte, 0, n)
	for i, p := range parts {
		if i > 0 {
			key = append(key, separator...)
		}
		key = append(key, p...)
	}
	return key
}

func (ix *Index) get(bucket, key []byte, v any) bool {
	ok := false
	err := ix.view(func(tx *tx) error {
		ok = decode(tx.Bucket(bucket).Get(key), v)
		return nil
	})
	return ok && err == nil
}

// decode reads a value; false where there is none, or none that can be read.
func decode(b []byte, v any) bool { return b != nil && json.Unmarshal(b, v) == nil }

func (ix *Index) put(bucket, key []byte, v any) error {
	return ix.batch(func(tx *tx) error { return putJSON(tx.Bucket(bucket), key, v) })
}

func putJSON(b *bucket, key []byte, v any) error {
	j, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.Put(key, j)
}
