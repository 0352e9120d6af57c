package images

import (
	"bytes"
	"strings"
)

// readList reads a reference on each line. A comment begins with #, at the start of a
// line or after a space.
func (f *Found) readList(text []byte) error {
	line := 0
	for b := range bytes.Lines(text) {
		line++
		s := strings.TrimSpace(string(b))
		if i := strings.IndexByte(s, '#'); i == 0 || i > 0 && (s[i-1] == ' ' || s[i-1] == '\t') {
			s = strings.TrimSpace(s[:i])
		}
		if s == "" {
			continue
		}
		if err := f.add(line, s, ""); err != nil {
			return err
		}
	}
	return nil
}
