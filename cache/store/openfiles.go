package store

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/opencontainers/go-digest"
)

// MaxShared is how many files of content stay open for whoever asks next.
const MaxShared = 32

// Content is an open file of content. Its position is nobody's: it is read by
// ReadAt, or by sendfile from a place in it, and so may be shared.
type Content struct {
	file *os.File
	// fd is file's: to ask for it sets the file's mode each time, by two system
	// calls.
	fd     uintptr
	stamp  Stamp
	shelf  *shelf
	digest digest.Digest

	// These are guarded by the shelf's lock. A Content that is not kept is
	// closed with its last user.
	users int
	kept  bool
	used  uint64
}

// ReadAt is that of io.ReaderAt.
func (c *Content) ReadAt(b []byte, at int64) (int, error) { return c.file.ReadAt(b, at) }

// Fd gives the file's descriptor, which is good until Close.
func (c *Content) Fd() uintptr { return c.fd }

// Close gives it back.
func (c *Content) Close() error {
	c.shelf.mu.Lock()
	c.users--
	last := c.users == 0 && !c.kept
	c.shelf.mu.Unlock()
	if !last {
		return nil
	}
	return c.file.Close()
}

// look gives the stamp that the file has now.
func (c *Content) look() (Stamp, error) {
	var st syscall.Stat_t
	if err := syscall.Fstat(int(c.fd), &st); err != nil {
		return Stamp{}, os.NewSyscallError("fstat", err)
	}
	return Stamp{Size: st.Size, Modified: modified(&st), Changed: changed(&st), Inode: uint64(st.Ino)}, nil
}

// shelf holds the files that stay open.
type shelf struct {
	mu    sync.Mutex
	kept  map[digest.Digest]*Content
	drops uint64 // counts what was dropped, see put
	clock uint64
	// seen is the clock at the last sweep.
	seen uint64
}

// take gives a user more to d's file; nil where it is not here.
func (s *shelf) take(d digest.Digest) *Content {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.kept[d]
	if c != nil {
		s.clock++
		c.users++
		c.used = s.clock
	}
	return c
}

// dropped gives what whoever is about to open a file gives to put.
func (s *shelf) dropped() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drops
}

// put keeps c, which has just been opened, unless something was dropped
// meanwhile, which may have been just this.
func (s *shelf) put(c *Content, drops uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if drops != s.drops || s.kept[c.digest] != nil {
		return
	}
	if len(s.kept) >= MaxShared {
		var oldest *Content
		for _, k := range s.kept {
			if oldest == nil || k.used < oldest.used {
				oldest = k
			}
		}
		s.letGo(oldest)
	}
	if s.kept == nil {
		s.kept = map[digest.Digest]*Content{}
	}
	s.clock++
	c.kept, c.used = true, s.clock
	s.kept[c.digest] = c
}

// drop keeps d's file no longer.
func (s *shelf) drop(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drops++
	if c := s.kept[d]; c != nil {
		s.letGo(c)
	}
}

// dropAll keeps no file any longer.
func (s *shelf) dropAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drops++
	for _, c := range s.kept {
		s.letGo(c)
	}
}

// sweep keeps no longer what nobody has used since the last sweep, and returns how many
// files it still keeps.
func (s *shelf) sweep() (left int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.kept {
		if c.users == 0 && c.used <= s.seen {
			s.letGo(c)
		}
	}
	s.seen = s.clock
	return len(s.kept)
}

// letGo is for who holds the lock. To close what was only read waits for
// nothing.
func (s *shelf) letGo(c *Content) {
	delete(s.kept, c.digest)
	c.kept = false
	if c.users == 0 {
		_ = c.file.Close() // it was only read
	}
}

// Share is Get for whoever does not use the file's position: the file may be open
// already. The stamp is the one that it has now.
func (s *Store) Share(d digest.Digest) (*Content, Stamp, error) {
	if c, stamp := s.ShareOpen(d); c != nil {
		return c, stamp, nil
	}
	drops := s.shelf.dropped()
	f, err := s.open(s.path(d))
	if err != nil {
		return nil, Stamp{}, err
	}
	c := newContent(f)
	c.digest, c.shelf = d, &s.shelf
	if c.stamp, err = c.look(); err != nil {
		return nil, Stamp{}, errors.Join(err, f.Close())
	}
	s.shelf.put(c, drops)
	return c, c.stamp, nil
}

// ShareOpen is Share where d's file is open already; it gives nil where that is not
// so, or where the file is not as it was. Nothing of d is kept.
func (s *Store) ShareOpen(d digest.Digest) (*Content, Stamp) {
	c := s.shelf.take(d)
	if c == nil {
		return nil, Stamp{}
	}
	// A file that was removed, replaced or touched has another stamp.
	if now, err := c.look(); err != nil || now != c.stamp {
		s.shelf.drop(d)
		_ = c.Close() // it was only read
		return nil, Stamp{}
	}
	return c, c.stamp
}

// newContent gives f, with one user, as a Content that nobody shares.
func newContent(f *os.File) *Content { return &Content{file: f, fd: f.Fd(), shelf: &shelf{}, users: 1} }

// CloseIdle closes the files that are open only for whoever asks next.
func (s *Store) CloseIdle() { s.shelf.dropAll() }

// CloseUnused closes those of them that nobody has asked for since it was last
// called, and returns how many are left.
func (s *Store) CloseUnused() (left int) { return s.shelf.sweep() }

var _ io.ReaderAt = (*Content)(nil)
