package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/fill"
	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// importPatience is how long an import waits for the evictor while that frees
	// nothing.
	importPatience = 30 * time.Second
	// importAhead is for how many bytes at most room is made beforehand where nobody has
	// said how many will come.
	importAhead = 64 << 20
)

var (
	// ErrImporting says that another import runs.
	ErrImporting = errors.New("an import runs already: wait for it to end")
	// ErrNoRoom says that the cache can not be made to hold what is imported.
	ErrNoRoom = errors.New("there is no room for it")
)

// Import takes in content that was carried here, and not fetched. Until Finish nothing
// of it is visible, and nothing evicts it; after that all of it is, by one change of
// the index. A process that is killed before leaves what it has written to the next
// Import. It is for one goroutine, and there is one at a time.
type Import struct {
	// KeepTags leaves tags that stand for something else that is cached. It is set before Add.
	KeepTags bool

	cache *Cache

	// These are guarded by Cache.mu where another goroutine than the owner's reads
	// them: the evictor's.
	content map[digest.Digest]*imported
	// due is what is expected and not here: what an earlier import has left of it is
	// held, too.
	due      map[digest.Digest]bool
	expected int64 // bytes of new content, here and to come

	come    int64 // bytes of content that have come and were not here
	images  []ImportedImage
	changes map[repository]*index.Change
	tags    []index.Change
	steps   int // what was looked at, see maxImportSteps
	noted   int // bytes of referrers' annotations
	broken  bool
}

// imported is content of an import.
type imported struct {
	size int64
	// fresh is set where it was not stored before.
	fresh bool
	// carried is set if the import has brought its bytes, and not only found them.
	carried bool
	// named is set where an image names it, counted where it counts for one.
	named, counted bool
}

// proof is what the import proves of who has the content: a bundle that leaves content
// out, because it is in the cache, only names it.
func (e *imported) proof() index.Proof {
	if e.carried {
		return index.Fetched
	}
	return index.Named
}

// NewImport begins to take in content. The error is ErrImporting, or that the cache is
// closed. The caller calls Close, which Cache.Close waits for.
func (c *Cache) NewImport() (*Import, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, closing()
	}
	if c.importing != nil {
		return nil, ErrImporting
	}
	c.work.Add(1)
	c.importing = &Import{cache: c, content: map[digest.Digest]*imported{}, due: map[digest.Digest]bool{}, changes: map[repository]*index.Change{}}
	return c.importing, nil
}

// Close ends the import. What was not finished is kept for the next one where keep is
// set and the disk has not failed, and dropped otherwise.
func (i *Import) Close(keep bool) error {
	c := i.cache
	var err error
	if !keep || i.broken {
		for d, e := range i.content {
			if e.fresh {
				err = errors.Join(err, c.store.RemoveIncoming(d))
			}
		}
		for d := range i.due {
			err = errors.Join(err, c.store.RemoveIncoming(d))
		}
	}
	c.mu.Lock()
	c.importing = nil
	c.mu.Unlock()
	c.evictor.soon()
	c.work.Done()
	return err
}

// WhenClosing calls f, in a goroutine of its own, once the cache is to be closed, until
// stop is called, which tells whether that was not so by then.
func (i *Import) WhenClosing(f func()) (stop func() bool) { return context.AfterFunc(i.cache.ctx, f) }

// hold keeps d from being evicted until the import ends, and gives what is known of
// it; nil where it was not held before.
func (i *Import) hold(d digest.Digest, size int64) *imported {
	if e := i.content[d]; e != nil {
		return e
	}
	c := i.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awaitClaim(d) // who evicts it now has it gone in a moment
	i.content[d] = &imported{size: size}
	return nil
}

// Has tells whether the cache has the content of d, of that size, and keeps it from
// being evicted then.
func (i *Import) Has(d digest.Digest, size int64) bool {
	if e := i.hold(d, size); e != nil {
		return e.size == size
	}
	if here, ok := i.cache.store.Has(d); ok && here == size && !i.cache.isUnfit(d) {
		return true
	}
	i.forget(d)
	return false
}

// Drop forgets content that was taken in, and that no image names.
func (i *Import) Drop(d digest.Digest) error {
	e := i.content[d]
	if e == nil || e.named {
		return nil
	}
	i.forget(d)
	if !e.fresh {
		return nil
	}
	return i.failed(i.cache.store.RemoveIncoming(d), 0)
}

func (i *Import) forget(d digest.Digest) {
	i.cache.mu.Lock()
	defer i.cache.mu.Unlock()
	delete(i.content, d)
}

