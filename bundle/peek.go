package bundle

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// maxContents bounds the contents document, in bytes: room for a million blobs.
const maxContents = 256 << 20

// ErrNoBundle says that something is no bundle of this program.
var ErrNoBundle = errors.New("it is no bundle that entrepot export has written")

// Peek reads the contents of the bundle at path, a tar, its first volume, or a
// directory, and nothing else of it. It verifies the digest over the contents.
func Peek(path string) (*Contents, error) {
	c, err := peek(path)
	if err != nil {
		return nil, fmt.Errorf("read the contents of %s: %w", path, err)
	}
	return c, nil
}

func peek(path string) (*Contents, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		path += ".001"
		if first, err := os.Stat(path); err == nil {
			st = first
		}
	}
	if st == nil {
		return nil, err
	}
	name := path
	if st.IsDir() {
		name = filepath.Join(path, ContentsName)
	}
	f, err := os.Open(name) // #nosec G304 -- the operator names it
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoBundle
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st.IsDir() {
		return decodeContents(f)
	}
	return readContents(&volumes{names: following(path)})
}

// following gives the names of a volume and of those after it.
func following(first string) []string {
	names := []string{first}
	base, ok := firstVolume(first)
	for n := 2; ok && n <= maxVolumes; n++ {
		name := fmt.Sprintf("%s.%03d", base, n)
		if _, err := os.Stat(name); err != nil {
			break
		}
		names = append(names, name)
	}
	return names
}

func firstVolume(name string) (base string, ok bool) {
	ext := filepath.Ext(name)
	return name[:len(name)-len(ext)], ext == ".001"
}

// readContents reads the contents of a tar, as far as to them.
func readContents(r io.Reader) (*Contents, error) {
	tr := tar.NewReader(r)
	for range 2 {
		h, err := tr.Next()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNoBundle, err)
		}
		if h.Name == ContentsName {
			return decodeContents(tr)
		}
	}
	return nil, ErrNoBundle
}

func decodeContents(r io.Reader) (*Contents, error) {
	c := &Contents{}
	if err := json.NewDecoder(io.LimitReader(r, maxContents)).Decode(c); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoBundle, err)
	}
	if c.Version < 1 || c.Version > Version {
		return nil, fmt.Errorf("it has version %d, and this entrepot knows %d: use a newer one", c.Version, Version)
	}
	if sum, err := c.Sum(); err != nil || sum != c.Digest {
		return nil, errors.Join(fmt.Errorf("its contents are not those of which it has the digest: it is damaged"), err)
	}
	return c, nil
}
