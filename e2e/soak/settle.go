package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

const (
	// spareGoroutines and spareFiles are what may come and go at rest: a timer, a
	// scrape, a worker that waits for work.
	spareGoroutines = 6
	spareFiles      = 3
)

// settle checks what is left when nobody asks for anything any more: in the process,
// and, once it has ended, on the disk.
func (w *world) settle(p *proxy.Process, hubs []*hub.Hub) error {
	for _, h := range hubs {
		h.Down() // so that no idle connection to it is counted
	}
	holds := func(f string) bool {
		return strings.HasPrefix(f, filepath.Join(p.Dir, "blobs")) || strings.HasPrefix(f, filepath.Join(p.Dir, "ingest")) || strings.Contains(f, "(deleted)")
	}
	var open []string
	deadline := time.Now().Add(patience)
	for {
		s, err := look(p)
		if err != nil {
			return err
		}
		m, err := p.Scrape()
		if err != nil {
			return err
		}
		open = openFiles(p.PID())
		w.report.last, w.report.most = s, w.report.most.max(s)
		busy := m.Sum("entrepot_fills_in_flight") + m.Sum("entrepot_requests_in_flight")
		held := slices.ContainsFunc(open, holds)
		left := held || s.goroutines > w.report.first.goroutines+spareGoroutines || s.fds > w.report.first.fds+spareFiles || busy > 0
		if !left {
			break
		}
		if time.Now().After(deadline) {
			w.violation("%s after the last client %g goroutines and %g files are left of %g and %g at the start, and %g requests or fills",
				patience, s.goroutines, s.fds, w.report.first.goroutines, w.report.first.fds, busy)
			if dump, err := goroutines(p); err == nil {
				fmt.Fprintf(w.out, "%s\n%s\n", strings.Join(open, "\n"), dump)
			}
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	for _, f := range open {
		if holds(f) {
			w.violation("%s is still open", f)
		}
	}

	m, err := p.Scrape()
	if err != nil {
		return err
	}
	w.account(p)
	if err := p.Stop(); err != nil {
		w.violation("%v", err)
	}
	t, err := inspect(p.Dir)
	if err != nil {
		w.violation("at the end: %v", err)
		return nil
	}
	if blobs, size := m.Sum("entrepot_cache_blobs"), m.Sum("entrepot_cache_size_bytes"); blobs != float64(len(t.blobs)) || size != float64(t.size) {
		w.violation("the metrics tell of %g blobs with %g bytes, and the disk has %d with %d", blobs, size, len(t.blobs), t.size)
	}
	if t.size+t.parts > w.o.maxSize() {
		w.violation("the disk holds %d bytes and %d of parts, and %d are allowed", t.size, t.parts, w.o.maxSize())
	}
	ix, aside, err := index.Open(filepath.Join(p.Dir, "index.db"))
	if err != nil || aside != "" {
		w.violation("the index: %v %s", err, aside)
		return nil
	}
	defer ix.Close()
	known := map[digest.Digest]bool{}
	err = ix.Blobs(func(d digest.Digest, b index.Blob) bool {
		known[d] = true
		if st, ok := t.blobs[d]; !ok {
			w.violation("the index knows %s, and it is not on disk", d)
		} else if st != b.Stamp.Size {
			w.violation("the index says that %s has %d bytes, and it has %d", d, b.Stamp.Size, st)
		}
		return true
	})
	if err != nil {
		w.violation("the index: %v", err)
	}
	for d := range t.blobs {
		if !known[d] {
			w.violation("%s is on disk, and the index does not know it", d)
		}
	}
	w.report.disk = fmt.Sprintf("at the end %d blobs with %s, all hashed, as the index and the metrics say, and %s of parts", len(t.blobs), mib(t.size), mib(t.parts))
	return nil
}

// goroutines gives the stacks of the process.
func goroutines(p *proxy.Process) (string, error) {
	res, err := p.AdminClient().Get(p.AdminURL() + "/debug/pprof/goroutine?debug=1")
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b := make([]byte, 64<<10)
	n, _ := res.Body.Read(b) // as much as comes first is enough
	return string(b[:n]), nil
}

// tree is what a cache directory holds.
type tree struct {
	blobs map[digest.Digest]int64
	size  int64
	// parts is the size of what is not complete.
	parts int64
}

// inspect hashes all that stands under a digest's name in a cache directory that
// nobody uses.
func inspect(dir string) (*tree, error) {
	t := &tree{blobs: map[digest.Digest]int64{}}
	root := filepath.Join(dir, "blobs")
	var errs []error
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return err
		}
		alg := digest.Algorithm(strings.Split(filepath.ToSlash(rel), "/")[0])
		got, err := alg.FromReader(f)
		if err != nil {
			return err
		}
		if got.Encoded() != e.Name() {
			errs = append(errs, fmt.Errorf("%s holds %s", rel, got))
		}
		t.blobs[digest.NewDigestFromEncoded(alg, e.Name())] = st.Size()
		t.size += st.Size()
		return nil
	})
	files, err2 := os.ReadDir(filepath.Join(dir, "ingest"))
	for _, f := range files {
		if st, err := f.Info(); err == nil && !slices.Contains([]string{".json"}, filepath.Ext(f.Name())) {
			t.parts += st.Size()
		}
	}
	return t, errors.Join(append(errs, err, err2)...)
}
