package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"
)

// maxVolumes is how many volumes a bundle may have: their numbers have three digits.
const maxVolumes = 999

// fileMode is the mode of the files of a bundle. They may hold private images, so that
// only their owner can read them.
const fileMode fs.FileMode = 0o600

// tarDraft is a tar that is being written, in one file or in volumes.
type tarDraft struct {
	path   string
	volume int64 // zero is one file

	file *os.File // nil before the first byte
	at   int64    // in the tar
	// sum is over the bytes of file, where it was begun by this run; sums are those of
	// the volumes before, empty where it was not.
	sum  hash.Hash
	sums map[int]string
	// rest verifies the file of the bundle in the middle of which an earlier run ended.
	rest *rest
}

// rest is what is still to come of a File.
type rest struct {
	hash digest.Verifier
	file File
}

func newTarDraft(path string, volume int64) (*tarDraft, error) {
	t := &tarDraft{path: path, volume: volume, sums: map[int]string{}}
	if _, err := os.Stat(t.name(0)); err == nil {
		return nil, exists(t.name(0))
	}
	return t, nil
}

// name gives the name of a volume, counted from 0.
func (t *tarDraft) name(n int) string {
	if t.volume == 0 {
		return t.path
	}
	return fmt.Sprintf("%s.%03d", t.path, n+1)
}

// there gives the names of what is there, and how many bytes that is. Volumes that got
// their names as an earlier run was killed are given back the other ones.
func (t *tarDraft) there() (names []string, size int64, err error) {
	for n := 0; n < maxVolumes; n++ {
		partial := t.name(n) + partialSuffix
		st, err := os.Stat(partial)
		if errors.Is(err, fs.ErrNotExist) && n > 0 {
			if err = os.Rename(t.name(n), partial); err == nil {
				st, err = os.Stat(partial)
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return nil, 0, err
		}
		if t.volume > 0 && st.Size() > t.volume {
			break // of volumes of another size
		}
		names, size = append(names, partial), size+st.Size()
		if st.Size() != t.volume {
			break
		}
	}
	return names, size, nil
}

// drafted reads files as one.
func drafted(names []string) *volumeReader {
	r := &volumeReader{}
	for _, name := range names {
		r.left = append(r.left, archiveVolume{path: name})
	}
	return r
}

func (t *tarDraft) contents() *Contents {
	names, _, err := t.there()
	if err != nil {
		return nil
	}
	r := drafted(names)
	defer r.Close()
	c, err := readContents(r)
	if err != nil {
		return nil
	}
	return c
}

func (t *tarDraft) clear() error {
	return t.cut(0)
}

// cut takes away what is there after a place.
func (t *tarDraft) cut(at int64) error {
	names, _, err := t.there()
	if err != nil {
		return err
	}
	for n, name := range names {
		keep := at
		if t.volume > 0 {
			keep = min(at-int64(n)*t.volume, t.volume)
		}
		if keep > 0 {
			err = os.Truncate(name, keep)
		} else {
			err = os.Remove(name)
		}
		if err != nil {
			return err
		}
	}
	t.at = at
	for n := len(names); t.volume > 0 && n < maxVolumes && os.Remove(t.name(n)+partialSuffix) == nil; n++ {
	}
	return nil
}

func (t *tarDraft) check(ctx context.Context, f *Files) (int64, error) {
	names, _, err := t.there()
	if err != nil {
		return 0, err
	}
	r := drafted(names)
	defer r.Close()
	at, err := t.compare(ctx, r, f)
	if err != nil {
		return 0, err
	}
	return at, t.cut(at)
}

// compare gives how many of the bytes of r are as they should be. An error of r ends
// what is taken of it, as its end does.
func (t *tarDraft) compare(ctx context.Context, r io.Reader, f *Files) (int64, error) {
	buffer := make([]byte, bufferSize)
	for _, file := range f.List {
		header, err := file.header()
		if err != nil {
			return 0, err
		}
		got := make([]byte, len(header))
		if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, header) {
			return file.Start, nil
		}
		hash := file.Digest.Verifier()
		n, err := io.CopyBuffer(struct{ io.Writer }{hash}, struct{ io.Reader }{io.LimitReader(&stopped{ctx, r}, file.Size)}, buffer)
		switch {
		case ctx.Err() != nil:
			return 0, context.Cause(ctx)
		case err != nil:
			return file.Start, nil
		case n < file.Size:
			t.rest = &rest{hash: hash, file: file}
			return file.Begin + n, nil
		case !hash.Verified():
			return file.Start, nil
		}
		zeros := make([]byte, file.End-file.Begin-file.Size)
		got = make([]byte, len(zeros))
		if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, zeros) {
			return file.Begin + file.Size, nil
		}
	}
	return f.Size - endOfTar, nil
}

// stopped reads until ctx ends.
type stopped struct {
	ctx context.Context
	r   io.Reader
}

func (s *stopped) Read(b []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.r.Read(b)
}

