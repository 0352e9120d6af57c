package access

import (
	"os"
	"time"
)

// stamp is what tells one version of a file from the next.
type stamp struct {
	modified time.Time
	size     int64
	file     os.FileInfo
}

// watched are files that may be replaced or rewritten at any time, as editors,
// certbot and Kubernetes do. It is for one goroutine at a time.
type watched struct {
	paths []string
	last  []stamp
}

// changed tells whether any of the files is another than at the last call. The
// first call says yes. A file that is not there counts as one, too.
func (w *watched) changed() bool {
	first := w.last == nil
	if first {
		w.last = make([]stamp, len(w.paths))
	}
	changed := first
	for i, path := range w.paths {
		var now stamp
		if st, err := os.Stat(path); err == nil {
			now = stamp{st.ModTime(), st.Size(), st}
		}
		last := w.last[i]
		same := now.modified.Equal(last.modified) && now.size == last.size &&
			(now.file == nil) == (last.file == nil) && (now.file == nil || os.SameFile(now.file, last.file))
		if !same {
			w.last[i], changed = now, true
		}
	}
	return changed
}
