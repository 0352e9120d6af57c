package store

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestWhatACrashLeftAmongThePartsIsRemovedAtTheStart(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	ingest := filepath.Join(dir, ingestDir)
	part := func(what string, save bool) string {
		p, _, _, err := s.Part(digest.FromString(what), "")
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if _, err := p.WriteAt([]byte(what), 0); err != nil {
			t.Fatal(err)
		}
		var have Spans
		have.Add(0, int64(len(what)))
		if save {
			if err := p.Save(have, 100); err != nil {
				t.Fatal(err)
			}
		}
		return filepath.Base(p.note)
	}
	saved, old := part("saved", true), part("old", true)
	part("never saved", false)
	long := time.Now().Add(-partKept - time.Hour)
	if err := os.Chtimes(filepath.Join(ingest, old), long, long); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"put-1", "check-2", saved + "-3", "sha256-00.json"} {
		if err := os.WriteFile(filepath.Join(ingest, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	wantIngest(t, s, 9)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	wantIngest(t, s, 2)
	p, have, size, err := s.Part(digest.FromString("saved"), "")
	if err != nil || have.Len() != 5 || size != 100 {
		t.Errorf("the saved part: %d bytes of %d, %v", have.Len(), size, err)
	}
	p.Close()
}