// Take takes in size bytes of r, which must be the content of d; where d is empty it
// gives what they are. Where the cache has them, they are verified all the same. The
// error is r's, that they are not d's, that there is no room, or the disk's.
func (i *Import) Take(ctx context.Context, d digest.Digest, size int64, r io.Reader) (digest.Digest, error) {
	if d == "" {
		return i.takeUnnamed(ctx, size, r)
	}
	if _, err := oci.ParseDigest(d.String()); err != nil {
		return "", err
	}
	if i.content[d] != nil || i.Has(d, size) {
		got, err := i.verify(ctx, d, size, r, io.Discard)
		i.carry(d, err)
		return got, err
	}
	i.holdFresh(d, size)
	if err := i.expect(ctx, size); err != nil {
		return "", err
	}
	in, err := i.cache.store.Incoming(d)
	if err != nil {
		return "", i.failed(err, size)
	}
	_, err = i.verify(ctx, d, size, r, in)
	if err == nil {
		err = i.failed(in.Finish(d), size)
	}
	i.carry(d, err)
	return d, errors.Join(err, i.failed(in.Close(), size))
}

// carry notes that the import has brought the bytes of d, unless err says otherwise.
func (i *Import) carry(d digest.Digest, err error) {
	if e := i.content[d]; e != nil && err == nil {
		e.carried = true
	}
}

func (i *Import) takeUnnamed(ctx context.Context, size int64, r io.Reader) (digest.Digest, error) {
	if err := i.expect(ctx, size); err != nil {
		return "", err
	}
	in, err := i.cache.store.Incoming("")
	if err != nil {
		return "", i.failed(err, size)
	}
	d, err := i.verify(ctx, "", size, r, in)
	if err == nil && i.content[d] == nil && !i.Has(d, size) {
		i.holdFresh(d, size)
		err = i.failed(in.Finish(d), size)
	}
	i.carry(d, err)
	return d, errors.Join(err, i.failed(in.Close(), size))
}

// holdFresh holds d, which is not stored.
func (i *Import) holdFresh(d digest.Digest, size int64) {
	i.hold(d, size)
	i.cache.mu.Lock()
	defer i.cache.mu.Unlock()
	i.content[d].fresh = true
}

// failed makes of err, where it is not nil, one of the disk.
func (i *Import) failed(err error, size int64) error {
	if err == nil {
		return nil
	}
	i.broken = true
	i.cache.disk.failed("keep what is imported", err, size)
	return fill.OnDisk(err)
}

// verify writes size bytes of r to w, which must be those of d where d is not empty,
// and gives their digest. They are hashed beside that.
func (i *Import) verify(ctx context.Context, d digest.Digest, size int64, r io.Reader, w io.Writer) (digest.Digest, error) {
	alg := digest.Canonical
	if d != "" {
		alg = d.Algorithm()
	}
	h := newHashing(alg)
	err := i.copy(ctx, size, r, w, h)
	got := h.end()
	switch {
	case err != nil:
		return "", err
	case d != "" && got != d:
		return "", oci.Errorf(oci.CodeDigestInvalid, "the bytes of %s are not the digest's: they are those of %s", d, got)
	}
	return got, nil
}

func (i *Import) copy(ctx context.Context, size int64, r io.Reader, w io.Writer, h *hashing) error {
	for left := size; left > 0; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if i.cache.ctx.Err() != nil {
			return closing()
		}
		buf := <-h.free
		buf.n = int(min(left, fill.ReadSize))
		if _, err := io.ReadFull(r, buf.bytes[:buf.n]); err != nil {
			h.free <- buf
			return fill.Unexpected(err)
		}
		h.full <- buf
		if _, err := w.Write(buf.bytes[:buf.n]); err != nil {
			return i.failed(err, size)
		}
		left -= int64(buf.n)
	}
	return nil
}

// hashing hashes what is sent to full, in a goroutine of its own that ends with end.
type hashing struct {
	free, full chan *hashed
	done       chan digest.Digest
}

// hashed is a buffer that is read by who writes it to a file and by the hash.
type hashed struct {
	bytes *[fill.ReadSize]byte
	n     int
}

func newHashing(alg digest.Algorithm) *hashing {
	// One is filled while the other is hashed.
	h := &hashing{free: make(chan *hashed, 2), full: make(chan *hashed, 2), done: make(chan digest.Digest)}
	for range cap(h.free) {
		h.free <- &hashed{bytes: fill.Buffers.Get().(*[fill.ReadSize]byte)}
	}
	go func() {
		hash := alg.Hash()
		for buf := range h.full {
			hash.Write(buf.bytes[:buf.n])
			h.free <- buf
		}
		h.done <- digest.NewDigest(alg, hash)
	}()
	return h
}

