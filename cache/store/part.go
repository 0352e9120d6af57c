package store

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/oci"
)

// Part is content on its way: a file that is written in any order and gets its
// final name by Commit. Beside it stands a note of which bytes are there, so
// that another process can go on where this one ended. A part that is whole has
// another extension, and needs no note. WriteAt, ReadAt and Open are safe for
// concurrent use; the others are for the part's one owner, who may call MarkWhole
// while Save runs.
type Part struct {
	store  *Store
	digest digest.Digest
	file   File
	note   string
	// unsynced is why a sync failed: the kernel may have dropped what was
	// written, and a later sync would not say so again.
	unsynced error
	// name is the file's, which changes; base is that without its extension.
	name, base string
	// is tells the file from others of its names, as long as it is open; closed is set
	// before it is not.
	is     fs.FileInfo
	closed atomic.Bool
}

// partNote is what is kept about a part across a restart.
type partNote struct {
	// Size is the size of the whole content, or -1 where it is not known.
	Size  int64      `json:"size"`
	Spans []oci.Span `json:"spans"`
}

// What follows a digest in the names of its part and of the note beside it.
const (
	partSuffix  = ".part"
	wholeSuffix = ".whole"
	noteSuffix  = ".json"
	// sourceMark stands between the digest and what tells sources apart.
	sourceMark = "@"
)

// maxNote bounds a note: it is read back from a disk that others may write to.
const maxNote = 1 << 20

// Part opens the part of d that comes from the given source, an upstream's name, or
// begins one. Each source has a part of its own, so that what one has sent is neither
// shown to the readers of another nor mixed with its bytes. Part returns the bytes
// that an earlier owner noted, and the content's size, -1 if it isn't known: both are
// hints until the digest proves them. A part must have one owner at a time.
func (s *Store) Part(d digest.Digest, source string) (*Part, Spans, int64, error) {
	if err := d.Validate(); err != nil {
		return nil, Spans{}, 0, fmt.Errorf("part of %q: %w", d, err)
	}
	base := s.partBase(d, source)
	p := &Part{store: s, digest: d, base: base, name: base + wholeSuffix, note: base + noteSuffix}
	var err error
	if p.file, err = s.openToWrite(p.name, 0); err == nil {
		if p.is, err = p.file.Stat(); err != nil {
			return nil, Spans{}, 0, errors.Join(fmt.Errorf("part of %s: %w", d, err), p.file.Close())
		}
		var all Spans
		all.Add(0, p.is.Size())
		return p, all, p.is.Size(), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, Spans{}, 0, fmt.Errorf("part of %s: %w", d, err)
	}
	p.name = base + partSuffix
	if p.file, err = s.openToWrite(p.name, os.O_CREATE); err != nil {
		return nil, Spans{}, 0, fmt.Errorf("part of %s: %w", d, err)
	}
	if p.is, err = p.file.Stat(); err != nil {
		return nil, Spans{}, 0, errors.Join(fmt.Errorf("part of %s: %w", d, err), p.file.Close())
	}
	have, size := p.readNote()
	return p, have, size, nil
}

// partBase returns the path of a part without its extension. The empty source stands
// for the parts of older versions, which did not note where they came from.
func (s *Store) partBase(d digest.Digest, source string) string {
	base := filepath.Join(s.dir, ingestDir, d.Algorithm().String()+"-"+d.Encoded())
	if source == "" {
		return base
	}
	sum := sha256.Sum256([]byte(source))
	return base + sourceMark + hex.EncodeToString(sum[:8])
}

// HasPart reports whether there is a part of d from a source.
func (s *Store) HasPart(d digest.Digest, source string) bool {
	return d.Validate() == nil && s.hasPart(filepath.Base(s.partBase(d, source)))
}

// AdoptPart makes the part of d that an older version has left, if there is one, the
// part of a source that has none. Nobody may own either.
func (s *Store) AdoptPart(d digest.Digest, source string) {
	from, to := s.partBase(d, ""), s.partBase(d, source)
	if d.Validate() != nil || s.hasPart(filepath.Base(to)) || !s.hasPart(filepath.Base(from)) {
		return
	}
	// A note without its part says nothing, and a part without its note is fetched anew.
	for _, suffix := range []string{noteSuffix, partSuffix, wholeSuffix} {
		_ = s.files.Rename(from+suffix, to+suffix)
	}
}

// readNote gives what the note says, as far as the file can hold it. A note
// that is missing or makes no sense says nothing.
func (p *Part) readNote() (have Spans, size int64) {
	f, err := p.store.open(p.note)
	if err != nil {
		return Spans{}, -1
	}
	defer f.Close()
	var n partNote
	if json.NewDecoder(io.LimitReader(f, maxNote)).Decode(&n) != nil || n.Size < -1 {
		return Spans{}, -1
	}
	st, err := p.file.Stat()
	if err != nil {
		return Spans{}, -1
	}
	end := st.Size()
	if n.Size >= 0 {
		end = min(end, n.Size)
	}
	for _, r := range n.Spans {
		if r.From >= 0 && r.From < r.To && r.To <= end {
			have.Add(r.From, r.To)
		}
	}
	return have, n.Size
}

