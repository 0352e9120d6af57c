package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"strings"

	"github.com/opencontainers/go-digest"
)

// partialSuffix is that of the names of what is not complete.
const partialSuffix = ".partial"

// MinVolume is the smallest size of a volume, in bytes.
const MinVolume = 1 << 20

// Save says where a bundle is to be written.
type Save struct {
	// Path is the file, or, with a separator at its end or where it is one already, the
	// directory. It must not be there, or be an empty directory.
	Path string
	// Volume, where it is not zero, splits the tar into files of that many bytes, named
	// "Path.001", and so on, with their SHA-256 sums in "Path.sha256".
	Volume int64
	// Fetch gives the bytes of the tar of these contents from a place on. Save closes
	// it.
	Fetch func(ctx context.Context, c *Contents, from int64) (io.ReadCloser, error)
	// Told, where it is not nil, is called now and then with how much of the tar is
	// there; it is called by one goroutine.
	Told func(f *Files, written int64)
}

// Saved says what was written.
type Saved struct {
	// Paths are the files, or the directory.
	Paths []string `json:"paths"`
	// Digest is Contents.Digest.
	Digest digest.Digest `json:"digest"`
	// Size is that of the tar in bytes; of a directory that of its files.
	Size int64 `json:"size"`
	// Resumed is how much of it an earlier run had written.
	Resumed int64 `json:"resumed,omitempty"`
}

// ErrExists says that there is something already where a bundle is to be written.
var ErrExists = errors.New("it is there already")

// draft is a bundle that is being written under a name of its own.
type draft interface {
	// contents gives what is in it; nil where there is nothing or that can not be told.
	contents() *Contents
	// check gives how many bytes of the tar of f are there, and takes away what comes
	// after them. What is written next are the bytes from there on.
	check(ctx context.Context, f *Files) (int64, error)
	// clear takes away all that is there.
	clear() error
	io.Writer
	// commit gives it its name.
	commit() (Saved, error)
	// Close lets go of it; what is written stays.
	Close() error
}

// Write writes the bundle of a plan. What is not complete has the extension .partial, and
// the same call goes on with it, once the bytes that are there have been compared with
// what they should be. Where the upstreams have confirmed tags in between, the bundle
// keeps the earlier times.
func (s Save) Write(ctx context.Context, plan *Plan) (_ Saved, err error) {
	unlock, err := lock(strings.TrimRight(s.Path, string(os.PathSeparator)))
	if err != nil {
		return Saved{}, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	d, err := s.draft()
	if err != nil {
		return Saved{}, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	c := plan.Contents
	if before := d.contents(); before == nil || !before.matches(c) {
		if err := d.clear(); err != nil {
			return Saved{}, err
		}
	} else {
		c = before
	}
	f, err := Lay(c, plan.Docker)
	if err != nil {
		return Saved{}, err
	}
	from, err := d.check(ctx, f)
	if err != nil {
		return Saved{}, err
	}
	body, err := s.Fetch(ctx, c, from)
	if err != nil {
		return Saved{}, err
	}
	defer body.Close()
	if err := s.copy(ctx, d, body, f, from); err != nil {
		return Saved{}, err
	}
	saved, err := d.commit()
	saved.Digest, saved.Resumed = c.Digest, from
	return saved, err
}

// copy writes body, which has the bytes of f from a place on.
func (s Save) copy(ctx context.Context, w io.Writer, body io.Reader, f *Files, at int64) error {
	buffer := make([]byte, bufferSize)
	for {
		if s.Told != nil {
			s.Told(f, at)
		}
		n, err := body.Read(buffer)
		if at += int64(n); at > f.Size {
			return fmt.Errorf("the bundle has more than its %d bytes", f.Size)
		}
		if _, err := w.Write(buffer[:n]); err != nil {
			return err
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == io.EOF && at < f.Size:
			return fmt.Errorf("the bundle ended after %d of %d bytes: run it again, and it goes on", at, f.Size)
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("read the bundle after %d of %d bytes: %w", at, f.Size, err)
		}
	}
}

// matches tells whether both are the same but for the times at which tags were
// confirmed, and the one from which on blobs were stored, which may have been given as a
// duration.
func (c *Contents) matches(other *Contents) bool {
	if c.Version != other.Version || len(c.Images) != len(other.Images) || !reflect.DeepEqual(c.Contents, other.Contents) {
		return false
	}
	if (c.Since == nil) != (other.Since == nil) || c.Since != nil && c.Since.Digest != other.Since.Digest {
		return false
	}
	for i, image := range c.Images {
		image.Fetched = other.Images[i].Fetched
		if image != other.Images[i] {
			return false
		}
	}
	return true
}

// draft gives what is written to.
func (s Save) draft() (draft, error) {
	if s.Volume != 0 && s.Volume < MinVolume {
		return nil, fmt.Errorf("a volume has %d bytes at least", MinVolume)
	}
	st, err := os.Stat(s.Path)
	isDir := err == nil && st.IsDir() || strings.HasSuffix(s.Path, string(os.PathSeparator))
	switch {
	case isDir && s.Volume > 0:
		return nil, fmt.Errorf("%s is a directory, and only a tar can be split into volumes", s.Path)
	case isDir:
		return newTreeDraft(s.Path)
	case err == nil:
		return nil, exists(s.Path)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	return newTarDraft(s.Path, s.Volume)
}

func exists(path string) error {
	return fmt.Errorf("%s: %w: remove it, or name another", path, ErrExists)
}
