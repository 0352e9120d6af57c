//go:build linux

package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// filed is a Content of one blob, in a file that all share.
type filed struct {
	*shelf
	file *os.File
	size int64
}

func (f filed) Blob(context.Context, rewrite.Target, oci.Span) (cache.Blob, cache.Outcome, error) {
	return f, cache.Outcome{Status: cache.Hit}, nil
}

func (f filed) Size() int64  { return f.size }
func (f filed) Close() error { return nil }
func (f filed) Send(w io.Writer, span oci.Span) (int64, error) {
	return w.(interface {
		SendFile(cache.File, int64, int64) (int64, error)
	}).SendFile(f.file, span.From, span.To)
}

func TestAnswersShareAFile(t *testing.T) {
	content := make([]byte, 5<<20+17)
	_, _ = rand.Read(content)
	name := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() }) // once the server has ended
	_, base := start(t, filed{newShelf(), file, int64(len(content))})
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			for i := range 5 {
				from, to := n*1000+i, len(content)-i*100_000
				if n%2 == 1 {
					to = from + 40_000
				}
				req, _ := http.NewRequest("GET", base+blobPath(blobDigest), nil)
				req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || !bytes.Equal(got, content[from:to]) {
					t.Errorf("bytes %d to %d: got %d bytes, %v; want those of the file", from, to, len(got), err)
				}
			}
		})
	}
	all.Wait()
	if at, err := file.Seek(0, io.SeekCurrent); err != nil || at != 0 {
		t.Errorf("the file's position is %d, %v: somebody has used it", at, err)
	}
}

func TestFileThatEndsEarlyCutsTheAnswerOff(t *testing.T) {
	name := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(name, make([]byte, 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() }) // once the server has ended
	_, base := start(t, filed{newShelf(), file, 200_000})
	resp, err := http.Get(base + blobPath(blobDigest))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.Copy(io.Discard, resp.Body); err == nil || got > 100_000 {
		t.Errorf("got %d bytes, %v; want an error, and no more than the file has", got, err)
	}
}
