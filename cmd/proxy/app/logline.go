package app

import (
	"bytes"
	"fmt"
	"io"
	"unicode"
	"unicode/utf8"
)

// lines writes log lines, one for each Write, so that a stranger's words in them
// (a path, a user agent, an upstream's message) can neither begin a line of their
// own nor tell a terminal what to do. What is not printable is written as JSON
// does, \u001b: zap escapes so the control characters of ASCII, and of fields
// only; terminals listen to others too, and text can be made to run backwards.
type lines struct{ w io.Writer }

func (l lines) Write(p []byte) (int, error) {
	line, end := bytes.TrimSuffix(p, []byte("\n")), ""
	if len(line) < len(p) {
		end = "\n"
	}
	if isPlain(line) {
		return l.w.Write(p)
	}
	out := make([]byte, 0, len(p)+64)
	for rest := line; len(rest) > 0; {
		r, n := utf8.DecodeRune(rest)
		switch {
		case r == utf8.RuneError && n == 1:
			out = append(out, `\ufffd`...)
		case r == '\t' || unicode.IsPrint(r):
			out = append(out, rest[:n]...)
		case r > 0xffff:
			out = fmt.Appendf(out, `\u%04x\u%04x`, 0xd800+(r-0x10000)>>10, 0xdc00+(r-0x10000)&0x3ff)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		rest = rest[n:]
	}
	if _, err := l.w.Write(append(out, end...)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// isPlain tells whether line is printable ASCII and tabs, as almost all are.
func isPlain(line []byte) bool {
	for _, c := range line {
		if (c < ' ' || c > '~') && c != '\t' {
			return false
		}
	}
	return true
}
