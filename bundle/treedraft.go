package bundle

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// dirMode is the mode of the directories of a bundle, as fileMode is of its files.
const dirMode fs.FileMode = 0o700

// treeDraft is a directory that is being written.
type treeDraft struct {
	path, dir string // dir is where it is now
	files     *Files
	at        int64 // in the tar
	n         int   // the file that the next byte belongs to
	file      *os.File
}

func newTreeDraft(path string) (*treeDraft, error) {
	path = strings.TrimRight(path, string(os.PathSeparator))
	names, err := os.ReadDir(path)
	switch {
	case err == nil && len(names) > 0:
		return nil, exists(path)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	t := &treeDraft{path: path, dir: path + partialSuffix}
	makePrivate(t.dir, dirMode)
	makePrivate(t.name(BlobsDir), dirMode)
	return t, nil
}

func (t *treeDraft) contents() *Contents {
	f, err := os.Open(t.name(ContentsName))
	if err != nil {
		return nil
	}
	defer f.Close()
	c, err := decodeContents(f)
	if err != nil {
		return nil
	}
	return c
}

// name gives the place of a file of the bundle.
func (t *treeDraft) name(of string) string { return filepath.Join(t.dir, filepath.FromSlash(of)) }

// clear removes the files of a bundle, and nothing else that may be there.
func (t *treeDraft) clear() error {
	for _, name := range []string{LayoutName, ContentsName, IndexName, DockerName, BlobsDir} {
		if err := os.RemoveAll(t.name(name)); err != nil {
			return err
		}
	}
	return nil
}

func (t *treeDraft) check(ctx context.Context, f *Files) (int64, error) {
	t.files = f
	for n, file := range f.List {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		if !t.isRight(ctx, file) {
			t.n, t.at = n, file.Start
			return t.at, context.Cause(ctx)
		}
	}
	t.n, t.at = len(f.List), f.Size-endOfTar
	return t.at, nil
}

// isRight tells whether a file is there as it should be.
func (t *treeDraft) isRight(ctx context.Context, file File) bool {
	in, err := os.Open(t.name(file.Name))
	if err != nil {
		return false
	}
	defer in.Close()
	hash := file.Digest.Verifier()
	n, err := io.CopyBuffer(struct{ io.Writer }{hash}, &stopped{ctx, in}, make([]byte, 256<<10))
	return err == nil && n == file.Size && hash.Verified()
}

func (t *treeDraft) Write(b []byte) (int, error) {
	written := 0
	for written < len(b) {
		if t.n == len(t.files.List) {
			return len(b), nil // the end of the tar
		}
		n, err := t.write(t.files.List[t.n], b[written:])
		written, t.at = written+n, t.at+int64(n)
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// write takes of b what belongs to file, and leaves out what the tar has around it.
func (t *treeDraft) write(file File, b []byte) (n int, err error) {
	end := file.Begin + file.Size
	switch {
	case t.at < file.Begin:
		n = int(min(int64(len(b)), file.Begin-t.at))
	case t.at < end:
		if t.file == nil {
			if t.file, err = t.create(file.Name); err != nil {
				return 0, err
			}
		}
		if n, err = t.file.Write(b[:min(int64(len(b)), end-t.at)]); err != nil {
			return n, err
		}
	default:
		n = int(min(int64(len(b)), file.End-t.at))
	}
	at := t.at + int64(n)
	if at >= end && (t.file != nil || file.Size == 0) {
		if err := t.finish(file); err != nil {
			return n, err
		}
	}
	if at == file.End {
		t.n++
	}
	return n, nil
}

func (t *treeDraft) create(name string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(t.name(name)), dirMode); err != nil {
		return nil, err
	}
	return openPrivate(t.name(name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
}

// finish closes a file that is written in full; an empty one is made here.
func (t *treeDraft) finish(file File) error {
	if t.file == nil {
		f, err := t.create(file.Name)
		if err != nil {
			return err
		}
		t.file = f
	}
	return t.Close()
}

// Close keeps what is written.
func (t *treeDraft) Close() error {
	if t.file == nil {
		return nil
	}
	err := t.file.Close()
	t.file = nil
	return err
}

func (t *treeDraft) commit() (Saved, error) {
	s := Saved{Paths: []string{t.path}}
	dirs := map[string]bool{}
	for _, file := range t.files.List {
		s.Size += file.Size
		makePrivate(t.name(file.Name), fileMode)
		if err := syncFile(t.name(file.Name)); err != nil {
			return s, err
		}
		dirs[filepath.Dir(t.name(file.Name))] = true
	}
	for dir := range dirs {
		makePrivate(dir, dirMode)
		if err := syncFile(dir); err != nil {
			return s, err
		}
	}
	if err := os.Remove(t.path); err != nil && !errors.Is(err, fs.ErrNotExist) { // it is empty
		return s, err
	}
	if err := os.Rename(t.dir, t.path); err != nil {
		return s, err
	}
	return s, syncFile(filepath.Dir(t.path))
}
