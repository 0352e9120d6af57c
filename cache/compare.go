package cache

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/fill"
	"github.com/entrepot-dev/entrepot/cache/store"
)

// comparing is the part of a fill of content that is stored already: an upstream has
// to send the bytes all the same, to prove that it has them. Nothing is written; what
// would be is compared with what is stored, so that readers of the fill read the
// stored file as far as the upstream has come.
type comparing struct {
	cache  *Cache
	digest digest.Digest
	file   *os.File
	size   int64
}

// compareWith returns the part that compares with the stored content of d; nil if d
// isn't stored any more. The fill that uses it keeps d from being evicted.
func (c *Cache) compareWith(d digest.Digest) (fill.Part, error) {
	file, stamp, err := c.openStored(c.ctx, d)
	if file == nil || err != nil {
		return nil, err
	}
	return &comparing{cache: c, digest: d, file: file, size: stamp.Size}, nil
}

// WriteAt returns errMismatch if b isn't what is stored at off.
func (p *comparing) WriteAt(b []byte, off int64) (int, error) {
	buf := fill.Buffers.Get().(*[fill.ReadSize]byte)
	defer fill.Buffers.Put(buf)
	for done := 0; done < len(b); {
		n, err := p.file.ReadAt(buf[:min(len(b)-done, fill.ReadSize)], off+int64(done))
		switch {
		case n == 0 && err != nil && err != io.EOF:
			return done, err
		case n == 0, !bytes.Equal(buf[:n], b[done:done+n]):
			p.doubt()
			return done, fmt.Errorf("%s: %w: they differ from what is stored from byte %d on", p.digest, fill.ErrMismatch, off+int64(done))
		}
		done += n
	}
	return len(b), nil
}

// doubtAgain is how long stored content that was found right isn't verified anew because
// an upstream sends something else: it could keep the disk busy by that.
const doubtAgain = 10 * time.Minute

// doubt verifies what is stored, behind: that may be damaged, rather than what was sent.
func (p *comparing) doubt() {
	if _, _, known := p.cache.memory.blob(p.digest); known != nil && time.Since(known.at) < doubtAgain {
		return
	}
	p.cache.verifying(p.digest, foundOnServing)
}

func (p *comparing) ReadAt(b []byte, off int64) (int, error) { return p.file.ReadAt(b, off) }

// Open opens what is stored once more.
func (p *comparing) Open() (store.Reader, error) {
	file, _, err := p.cache.openStored(p.cache.ctx, p.digest)
	if file == nil && err == nil {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	return file, nil
}

// Commit has nothing to keep.
func (p *comparing) Commit(size int64) error {
	if size != p.size {
		return errors.New("the stored file has another size than its content")
	}
	return nil
}

func (p *comparing) Flush(int64, int64)            {}
func (p *comparing) Save(store.Spans, int64) error { return nil }
func (p *comparing) MarkWhole(int64) error         { return nil }
func (p *comparing) Reset() error                  { return nil }
func (p *comparing) Discard() error                { return p.file.Close() }
func (p *comparing) Close() error                  { return p.file.Close() }
