package bundle

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// ErrNoBundle says that something is no bundle of this program.
var ErrNoBundle = errors.New("it is no bundle that entrepot export has written")

// Peek reads the contents of the bundle at path, a tar, its volumes, or a directory, and
// nothing else of it. It verifies the digest over the contents. The error is
// fs.ErrNotExist where there is nothing.
func Peek(path string) (*Contents, error) {
	found, err := Archives([]string{path})
	if err != nil {
		return nil, fmt.Errorf("read the contents of %s: %w", path, err)
	}
	r, err := found[0].Open()
	if err != nil {
		return nil, fmt.Errorf("read the contents of %s: %w", path, err)
	}
	defer r.Close()
	c, err := readContents(r)
	if err != nil {
		return nil, fmt.Errorf("read the contents of %s: %w", path, err)
	}
	return c, nil
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
	if err := json.NewDecoder(io.LimitReader(r, maxDocument)).Decode(c); err != nil {
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
