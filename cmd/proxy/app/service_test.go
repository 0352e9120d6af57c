package app

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// journal notes what happens, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) note(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.lines)
}

// fakeListener serves until it is shut down; its running transfers take drain.
type fakeListener struct {
	broken  error
	journal *journal
	name    string
	drain   time.Duration
	closed  chan struct{}
}

func newFakeListener(j *journal, name string) *fakeListener {
	return &fakeListener{journal: j, name: name, closed: make(chan struct{})}
}

func (l *fakeListener) Serve(net.Listener) error {
	if l.broken != nil {
		return l.broken
	}
	<-l.closed
	return nil
}

func (l *fakeListener) Shutdown(ctx context.Context) error {
	close(l.closed)
	select {
	case <-time.After(l.drain):
		l.journal.note(l.name + " finished")
		return nil
	case <-ctx.Done():
		l.journal.note(l.name + " cut")
		return ctx.Err()
	}
}

// fakeCache takes closing to close, unless its context ends first.
type fakeCache struct {
	journal *journal
	closing time.Duration
}

func (c *fakeCache) Restoring() bool { return false }
func (c *fakeCache) Ending()         {}

func (c *fakeCache) Close(ctx context.Context) error {
	select {
	case <-time.After(c.closing):
		c.journal.note("cache closed")
		return nil
	case <-ctx.Done():
		c.journal.note("cache left")
		return ctx.Err()
	}
}

func newFakeService(timeout time.Duration) (*service, *fakeListener, *fakeCache, *journal) {
	j := &journal{}
	front, cache := newFakeListener(j, "front"), &fakeCache{journal: j}
	return &service{
		front: front, admin: newFakeListener(j, "admin"), cache: cache,
		closeUpstreams: func() { j.note("upstreams closed") },
		timeout:        timeout, log: zap.NewNop(),
	}, front, cache, j
}

func TestSignalLetsTransfersFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, front, _, j := newFakeService(30 * time.Second)
		front.drain = 20 * time.Second
		signals := make(chan os.Signal, 2)
		signals <- syscall.SIGTERM
		if err := s.run(signals); err != nil {
			t.Errorf("want no error, got %v", err)
		}
		want := []string{"front finished", "cache closed", "upstreams closed", "admin finished"}
		if got := j.all(); !slices.Equal(got, want) {
			t.Errorf("want %q, got %q", want, got)
		}
	})
}

func TestTransfersAreCutAtTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, front, _, j := newFakeService(5 * time.Second)
		front.drain = time.Hour
		signals := make(chan os.Signal, 2)
		signals <- syscall.SIGINT
		begun := time.Now()
		if err := s.run(signals); err != nil {
			t.Errorf("want no error, got %v", err)
		}
		if took := time.Since(begun); took != 5*time.Second {
			t.Errorf("want an end after 5s, took %s", took)
		}
		want := []string{"front cut", "cache closed", "upstreams closed", "admin finished"}
		if got := j.all(); !slices.Equal(got, want) {
			t.Errorf("want %q, got %q", want, got)
		}
	})
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, front, cache, j := newFakeService(time.Hour)
		front.drain, cache.closing = 2*time.Hour, time.Hour
		signals := make(chan os.Signal, 2)
		begun := time.Now()
		signals <- syscall.SIGTERM
		time.AfterFunc(3*time.Second, func() { signals <- syscall.SIGTERM })
		err := s.run(signals)
		if !errors.Is(err, errForced) {
			t.Errorf("want %v, got %v", errForced, err)
		}
		if took := time.Since(begun); took != 3*time.Second {
			t.Errorf("want an end with the second signal, after 3s, took %s", took)
		}
		want := []string{"front cut", "cache left"}
		if got := j.all(); !slices.Equal(got[:min(2, len(got))], want) {
			t.Errorf("want %q first, got %q", want, got)
		}
	})
}

// timeout(1) signals its child and then its whole group.
func TestSignalThatComesTwiceIsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, front, _, j := newFakeService(time.Hour)
		front.drain = time.Minute
		signals := make(chan os.Signal, 2)
		signals <- syscall.SIGTERM
		signals <- syscall.SIGTERM
		if err := s.run(signals); err != nil {
			t.Errorf("want no error, got %v", err)
		}
		if got := j.all(); !slices.Contains(got, "front finished") {
			t.Errorf("want the transfers finished, got %q", got)
		}
	})
}

func TestCacheThatDoesNotCloseIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, cache, j := newFakeService(time.Second)
		cache.closing = time.Hour
		signals := make(chan os.Signal, 2)
		signals <- syscall.SIGTERM
		if err := s.run(signals); err != nil {
			t.Errorf("want no error, got %v", err)
		}
		if got := j.all(); !slices.Contains(got, "cache left") {
			t.Errorf("want the cache left after %s, got %q", closeTimeout, got)
		}
	})
}

func TestListenerThatBreaksEndsTheProgram(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, front, _, j := newFakeService(time.Second)
		front.broken = errors.New("accept: too many open files")
		err := s.run(make(chan os.Signal))
		if err == nil || !strings.Contains(err.Error(), "registry listener: accept: too many open files") {
			t.Errorf("want the listener's error, got %v", err)
		}
		if got := j.all(); !slices.Contains(got, "cache closed") {
			t.Errorf("want the cache closed, got %q", got)
		}
	})
}

func TestReadyOnlyWhileServing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, front, _, _ := newFakeService(time.Hour)
		front.drain = time.Minute
		if err := s.ready(t.Context()); err == nil {
			t.Error("before serving: want not ready")
		}
		signals := make(chan os.Signal, 2)
		done := make(chan error, 1)
		go func() { done <- s.run(signals) }()
		synctest.Wait()
		if err := s.ready(t.Context()); err != nil {
			t.Errorf("while serving: want ready, got %v", err)
		}
		signals <- syscall.SIGTERM
		synctest.Wait()
		if err := s.ready(t.Context()); err == nil {
			t.Error("while shutting down: want not ready")
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