func (t *tarDraft) Write(b []byte) (int, error) {
	written := 0
	for len(b) > 0 {
		if err := t.open(); err != nil {
			return written, err
		}
		some := b
		if t.volume > 0 {
			some = b[:min(int64(len(b)), t.volume-t.at%t.volume)]
		}
		n, err := t.file.Write(some)
		if t.sum != nil {
			_, _ = t.sum.Write(some[:n]) // a hash takes all
		}
		if wrong := t.verifyRest(some[:n]); wrong != nil {
			return written, wrong
		}
		written, t.at, b = written+n, t.at+int64(n), b[n:]
		if err != nil {
			return written, err
		}
		if t.volume > 0 && t.at%t.volume == 0 {
			if err := t.closeFile(); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}

// verifyRest looks at bytes that complete what an earlier run has begun.
func (t *tarDraft) verifyRest(b []byte) error {
	if t.rest == nil {
		return nil
	}
	end := t.rest.file.Begin + t.rest.file.Size
	_, _ = t.rest.hash.Write(b[:min(int64(len(b)), end-t.at)]) // a hash takes all
	if t.at+int64(len(b)) < end {
		return nil
	}
	r := t.rest
	t.rest = nil
	if r.hash.Verified() {
		return nil
	}
	err := fmt.Errorf("what an earlier run has written of %s is damaged, and has been taken away: run it again, and it goes on before that", r.file.Name)
	return errors.Join(err, t.closeFile(), t.cut(r.file.Start))
}

// open opens the file that the next byte belongs to.
func (t *tarDraft) open() error {
	if t.file != nil {
		return nil
	}
	n, in := 0, t.at
	if t.volume > 0 {
		n, in = int(t.at/t.volume), t.at%t.volume
	}
	if n >= maxVolumes {
		return fmt.Errorf("the bundle has more than %d volumes of %d bytes: make them larger", maxVolumes, t.volume)
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_APPEND
	if in == 0 {
		flags |= os.O_TRUNC
	}
	file, err := openPrivate(t.name(n)+partialSuffix, flags)
	if err != nil {
		return err
	}
	t.file, t.sum = file, nil
	if t.volume > 0 && in == 0 {
		t.sum = sha256.New()
	}
	return nil
}

// closeFile closes the file that is being written, once it outlives a power cut.
func (t *tarDraft) closeFile() error {
	if t.file == nil {
		return nil
	}
	err := errors.Join(t.file.Sync(), t.file.Close())
	if t.sum != nil {
		t.sums[int((t.at-1)/t.volume)] = hex.EncodeToString(t.sum.Sum(nil))
	}
	t.file, t.sum = nil, nil
	return err
}

// Close keeps what is written.
func (t *tarDraft) Close() error { return t.closeFile() }

func (t *tarDraft) commit() (Saved, error) {
	if err := t.closeFile(); err != nil {
		return Saved{}, err
	}
	names, size, err := t.there()
	if err != nil {
		return Saved{}, err
	}
	s := Saved{Size: size}
	var sums strings.Builder
	for n := range names {
		makePrivate(names[n], fileMode)
		s.Paths = append(s.Paths, t.name(n))
		if t.volume > 0 {
			if t.sums[n] == "" {
				if t.sums[n], err = sumOf(names[n]); err != nil {
					return Saved{}, err
				}
			}
			fmt.Fprintf(&sums, "%s  %s\n", t.sums[n], filepath.Base(t.name(n)))
		}
	}
	if t.volume > 0 {
		if err := replaceFile(t.path+sumsSuffix, sums.String()); err != nil {
			return Saved{}, err
		}
		s.Paths = append(s.Paths, t.path+sumsSuffix)
	}
	// The first one comes last: where it is there all are.
	for n := len(names) - 1; n >= 0; n-- {
		if err := os.Rename(names[n], t.name(n)); err != nil {
			return Saved{}, err
		}
	}
	return s, syncFile(filepath.Dir(t.path))
}

// sumOf gives the SHA-256 sum of a file, in hexadecimal.
func sumOf(name string) (string, error) {
	f, err := os.Open(name) // #nosec G304 -- it was just written
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// openPrivate opens a file of a bundle that is being written. It follows no symbolic
// link.
func openPrivate(name string, flags int) (*os.File, error) {
	makePrivate(name, fileMode)
	return os.OpenFile(name, flags|syscall.O_NOFOLLOW, fileMode) // #nosec G304 -- the operator names it
}

// makePrivate takes a file or directory from other users, to whom an earlier version
// left it. A file system without modes, as on a memory stick, refuses that; the bundle
// is written all the same.
func makePrivate(name string, mode fs.FileMode) {
	if st, err := os.Lstat(name); err == nil && (st.Mode().IsRegular() || st.IsDir()) && st.Mode().Perm() != mode {
		_ = os.Chmod(name, mode)
	}
}

// replaceFile writes a small file, all or nothing.
func replaceFile(name, content string) error {
	f, err := openPrivate(name+partialSuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	_, err = io.WriteString(f, content)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(name+partialSuffix, name)
}

// syncFile makes what is written of a file or directory outlive a power cut.
func syncFile(name string) error {
	f, err := os.Open(name) // #nosec G304 -- the operator names it
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
