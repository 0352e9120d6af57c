package store

import (
	"sync/atomic"
	"testing"
	"time"
)

// held is a file system whose directories are synced only once it is let go.
type held struct {
	OS
	on    atomic.Bool
	begun chan struct{}
	let   chan struct{}
}

func (h *held) SyncDir(name string) error {
	if h.on.Load() {
		h.begun <- struct{}{}
		<-h.let
	}
	return h.OS.SyncDir(name)
}

// Two commits may come to a new directory at a time: neither is done before the
// directory's own name is safe.
func TestWhoFindsDirectoriesBeingSyncedWaits(t *testing.T) {
	h := &held{begun: make(chan struct{}, 100), let: make(chan struct{})}
	s, err := OpenOn(h, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	h.on.Store(true)
	s.unsynced.Store(true)
	done := make(chan error, 2)
	go func() { done <- s.syncDirs() }()
	<-h.begun
	go func() { done <- s.syncDirs() }()
	waiting := 2
	select {
	case err := <-done:
		t.Errorf("one is done while the directory is being synced (%v)", err)
		waiting--
	case <-time.After(100 * time.Millisecond):
	}
	close(h.let)
	for range waiting {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
