package bundle

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestArchivesAreFoundByTheirNames(t *testing.T) {
	sum := func(content string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(content))) }
	volumes := map[string]string{"b.tar.001": "one ", "b.tar.002": "two ", "b.tar.003": "three"}
	with := func(name, content string) map[string]string {
		files := map[string]string{name: content}
		for n, c := range volumes {
			if _, ok := files[n]; !ok {
				files[n] = c
			}
		}
		return files
	}
	for name, c := range map[string]struct {
		files   map[string]string
		paths   []string
		want    string
		refused string
	}{
		"a file":                         {map[string]string{"b.tar": "all"}, []string{"b.tar"}, "all", ""},
		"nothing":                        {nil, []string{"b.tar"}, "", "no such file"},
		"volumes by their name":          {volumes, []string{"b.tar"}, "one two three", ""},
		"the first volume":               {volumes, []string{"b.tar.001"}, "one two three", ""},
		"another volume":                 {volumes, []string{"b.tar.003"}, "one two three", ""},
		"all volumes in any order":       {volumes, []string{"b.tar.003", "b.tar.001", "b.tar.002"}, "one two three", ""},
		"a volume beside the whole file": {with("b.tar", "stale"), []string{"b.tar.001"}, "one two three", ""},
		"the whole file beside volumes":  {with("b.tar", "whole"), []string{"b.tar"}, "whole", ""},
		"a volume that is not there":     {map[string]string{"b.tar": "stale"}, []string{"b.tar.002"}, "", "no such file"},
		"a volume in the middle missing": {map[string]string{"b.tar.001": "a", "b.tar.003": "c"}, []string{"b.tar.001"}, "", "b.tar.002 is missing"},
		"the first volume missing":       {map[string]string{"b.tar.002": "b"}, []string{"b.tar.002"}, "", "b.tar.001 is missing"},
		"the last volume missing":        {map[string]string{"b.tar.001": "a", "b.tar.sha256": sum("a") + "  b.tar.001\n" + sum("b") + "  b.tar.002\n"}, []string{"b.tar.001"}, "", "b.tar.002 is missing"},
		"a volume twice":                 {volumes, []string{"b.tar.001", "b.tar.001", "b.tar.002"}, "", "given twice"},
		"damaged":                        {with("b.tar.sha256", sum("another")+" *b.tar.002\n"), []string{"b.tar"}, "one two ", "b.tar.002 is damaged"},
		"no list of sums":                {with("b.tar.sha256", "nothing"), []string{"b.tar"}, "", "no list of checksums"},
		"a date at the end of a name":    {map[string]string{"app.20261125": "all"}, []string{"app.20261125"}, "all", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for name, content := range c.files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var paths []string
			for _, p := range c.paths {
				paths = append(paths, filepath.Join(dir, p))
			}
			list, err := Archives(paths)
			var got []byte
			if err == nil {
				if len(list) != 1 {
					t.Fatalf("there are %d archives", len(list))
				}
				r, openErr := list[0].Open()
				if openErr != nil {
					t.Fatal(openErr)
				}
				got, err = io.ReadAll(r)
				if err := r.Close(); err != nil {
					t.Error(err)
				}
			}
			if string(got) != c.want {
				t.Errorf("want %q, got %q", c.want, got)
			}
			if (err == nil) != (c.refused == "") || err != nil && !strings.Contains(err.Error(), c.refused) {
				t.Errorf("want %q, got %v", c.refused, err)
			}
		})
	}
}

// TestAnArchiveIsClosedWhileItIsRead closes an archive of volumes while another goroutine reads
// it, as net/http does with what a server refuses.
func TestAnArchiveIsClosedWhileItIsRead(t *testing.T) {
	dir := t.TempDir()
	var paths []string
	for n := range 3 {
		path := filepath.Join(dir, fmt.Sprintf("b.tar.%03d", n+1))
		if err := os.WriteFile(path, make([]byte, 1<<16), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	list, err := Archives(paths)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 500 {
		r, err := list[0].Open()
		if err != nil {
			t.Fatal(err)
		}
		begun, ended := make(chan struct{}), make(chan error)
		go func() {
			b := make([]byte, 1<<10)
			_, err := r.Read(b)
			close(begun)
			for err == nil {
				_, err = r.Read(b)
			}
			ended <- err
		}()
		<-begun
		for range n {
			runtime.Gosched()
		}
		_ = r.Close() // it may be closed in the middle of a read
		if err := <-ended; err != io.EOF && !errors.Is(err, os.ErrClosed) {
			t.Fatal(err)
		}
		if _, err := r.Read(make([]byte, 1)); err == nil {
			t.Fatal("what is closed can be read")
		}
	}
}