// end gives the digest of all that was sent.
func (h *hashing) end() digest.Digest {
	close(h.full)
	d := <-h.done
	for range cap(h.free) {
		fill.Buffers.Put((<-h.free).bytes)
	}
	return d
}

// Expect makes room for content of these sizes in bytes that will come, as far as it
// is not here; what is stays. The error is ErrNoRoom, in words, or ctx's.
func (i *Import) Expect(ctx context.Context, content iter.Seq2[digest.Digest, int64]) error {
	var bytes int64
	for d, size := range content {
		if !i.Has(d, size) {
			i.expectOf(d)
			if bytes += size; bytes < 0 {
				return fmt.Errorf("%w: it says that it has more bytes than there are numbers for", ErrNoRoom)
			}
		}
	}
	return i.makeRoom(ctx, bytes)
}

// expectOf notes that d is to come.
func (i *Import) expectOf(d digest.Digest) {
	i.cache.mu.Lock()
	defer i.cache.mu.Unlock()
	i.due[d] = true
}

// makeRoom makes room for so many bytes more.
func (i *Import) makeRoom(ctx context.Context, bytes int64) (err error) {
	c := i.cache
	defer func() {
		if err != nil {
			c.mu.Lock()
			i.expected -= bytes
			c.mu.Unlock()
		}
	}()
	c.mu.Lock()
	i.expected += bytes
	expected := i.expected
	c.mu.Unlock()
	if c.settings().MaxSize == (Room{}) {
		return i.fits()
	}
	least, progress := int64(-1), time.Now()
	for {
		h, err := c.evictor.look()
		if err != nil {
			return i.failed(err, bytes)
		}
		most := hundredths(h.limit, highWatermark)
		used := h.used()
		switch {
		case expected > most:
			return fmt.Errorf("%w: it needs %s, and the cache may have %s in all (cache.max_size and cache.min_free)", ErrNoRoom, size(expected), size(most))
		case used <= most:
			return nil
		case least < 0 || used < least:
			least, progress = used, time.Now()
		case time.Since(progress) > importPatience:
			return fmt.Errorf("%w: it needs %s, and nothing more may be evicted for it: %s are over what the cache may have (cache.max_size and cache.min_free), with what is pinned and what is kept of tags' history",
				ErrNoRoom, size(expected), size(used-most))
		}
		c.evictor.soon()
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.ctx.Done():
			return closing()
		}
	}
}

// fits tells whether the disk has room for what is still to come.
func (i *Import) fits() error {
	list, err := i.cache.store.Unfinished()
	if err != nil {
		return i.failed(err, 0)
	}
	_, coming := i.cache.incoming(list)
	if free, _, err := i.cache.store.Room(); err == nil && free < coming {
		return fmt.Errorf("%w: it needs %s more, and %s of the disk are free", ErrNoRoom, size(coming), size(free))
	}
	return nil
}

// expect makes room for content that has come, as far as that was not expected.
func (i *Import) expect(ctx context.Context, bytes int64) error {
	i.come += bytes
	over := i.come - i.expected
	if over <= 0 {
		return nil
	}
	// Room is looked for now and then, and not for each blob.
	if ahead := min(importAhead, i.come/16); ahead > over && i.makeRoom(ctx, ahead) == nil {
		return nil
	}
	return i.makeRoom(ctx, over)
}

func size(bytes int64) string { return units.BytesSize(float64(max(0, bytes))) }

// Read gives content that has been taken in, or that Has has found, of at most so many
// bytes.
func (i *Import) Read(d digest.Digest, most int64) ([]byte, error) {
	e := i.content[d]
	if e == nil {
		return nil, fmt.Errorf("read %s: %w", d, fs.ErrNotExist)
	}
	if e.size > most {
		return nil, oci.Errorf(oci.CodeSizeInvalid, "%s has %d bytes, and at most %d are read", d, e.size, most)
	}
	var f *os.File
	var err error
	if e.fresh {
		f, err = i.cache.store.OpenIncoming(d)
	} else {
		f, _, err = i.cache.store.Get(d)
	}
	if err != nil {
		return nil, i.failed(fmt.Errorf("read %s: %w", d, err), 0)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, e.size+1))
	if err != nil {
		return nil, i.failed(fmt.Errorf("read %s: %w", d, err), 0)
	}
	if !e.fresh && d.Algorithm().FromBytes(b) != d {
		i.cache.setAsideNow(d)
		return nil, fmt.Errorf("what is stored of %s was damaged and has been set aside: run the import again", d)
	}
	return b, nil
}

