package bundle

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

const (
	// sumsSuffix follows a bundle's name in that of the file with its checksums, as
	// sha256sum writes them.
	sumsSuffix = ".sha256"
	// maxSums bounds that file, in bytes.
	maxSums = 1 << 20
)

// Archive is an archive on a disk: a file, the volumes of one, or a directory.
type Archive struct {
	// Name is the path as it was given.
	Name string
	// Size is in bytes, as near as it can be told.
	Size    int64
	volumes []archiveVolume
	dir     bool
}

// archiveVolume is a file of an archive.
type archiveVolume struct {
	path string
	sum  string // SHA-256 in hex; empty where no one says it
}

// volumeName is that of a volume: bundle.tar.001. There are maxVolumes at most.
var volumeName = regexp.MustCompile(`^(.+)\.([0-9]{3})$`)

// Archives finds the archives that paths name. Volumes may be given all, or any one of
// them, or by the name that they have without their number; others are then found
// beside it. The error is a sentence for who gave the paths.
func Archives(paths []string) ([]*Archive, error) {
	var list []*Archive
	given := map[string][]string{} // volumes, by their archive's name
	for _, p := range paths {
		if m := volumeName.FindStringSubmatch(filepath.Base(p)); m != nil {
			given[m[1]] = append(given[m[1]], p)
			if len(given[m[1]]) > 1 {
				continue
			}
		}
		list = append(list, &Archive{Name: p})
	}
	for _, s := range list {
		var volumes []string
		if m := volumeName.FindStringSubmatch(filepath.Base(s.Name)); m != nil {
			if volumes = given[m[1]]; len(volumes) == 1 {
				var err error
				if volumes, err = others(s.Name); err != nil {
					return nil, err
				}
			}
		}
		if err := s.find(volumes); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// find finds the files of s, which are volumes where those are given.
func (s *Archive) find(volumes []string) error {
	base := s.Name
	if volumes != nil {
		m := volumeName.FindStringSubmatch(filepath.Base(volumes[0]))
		base = filepath.Join(filepath.Dir(volumes[0]), m[1])
		s.Name = base
	} else {
		st, err := os.Stat(s.Name)
		switch {
		case err == nil && st.IsDir():
			s.dir = true
			return s.measure()
		case err == nil:
			volumes = []string{s.Name}
		case errors.Is(err, fs.ErrNotExist):
			all, globErr := beside(s.Name)
			if globErr != nil || len(all) == 0 {
				return err
			}
			volumes = all
		default:
			return err
		}
	}
	if len(volumes) > 1 || volumes[0] != base {
		if err := inOrder(base, volumes); err != nil {
			return err
		}
	}
	sums, err := readSums(base + sumsSuffix)
	if err != nil {
		return err
	}
	for _, p := range volumes {
		st, err := os.Stat(p)
		if err != nil {
			return err
		}
		s.Size += st.Size()
		s.volumes = append(s.volumes, archiveVolume{p, sums[filepath.Base(p)]})
		delete(sums, filepath.Base(p))
	}
	for name := range sums {
		if m := volumeName.FindStringSubmatch(name); m != nil && m[1] == filepath.Base(base) && len(s.volumes) > 0 && volumes[0] != base {
			return fmt.Errorf("the volume %s is missing, which %s names", name, base+sumsSuffix)
		}
	}
	return nil
}

// others gives all volumes of the archive that a volume is of, which is there; nil where
// it is a directory, and none.
func others(volume string) ([]string, error) {
	if st, err := os.Stat(volume); err != nil || st.IsDir() {
		return nil, err
	}
	m := volumeName.FindStringSubmatch(filepath.Base(volume))
	return beside(filepath.Join(filepath.Dir(volume), m[1]))
}

// beside finds the volumes of the archive of that name.
func beside(name string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(name))
	if err != nil {
		return nil, err
	}
	var list []string
	for _, e := range entries {
		if m := volumeName.FindStringSubmatch(e.Name()); m != nil && m[1] == filepath.Base(name) {
			list = append(list, filepath.Join(filepath.Dir(name), e.Name()))
		}
	}
	return list, nil
}

// number gives that of a volume.
func number(path string) int {
	n, _ := strconv.Atoi(volumeName.FindStringSubmatch(filepath.Base(path))[2]) // digits, few enough
	return n
}

// inOrder sorts volumes, and tells which one is missing.
func inOrder(base string, volumes []string) error {
	slices.SortFunc(volumes, func(a, b string) int { return number(a) - number(b) })
	for i, p := range volumes {
		switch n := number(p); {
		case n < i+1:
			return fmt.Errorf("the volume %s is given twice", p)
		case n > i+1:
			return fmt.Errorf("the volume %s.%03d is missing", base, i+1)
		}
	}
	return nil
}

// readSums reads what sha256sum has written; nothing where there is no such file.
func readSums(name string) (map[string]string, error) {
	f, err := os.Open(name) // #nosec G304 -- beside what the user named
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sums := map[string]string{}
	lines := bufio.NewScanner(io.LimitReader(f, maxSums))
	for lines.Scan() {
		sum, file, ok := strings.Cut(lines.Text(), " ")
		if b, err := hex.DecodeString(sum); !ok || err != nil || len(b) != sha256.Size {
			return nil, fmt.Errorf("%s is no list of checksums, as sha256sum writes it", name)
		}
		sums[strings.TrimPrefix(strings.TrimPrefix(file, " "), "*")] = strings.ToLower(sum)
	}
	return sums, lines.Err()
}

// measure finds the size of a directory.
func (s *Archive) measure() error {
	return filepath.WalkDir(s.Name, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.Type().IsRegular() {
			st, err := e.Info()
			if err != nil {
				return err
			}
			s.Size += st.Size()
		}
		return nil
	})
}

