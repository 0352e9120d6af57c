package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/fill"
	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/oci"
)

// failing is a file system that fails when a test says so.
type failing struct {
	store.OS
	mu sync.Mutex
	// err is what writes give once room bytes more are written, and syncs and
	// what makes names at once where there is no room left.
	err  error
	room int
}

// fail lets all fail after room more bytes; nil ends it.
func (f *failing) fail(err error, room int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.room = err, room
}

// take gives how many of n bytes may be written.
func (f *failing) take(n int) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		return n, nil
	}
	if n > 0 && n <= f.room {
		f.room -= n
		return n, nil
	}
	if n == 0 && f.room > 0 {
		return 0, nil
	}
	n, f.room = f.room, 0
	return n, f.err
}

func (f *failing) OpenFile(name string, flag int, mode fs.FileMode) (store.File, error) {
	return f.open(f.OS.OpenFile(name, flag, mode))
}

func (f *failing) CreateTemp(dir, pattern string) (store.File, error) {
	return f.open(f.OS.CreateTemp(dir, pattern))
}

func (f *failing) open(file store.File, err error) (store.File, error) {
	if _, ferr := f.take(0); err == nil && ferr != nil {
		file.Close()
		return nil, ferr
	}
	if err != nil {
		return nil, err
	}
	return &failingFile{file, f}, nil
}

func (f *failing) Rename(from, to string) error {
	if _, err := f.take(0); err != nil {
		return err
	}
	return f.OS.Rename(from, to)
}

func (f *failing) Remove(name string) error {
	if _, err := f.take(0); errors.Is(err, syscall.EROFS) {
		return err
	}
	return f.OS.Remove(name)
}

type failingFile struct {
	store.File
	f *failing
}

func (f *failingFile) Write(b []byte) (int, error) {
	n, err := f.f.take(len(b))
	n, werr := f.File.Write(b[:n])
	return n, errors.Join(err, werr)
}

func (f *failingFile) WriteAt(b []byte, off int64) (int, error) {
	n, err := f.f.take(len(b))
	n, werr := f.File.WriteAt(b[:n], off)
	return n, errors.Join(err, werr)
}

func (f *failingFile) Sync() error {
	if _, err := f.f.take(0); err != nil {
		return err
	}
	return f.File.Sync()
}

// diskFailures are the errors of a disk that a client must not notice on a miss.
var diskFailures = []error{syscall.ENOSPC, syscall.EIO, syscall.EROFS, syscall.EMFILE, syscall.EDQUOT}

func TestDiskThatFailsServesWhatIsCachedAndPassesTheRestOn(t *testing.T) {
	for _, failure := range diskFailures {
		// From the first byte on, and from within the blob.
		for _, room := range []int{0, 300_000, 700_000} {
			t.Run(fmt.Sprintf("%v after %d", failure, room), func(t *testing.T) {
				hub := newRegistry()
				layers := [][]byte{content(20, 200_000), content(21, 1_000_000), content(22, 50_000), content(23, 1000)}
				image := hub.addImage("app", layers...)
				hub.tag("app", "latest", image)
				old := content(24, 300_000)
				hub.addBlob("app", old)
				files := &failing{}
				c := open(t, Options{MemoryBytes: 1 << 20, files: files}, map[string]*registry{"docker.io": hub}, TagRule{Match: "*", Immutable: true})
				wantBlob(t, c, digested("app", digest.FromBytes(old)), old, Miss)
				fillsEnd(t, c)

				files.fail(failure, room)
				wantManifest(t, c, tagged("app", "latest"), image, Miss)
				for range 2 {
					for i, l := range layers {
						if got, st, err := readBlob(t, c, digested("app", digest.FromBytes(l))); err != nil || !bytes.Equal(got, l) {
							t.Errorf("layer %d: %d bytes of %d, %v, %v", i, len(got), len(l), st, err)
						}
						fillsEnd(t, c)
					}
				}
				wantBlob(t, c, digested("app", digest.FromBytes(old)), old, Hit)
				if c.Degraded() == "" {
					t.Error("nothing says that the disk fails")
				}

				files.fail(nil, 0)
				if why := c.Degraded(); why != "" {
					t.Errorf("the disk works again, and it is said: %s", why)
				}
				large := digested("app", digest.FromBytes(layers[1]))
				if _, _, err := readBlob(t, c, large); err != nil {
					t.Error(err)
				}
				fillsEnd(t, c)
				wantBlob(t, c, large, layers[1], Hit)
			})
		}
	}
}

// fillsEnd waits until no fill runs.
func fillsEnd(t testing.TB, c *Cache) {
	t.Helper()
	until(t, "the fills to end", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.fills) == 0
	})
}

func TestFillThatMeetsAFullDiskHalfWayGoesOnFromTheByteThatItHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		layer := content(30, 4<<20)
		src := &source{content: layer, chunk: 64 << 10, pace: time.Millisecond}
		hub := newRegistry()
		hub.addBlob("app", layer)
		files := &failing{}
		c := open(t, Options{files: files}, map[string]*registry{"docker.io": hub})
		up := c.settings().upstreams["docker.io"]
		up.origin = slowly{hub, src}
		target := digested("app", digest.FromBytes(layer))

		var wait sync.WaitGroup
		for i := range 3 {
			span := []oci.Span{oci.Whole, {From: 1 << 20, To: 3 << 20}, {From: 3 << 20, To: oci.Open}}[i]
			wait.Go(func() {
				b, _, err := c.Blob(t.Context(), target, span)
				if err != nil {
					t.Error(err)
					return
				}
				defer b.Close()
				var got bytes.Buffer
				_, err = b.Send(&got, span)
				if want := layer[span.From:fill.End(span, b.Size())]; err != nil || !bytes.Equal(got.Bytes(), want) {
					t.Errorf("span %v: %d bytes of %d, %v", span, got.Len(), len(want), err)
				}
			})
		}
		synctest.Wait()
		files.fail(syscall.ENOSPC, 2<<20)
		wait.Wait()
		if c.holds(target.Digest) {
			t.Error("it is kept, though there was no room")
		}
	})
}

func TestPassageAsksForNoByteThatTheFillHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		layer := content(33, 4<<20)
		src := &source{content: layer, chunk: 64 << 10, pace: time.Millisecond}
		files := &failing{}
		c := open(t, Options{files: files}, map[string]*registry{"docker.io": newRegistry()})
		c.settings().upstreams["docker.io"].origin = slowly{newRegistry(), src}
		const room = 2 << 20
		files.fail(syscall.ENOSPC, room)
		target := digested("app", digest.FromBytes(layer))
		got, _, err := readBlob(t, c, target)
		if err != nil || !bytes.Equal(got, layer) {
			t.Errorf("%d bytes of %d, %v", len(got), len(layer), err)
		}
		if len(src.requests) != 2 || src.requests[0].From != 0 || src.requests[1].From < room-fill.ReadSize {
			t.Errorf("asked for %v with room for %d", src.requests, room)
		}
	})
}

// slowly is a registry of which one source sends the blobs.
type slowly struct {
	*registry
	src *source
}

func (s slowly) Blob(ctx context.Context, _ string, _ digest.Digest, span oci.Span) (*oci.Body, error) {
	return s.src.Blob(ctx, span)
}

func TestWrongBytesThatArePassedOnNeverMakeAWholeAnswer(t *testing.T) {
	for _, size := range []int{1000, 50_000, 500_000} {
		layer := content(31, size)
		d := digest.FromBytes(layer)
		hub := newRegistry()
		hub.addBlob("app", layer)
		wrong := bytes.Clone(layer)
		wrong[size/2] ^= 1
		put(hub.blobs, "app", d, wrong)
		files := &failing{}
		c := open(t, Options{files: files}, map[string]*registry{"docker.io": hub})
		files.fail(syscall.ENOSPC, 0)
		for _, span := range []oci.Span{oci.Whole, {From: int64(size) - 10, To: oci.Open}} {
			b, _, err := c.Blob(t.Context(), digested("app", d), span)
			if err != nil {
				if size > fill.Withheld {
					t.Errorf("%d bytes: %v before any byte", size, err)
				}
				continue
			}
			var got bytes.Buffer
			if _, err := b.Send(&got, span); !errors.Is(err, fill.ErrMismatch) || got.Len() > max(0, size-fill.Withheld) {
				t.Errorf("%d bytes: %d were given out, %v", size, got.Len(), err)
			}
			b.Close()
		}
	}
}

func TestAPieceThatIsPassedOnIsMarkedAsUnverified(t *testing.T) {
	layer := content(32, 500_000)
	hub := newRegistry()
	hub.addBlob("app", layer)
	files := &failing{}
	c := open(t, Options{files: files}, map[string]*registry{"docker.io": hub})
	files.fail(syscall.ENOSPC, 0)
	for _, span := range []oci.Span{oci.Whole, {From: 0, To: 1000}, {From: 1000, To: 2000}} {
		b, out, err := c.Blob(t.Context(), digested("app", digest.FromBytes(layer)), span)
		if err != nil {
			t.Fatal(err)
		}
		if want := span != oci.Whole; out.Unverified != want {
			t.Errorf("%v: unverified is %t, want %t", span, out.Unverified, want)
		}
		b.Close()
	}
}

func TestPassagesAreBoundedAndWhoComesTooManyIsToldWhen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		layer := content(32, 500_000)
		hub := newRegistry()
		hub.addBlob("app", layer)
		files := &failing{}
		c := open(t, Options{files: files}, map[string]*registry{"docker.io": hub})
		files.fail(syscall.ENOSPC, 0)
		target := digested("app", digest.FromBytes(layer))
		var open []Blob
		for range maxPassages {
			b, _, err := c.Blob(t.Context(), target, oci.Whole)
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, b)
		}
		_, _, err := c.Blob(t.Context(), target, oci.Whole)
		var e *oci.Error
		if !errors.As(err, &e) || e.HTTPStatus() != 503 || e.RetryAfter == 0 {
			t.Errorf("got %v, want 503 with a time", err)
		}
		open[0].Close()
		b, _, err := c.Blob(t.Context(), target, oci.Whole)
		if err != nil {
			t.Errorf("once there is room: %v", err)
		} else {
			open[0] = b
		}
		for _, b := range open {
			if n, err := b.Send(io.Discard, oci.Whole); n != int64(len(layer)) || err != nil {
				t.Errorf("%d bytes, %v", n, err)
			}
			b.Close()
		}
	})
}

func TestDiskThatIsFullIsWellWhenThereIsRoomForWhatItRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var free atomic.Int64
		room := func() (int64, int64, error) { return free.Load(), 20 << 20, nil }
		ctx, end := context.WithCancel(t.Context())
		defer end()
		k := newDisk(func() error { return nil }, room, zap.NewNop(), metrics.Discard())
		go k.watch(ctx)
		k.failed("test", syscall.ENOSPC, 1<<30)
		for _, c := range []struct {
			free int64
			well bool
		}{{0, false}, {1<<20 - 1, false}, {1 << 20, true}} { // a 20th of all there is
			free.Store(c.free)
			time.Sleep(probeEvery + time.Second)
			if why := k.degraded(); (why == "") != c.well {
				t.Errorf("with %d bytes free: %q, want well %v", c.free, why, c.well)
			}
		}
	})
}