// setAsideNow takes what is stored of d out of the store.
func (c *Cache) setAsideNow(d digest.Digest) {
	if stamp, err := c.store.Stamp(d); err == nil {
		c.setAside(d, stamp, foundOnOpen)
	}
}

// Unnamed lists up to most of the content that no image names, sorted.
func (i *Import) Unnamed(most int) []digest.Digest {
	var list []digest.Digest
	for d, e := range i.content {
		if !e.named {
			list = append(list, d)
		}
	}
	slices.Sort(list)
	return list[:min(most, len(list))]
}

// Imported is what an import has made visible.
type Imported struct {
	Images []ImportedImage `json:"images"`
	// Blobs were new, manifests among them, of so many Bytes; BlobsThere were there
	// already, of BytesThere.
	Blobs      int   `json:"blobs"`
	Bytes      int64 `json:"bytes"`
	BlobsThere int   `json:"blobsThere"`
	BytesThere int64 `json:"bytesThere"`
}

// Finish makes all of it visible. Before that it is synced. When it returns nil that
// outlives a crash; with an error nothing is visible.
func (i *Import) Finish() (*Imported, error) {
	c := i.cache
	done := &Imported{Images: i.images}
	blobs := index.Change{Blobs: map[digest.Digest]index.Blob{}}
	var fresh []digest.Digest
	for d, e := range i.content {
		if e.fresh {
			fresh = append(fresh, d)
			done.Blobs++
			done.Bytes += e.size
			continue
		}
		if !c.holds(d) {
			return nil, fmt.Errorf("what was stored of %s was damaged or removed meanwhile: run the import again", d)
		}
		done.BlobsThere++
		done.BytesThere += e.size
		if _, recorded := c.index.Blob(d); recorded {
			c.uses.note(d, false)
		} else if b, ok := c.found(d); ok { // an earlier import could not write that
			blobs.Blobs[d] = b
		}
	}
	slices.Sort(fresh)
	var most int64
	err := c.store.Place(fresh, func(d digest.Digest, change func() error) error {
		c.claim(d)
		defer c.unclaim(d)
		most = max(most, i.content[d].size)
		return change()
	})
	if err != nil {
		return nil, i.failed(err, most)
	}
	for _, d := range fresh {
		stamp, err := c.store.Stamp(d)
		if err != nil {
			return nil, i.failed(err, 0)
		}
		now := time.Now()
		blobs.Blobs[d] = index.Blob{Stamp: stamp, Verified: now, Used: now, Uses: 1}
		c.unfit.drop(string(d))
		c.lost.drop(string(d))
	}
	changes := []index.Change{blobs}
	for _, change := range i.changes {
		changes = append(changes, *change)
	}
	changes = append(changes, i.tags...)
	changes = slices.DeleteFunc(changes, func(c index.Change) bool {
		return c.Tag == "" && len(c.Links)+len(c.Blobs)+len(c.Referrers) == 0
	})
	if len(changes) > 0 {
		if err := c.records.PutAll(changes...); err != nil {
			return nil, i.failed(err, 0)
		}
	}
	c.mu.Lock()
	i.expected = 0 // it is counted as stored from now on
	for _, e := range i.content {
		e.fresh = false
	}
	c.mu.Unlock()
	i.tell(changes)
	return done, nil
}

// tell forgets what was remembered of upstreams that had not what is here now.
func (i *Import) tell(changes []index.Change) {
	c := i.cache
	for _, change := range changes {
		t := oci.Target{Upstream: change.Upstream, Repository: change.Repository, Tag: change.Tag}
		if change.Tag != "" {
			c.paused.drop(tagKey(t))
		}
	}
	c.negative.clear()
}

// incoming gives what stands against the limit of what is being imported: the bytes
// below ingest/ that are of it, and those that are still to come.
func (c *Cache) incoming(list []store.Unfinished) (here, coming int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.importing == nil {
		return 0, 0
	}
	for _, u := range list {
		if u.Incoming && (u.Digest == "" || c.imports(u.Digest)) {
			here += u.Bytes
		}
	}
	return here, max(0, c.importing.expected-here)
}

// imports tells whether an import holds d. c.mu is held.
func (c *Cache) imports(d digest.Digest) bool {
	return c.importing != nil && (c.importing.content[d] != nil || c.importing.due[d])
}

// heldByImport gives what the running import holds.
func (c *Cache) heldByImport() map[digest.Digest]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.importing == nil {
		return nil
	}
	held := make(map[digest.Digest]bool, len(c.importing.content)+len(c.importing.due))
	for d := range c.importing.content {
		held[d] = true
	}
	maps.Copy(held, c.importing.due)
	return held
}