// Open gives the archive as one tar. Its errors are those of the disk, and that a
// checksum is wrong. The caller closes it.
func (s *Archive) Open() (io.ReadCloser, error) {
	if !s.dir {
		return &volumeReader{left: s.volumes}, nil
	}
	root, err := os.OpenRoot(s.Name)
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	// It ends when r is closed, or all is read.
	go func() {
		err := pack(w, root)
		_ = w.CloseWithError(errors.Join(err, root.Close())) // it never fails
	}()
	return r, nil
}

// volumeReader reads volumes one after the other. Close may be called while Read runs, as
// net/http does with what it sends.
type volumeReader struct {
	left []archiveVolume // Read's alone, as hash is
	hash hash.Hash

	mu     sync.Mutex
	file   *os.File
	closed bool
}

func (v *volumeReader) Read(b []byte) (int, error) {
	for {
		f, err := v.current()
		if err != nil {
			return 0, err
		}
		n, err := f.Read(b)
		if v.left[0].sum != "" {
			v.hash.Write(b[:n])
		}
		if err != io.EOF {
			return n, err
		}
		if err := v.next(f); err != nil {
			return n, err
		}
		if n > 0 {
			return n, nil
		}
	}
}

// current returns the file of the volume that is read, which it opens if need be. It returns
// io.EOF after the last one.
func (v *volumeReader) current() (*os.File, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.closed:
		return nil, fs.ErrClosed
	case v.file != nil:
		return v.file, nil
	case len(v.left) == 0:
		return nil, io.EOF
	}
	f, err := os.Open(v.left[0].path)
	if err != nil {
		return nil, err
	}
	v.file, v.hash = f, sha256.New()
	return f, nil
}

// next ends the volume whose file f was read to its end.
func (v *volumeReader) next(f *os.File) error {
	done := v.left[0]
	v.left = v.left[1:]
	v.mu.Lock()
	v.file = nil
	v.mu.Unlock()
	err := f.Close() // fails if Close was called meanwhile
	if got := hex.EncodeToString(v.hash.Sum(nil)); done.sum != "" && got != done.sum {
		return fmt.Errorf("%s is damaged: its SHA-256 is %s, and should be %s", done.path, got, done.sum)
	}
	return err
}

func (v *volumeReader) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	f := v.file
	v.file, v.closed = nil, true
	if f == nil {
		return nil
	}
	return f.Close()
}

// pack writes what is in a directory as a tar: the documents first, so that who reads it
// knows what will come.
func pack(w io.Writer, root *os.Root) error {
	t := tar.NewWriter(w)
	first := []string{LayoutName, ContentsName, IndexName, DockerName}
	for _, name := range first {
		if err := packFile(t, root, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	err := fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || slices.Contains(first, name) {
			return err
		}
		return packFile(t, root, name)
	})
	if err != nil {
		return err
	}
	return t.Close()
}

func packFile(t *tar.Writer, root *os.Root, name string) error {
	st, err := root.Lstat(name)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is no file: it is of the type %s", filepath.Join(root.Name(), name), st.Mode().Type())
	}
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: st.Size(), Mode: 0o644}); err != nil {
		return err
	}
	_, err = io.CopyN(t, f, st.Size())
	if err != nil {
		return fmt.Errorf("read %s: %w", filepath.Join(root.Name(), name), unexpected(err))
	}
	return nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
