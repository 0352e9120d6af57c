//go:build linux

package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/oci"
)

// filed is a Content of one blob, in a file that all share.
type filed struct {
	*shelf
	file *os.File
	size int64
}

func (f filed) Blob(context.Context, oci.Target, oci.Span) (cache.Blob, cache.Outcome, error) {
	return f, cache.Outcome{Status: cache.Hit}, nil
}

func (filed) Prepare([]oci.Span) bool { return true }
func (f filed) Size() int64           { return f.size }
func (f filed) Close() error          { return nil }
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

// ends gives a socket and the client at its other end.
func ends(t *testing.T) (*socket, *net.TCPConn, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	ours, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close() })
	return newSocket(ours), ours.(*net.TCPConn), client
}

// A client that takes its time has the socket full again and again, also in the
// middle of a piece; and what is sent need not be in the page cache.
func TestSocketSendsToAClientThatTakesItsTime(t *testing.T) {
	content := make([]byte, 9<<20+17)
	_, _ = rand.Read(content)
	file, err := os.Create(filepath.Join(t.TempDir(), "blob"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.Write(content); err != nil {
		t.Fatal(err)
	}
	for _, cold := range []bool{false, true} {
		if cold {
			if err := file.Sync(); err != nil {
				t.Fatal(err)
			}
			if err := unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
				t.Fatal(err)
			}
		}
		s, ours, client := ends(t)
		got := make(chan []byte)
		go func() {
			var all []byte
			b := make([]byte, 300_000)
			for len(all) < len(content) {
				n, err := client.Read(b)
				all = append(all, b[:n]...)
				if err != nil {
					t.Error(err)
					break
				}
				if len(all)%7 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
			got <- all
		}()
		_ = ours.SetWriteBuffer(50_000)
		_ = ours.SetWriteDeadline(time.Now().Add(time.Minute))
		waits := 0
		n, err := s.sendFile(file, 0, len(content)+5, func(time.Time) { waits++ })
		if err != nil || n != int64(len(content)) {
			t.Errorf("cold %v: sent %d bytes of %d, %v", cold, n, len(content), err)
			ours.Close()
		}
		if !bytes.Equal(<-got, content) {
			t.Errorf("cold %v: other bytes came", cold)
		}
		if waits < 2 {
			t.Errorf("cold %v: the socket was never full", cold)
		}
	}
}

func TestSocketReadsAndWritesAsPackageNetDoes(t *testing.T) {
	s, ours, client := ends(t)
	_ = ours.SetDeadline(time.Now().Add(20 * time.Millisecond))
	b := make([]byte, 10)
	if n, err := s.read(b); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("of a silent client: %d, %v; want a deadline", n, err)
	}
	_ = ours.SetDeadline(time.Now().Add(time.Second))
	much := make([]byte, 64<<20)
	if n, err := s.write(much); n == 0 || n == len(much) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("to a client that takes nothing: %d, %v; want some bytes and a deadline", n, err)
	}
	_ = ours.SetDeadline(time.Now().Add(time.Minute))
	if _, err := client.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if n, err := s.read(b); string(b[:n]) != "hello" || err != nil {
		t.Errorf("got %q, %v", b[:n], err)
	}
	if err := client.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := s.read(b); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v; want io.EOF", n, err)
	}
	client.Close()
	for err := error(nil); err == nil; {
		if _, err = s.write(b); err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("to a client that is gone: %v", err)
		}
	}
	ours.Close()
	if _, err := s.read(b); !errors.Is(err, net.ErrClosed) {
		t.Errorf("when closed: %v", err)
	}
}