// WriteAt writes b at offset off.
func (p *Part) WriteAt(b []byte, off int64) (int, error) { return p.file.WriteAt(b, off) }

// ReadAt reads what was written at offset off.
func (p *Part) ReadAt(b []byte, off int64) (int, error) { return p.file.ReadAt(b, off) }

// Reader is an open file that is read here and there.
type Reader interface {
	io.ReaderAt
	io.Closer
}

// Open gives the part's file once more, or after Commit the content of its digest. It
// works before, during and after Commit; the caller closes it. The error is
// fs.ErrNotExist where the content has been removed since.
func (p *Part) Open() (Reader, error) {
	// MarkWhole and Commit may be moving it, in this order.
	for _, name := range []string{p.base + partSuffix, p.base + wholeSuffix} {
		f, err := openRegular(name, os.O_RDONLY, 0) // what is not the part is left to its owner
		if err == nil && p.isMine(f) {
			return newContent(f), nil
		}
		if err == nil {
			_ = f.Close() // nothing was written to it
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read part of %s: %w", p.digest, err)
		}
	}
	f, err := p.store.open(p.store.path(p.digest))
	if err != nil {
		return nil, fmt.Errorf("read part of %s: %w", p.digest, err)
	}
	return newContent(f), nil
}

// isMine tells whether f, which was opened by one of the part's names, is its file. Where
// the content has been removed, another may be fetching it anew under the same names.
func (p *Part) isMine(f *os.File) bool {
	is, err := f.Stat()
	// Once it is closed, its inode may be another file's.
	return err == nil && os.SameFile(is, p.is) && !p.closed.Load()
}

// Save syncs what was written and notes that have is there, of size bytes in
// all (-1: not known). The bytes reach the disk before the note does.
func (p *Part) Save(have Spans, size int64) error {
	if p.unsynced == nil {
		p.unsynced = p.file.Sync()
	}
	if p.unsynced != nil {
		return fmt.Errorf("save part of %s: %w", p.digest, p.unsynced)
	}
	b, err := json.Marshal(partNote{Size: size, Spans: have.Runs()})
	if err != nil {
		return err
	}
	if err := p.store.writeSynced(p.note, b); err != nil {
		return fmt.Errorf("save part of %s: %w", p.digest, err)
	}
	return nil
}

// MarkWhole notes that all is there, of which the caller has verified the first size
// bytes to be all and the digest's, and waits for no disk: should the process be
// killed before Commit has ended, the next one finds it so. A power cut may take the
// bytes and not the mark, which is a hint as notes are.
func (p *Part) MarkWhole(size int64) error {
	err := p.cut(size)
	if whole := p.base + wholeSuffix; err == nil && p.name != whole {
		if err = p.store.files.Rename(p.name, whole); err == nil {
			p.name = whole
		}
	}
	if err != nil {
		return fmt.Errorf("mark the part of %s as whole: %w", p.digest, err)
	}
	return nil
}

// cut drops what an earlier owner may have left beyond size.
func (p *Part) cut(size int64) error {
	if st, err := p.file.Stat(); err == nil && st.Size() == size {
		return nil
	}
	return p.file.Truncate(size)
}

// Commit gives the part its final name. The caller has verified that its first
// size bytes are all and are the digest's. When it returns nil the content
// outlives a power cut.
func (p *Part) Commit(size int64) error {
	if p.unsynced != nil {
		return fmt.Errorf("commit %s: %w", p.digest, p.unsynced)
	}
	if err := p.cut(size); err != nil {
		return fmt.Errorf("commit %s: %w", p.digest, err)
	}
	if err := p.store.commit(p.file, p.name, p.digest); err != nil {
		return fmt.Errorf("commit %s: %w", p.digest, err)
	}
	_ = p.store.files.Remove(p.note) // a note without a part says nothing
	return nil
}

// Reset forgets all that was written: it was not the digest's.
func (p *Part) Reset() error {
	_ = p.store.files.Remove(p.note)
	if err := p.file.Truncate(0); err != nil {
		return fmt.Errorf("reset part of %s: %w", p.digest, err)
	}
	if part := p.base + partSuffix; p.name != part {
		if err := p.store.files.Rename(p.name, part); err != nil {
			return fmt.Errorf("reset part of %s: %w", p.digest, err)
		}
		p.name = part
	}
	return nil
}

// Discard drops the part for good. What Commit has given its final name stays.
func (p *Part) Discard() error {
	p.closed.Store(true)
	_ = p.store.files.Remove(p.note)
	err := p.store.files.Remove(p.name)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(p.file.Close(), err)
}

// Close leaves the part as it is, for a later owner or, after Commit, for good.
func (p *Part) Close() error {
	p.closed.Store(true)
	return p.file.Close()
}
