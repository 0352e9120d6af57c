package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/oci"
)

// Part is content on its way: a file that is written in any order and gets its
// final name by Commit. Beside it stands a note of which bytes are there, so
// that another process can go on where this one ended. WriteAt, ReadAt and Open
// are safe for concurrent use; the others are for the part's one owner.
type Part struct {
	store  *Store
	digest digest.Digest
	file   *os.File
	note   string

	mu   sync.Mutex
	path string // changes once, on Commit
}

// partNote is what is kept about a part across a restart.
type partNote struct {
	// Size is the size of the whole content, or -1 where it is not known.
	Size  int64      `json:"size"`
	Spans []oci.Span `json:"spans"`
}

// maxNote bounds a note: it is read back from a disk that others may write to.
const maxNote = 1 << 20

// Part opens the part of d, or begins one. It gives the bytes that an earlier
// owner noted, and the content's size, -1 where it is not known: both are hints
// until the digest proves them. There must be one owner of a digest's part at a
// time.
func (s *Store) Part(d digest.Digest) (*Part, Spans, int64, error) {
	if err := d.Validate(); err != nil {
		return nil, Spans{}, 0, fmt.Errorf("part of %q: %w", d, err)
	}
	base := filepath.Join(s.dir, ingestDir, d.Algorithm().String()+"-"+d.Encoded())
	f, err := os.OpenFile(base+".part", os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return nil, Spans{}, 0, fmt.Errorf("part of %s: %w", d, err)
	}
	p := &Part{store: s, digest: d, file: f, note: base + ".json", path: f.Name()}
	have, size := p.readNote()
	return p, have, size, nil
}

// readNote gives what the note says, as far as the file can hold it. A note
// that is missing or makes no sense says nothing.
func (p *Part) readNote() (have Spans, size int64) {
	f, err := os.Open(p.note)
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

// Open gives the part's file once more, with an offset of its own. It works
// before and after Commit; the caller closes it.
func (p *Part) Open() (io.ReadSeekCloser, error) {
	for {
		p.mu.Lock()
		path := p.path
		p.mu.Unlock()
		f, err := os.Open(path)
		if err == nil {
			return f, nil
		}
		p.mu.Lock()
		moved := p.path != path
		p.mu.Unlock()
		if !moved || !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read part of %s: %w", p.digest, err)
		}
	}
}

// Save syncs what was written and notes that have is there, of size bytes in
// all (-1: not known). The bytes reach the disk before the note does.
func (p *Part) Save(have Spans, size int64) error {
	if err := p.file.Sync(); err != nil {
		return fmt.Errorf("save part of %s: %w", p.digest, err)
	}
	b, err := json.Marshal(partNote{Size: size, Spans: have.Runs()})
	if err != nil {
		return err
	}
	if err := writeSynced(p.note, b); err != nil {
		return fmt.Errorf("save part of %s: %w", p.digest, err)
	}
	return nil
}

// Commit gives the part its final name. The caller has verified that its first
// size bytes are all and are the digest's. When it returns nil the content
// outlives a power cut.
func (p *Part) Commit(size int64) error {
	if err := p.file.Truncate(size); err != nil {
		return fmt.Errorf("commit %s: %w", p.digest, err)
	}
	if err := p.store.commit(p.file, p.digest); err != nil {
		return fmt.Errorf("commit %s: %w", p.digest, err)
	}
	p.mu.Lock()
	p.path = p.store.path(p.digest)
	p.mu.Unlock()
	_ = os.Remove(p.note) // a note without a part says nothing
	return nil
}

// Reset forgets all that was written: it was not the digest's.
func (p *Part) Reset() error {
	_ = os.Remove(p.note)
	if err := p.file.Truncate(0); err != nil {
		return fmt.Errorf("reset part of %s: %w", p.digest, err)
	}
	return nil
}

// Discard drops the part for good.
func (p *Part) Discard() error {
	_ = os.Remove(p.note)
	p.mu.Lock()
	path := p.path
	p.mu.Unlock()
	return errors.Join(p.file.Close(), os.Remove(path))
}

// Close leaves the part as it is, for a later owner or, after Commit, for good.
func (p *Part) Close() error { return p.file.Close() }
