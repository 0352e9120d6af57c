package store

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// partKept is for how long a part is kept that nobody goes on with.
const partKept = 7 * 24 * time.Hour

// sweep removes what an earlier process has left among the parts and what nobody
// will use: temporary files, parts without a note of what is in them, and those
// that have waited for partKept, as has what was being taken in. It runs before there are parts of this process.
// What can not be removed stays: it takes room, no more.
func (s *Store) sweep(now time.Time) {
	dir := filepath.Join(s.dir, ingestDir)
	files, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	kept := map[string]bool{}     // parts, by their name without its extension
	incoming := map[string]bool{} // files of what was being taken in
	for _, f := range files {
		if base, ok := strings.CutSuffix(f.Name(), incomingSuffix); ok {
			if st, err := f.Info(); err == nil && now.Sub(st.ModTime()) <= partKept && digestOf(base) != "" {
				incoming[f.Name()] = true
			}
			continue
		}
		base, noted := strings.CutSuffix(f.Name(), noteSuffix)
		whole := false
		if !noted {
			if base, whole = strings.CutSuffix(f.Name(), wholeSuffix); !whole {
				continue
			}
		}
		st, err := f.Info()
		if err != nil || now.Sub(st.ModTime()) > partKept {
			continue
		}
		if whole || s.hasPart(base) {
			kept[base] = true
		}
	}
	for _, f := range files {
		base, ext, _ := strings.Cut(f.Name(), ".")
		if f.Type().IsRegular() && !incoming[f.Name()] && !(kept[base] && slices.Contains([]string{partSuffix, wholeSuffix, noteSuffix}, "."+ext)) {
			_ = os.Remove(filepath.Join(dir, f.Name()))
		}
	}
}
