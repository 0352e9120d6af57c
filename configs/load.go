package configs

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// Source says what a configuration is made of. What stands further down wins:
// the defaults, the file, the environment, the flags.
type Source struct {
	// File is the path of a YAML file; empty for none.
	File string
	// Environ are "NAME=value" pairs as os.Environ gives them. Only names that
	// begin with ENTREPOT_ count.
	Environ []string
	// Flags are values from the command line.
	Flags []Flag
}

// Flag is one value from the command line.
type Flag struct {
	// Name is the flag as it was typed, for messages: "--listen".
	Name string
	// Key is the path of the key that it sets: "listen".
	Key   string
	Value string
}

// maxFileSize bounds how much of a file is read: a wrong path, a device or an
// image archive, must not fill the memory.
const maxFileSize = 1 << 20

// Load makes a Config out of its sources. An error that is the configuration's
// own fault is an *Error that holds all that was found.
func Load(src Source) (*Config, error) {
	cfg, err := LoadPartly(src)
	if err != nil {
		return nil, err
	}
	return cfg, nil
}

// LoadPartly is Load that also returns what it could read of a configuration that is wrong:
// for who has to find a running proxy, whose address and directory may still be right. The
// Config is never nil. Nothing is to be served with it if there is an error.
func LoadPartly(src Source) (*Config, error) {
	l := &loader{file: src.File, cfg: Default(), where: map[string]place{}}
	var unread error
	known := true
	if src.File != "" {
		var text []byte
		if text, unread = readFile(src.File); unread == nil {
			if known = l.readYAML(text); !known {
				l.readBlocks(text)
			}
		}
	}
	l.readEnviron(src.Environ)
	l.readFlags(src.Flags)
	l.complete()
	if unread != nil {
		return l.cfg, unread
	}
	if known { // else what fits together is not known
		l.validate()
	}
	if len(l.problems) > 0 {
		slices.SortStableFunc(l.problems, func(a, b located) int { return cmp.Compare(a.line, b.line) })
		e := &Error{More: l.more > 0}
		for _, p := range l.problems {
			e.Problems = append(e.Problems, p.Problem)
		}
		return l.cfg, e
	}
	return l.cfg, nil
}

// blockKeys are the keys at the top by which a running proxy is found.
var blockKeys = []string{"listen:", "tls:", "admin:", "cache:"}

// readBlocks reads blockKeys out of a text that is not YAML as a whole: each with the
// indented lines below it, on its own. What is wrong with them is not told, because that
// is told of the whole.
func (l *loader) readBlocks(text []byte) {
	var block []byte
	read := func() {
		for _, key := range blockKeys {
			if bytes.HasPrefix(block, []byte(key)) {
				part := &loader{file: l.file, cfg: l.cfg, where: map[string]place{}}
				part.readYAML(block)
			}
		}
	}
	for line := range bytes.Lines(text) {
		if c := line[0]; c != ' ' && c != '\t' && c != '#' && c != '\n' && c != '\r' {
			read()
			block = nil
		}
		block = append(block, line...)
	}
	read()
}

// loader is one run of Load.
type loader struct {
	file string
	cfg  *Config
	// where tells for the path of each key that was set who set it.
	where    map[string]place
	problems []located
	// more counts the problems beyond maxProblems, which are not kept.
	more int
	// known is what bindNames and checkRules look up again and again.
	known *known
}

const (
	// maxProblems bounds the problems that are kept in one run.
	maxProblems = 100
	// maxMessage bounds what a problem says of a value, in bytes.
	maxMessage = 1000
)

// isFull reports whether further problems would not be kept.
func (l *loader) isFull() bool { return len(l.problems) >= maxProblems }

// place is where a value comes from.
type place struct {
	text string
	// line is that of the file; later sources have lines beyond any file's.
	line int
}

// Lines of what is not in the file, so that problems are told in the order of
// the sources.
const (
	lineEnviron = 1<<30 + iota
	lineFlag
	lineDefault
)

// located is a problem that knows its place in the order of all.
type located struct {
	Problem
	line int
}

// report notes a problem at a place.
func (l *loader) report(at place, key, format string, args ...any) {
	if l.isFull() {
		l.more++
		return
	}
	l.problems = append(l.problems, located{
		Problem: Problem{Where: at.text, Key: clip(key), Message: clip(fmt.Sprintf(format, args...))},
		line:    at.line,
	})
}

// clip cuts the middle out of a text that is longer than maxMessage.
func clip(text string) string {
	if len(text) <= maxMessage {
		return text
	}
	head, tail := text[:maxMessage/2], text[len(text)-maxMessage/2:]
	return strings.ToValidUTF8(head, "") + "…" + strings.ToValidUTF8(tail, "")
}

// reportKey notes a problem with the value of a key, wherever it was set.
func (l *loader) reportKey(key, format string, args ...any) {
	l.report(l.placeOf(key), key, format, args...)
}

// placeOf tells who set a key, or else who set the nearest key around it.
func (l *loader) placeOf(key string) place {
	for k := key; k != ""; k = parentKey(k) {
		if at, ok := l.where[k]; ok {
			return at
		}
	}
	return place{text: "default", line: lineDefault}
}

// complete fills in what the sources left open and the defaults can not know.
func (l *loader) complete() {
	if l.cfg.Cache.Dir == "" {
		dir, err := defaultDir(systemDir, os.UserCacheDir)
		if err != nil {
			l.reportKey("cache.dir", "%v", err)
		}
		l.cfg.Cache.Dir = dir
	}
	for _, u := range l.cfg.Upstreams {
		if n := len(u.Tags); n == 0 || u.Tags[n-1].Match != "*" {
			u.Tags = append(u.Tags, DefaultTagRule())
		}
	}
}

// readFile reads a configuration file whole. It is an error if that has more than maxFileSize
// bytes, of which no more are read.
func readFile(path string) ([]byte, error) {
	switch st, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("configuration file %s does not exist; give another with --config, or none to run with the defaults", path)
	case err != nil:
		return nil, fmt.Errorf("configuration file: %w", err)
	case st.IsDir():
		return nil, fmt.Errorf("configuration file %s is a directory; give the path of a YAML file", path)
	}
	f, err := os.Open(path) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	defer f.Close()
	// Devices and pipes have no size, and may have no end.
	text, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	if len(text) > maxFileSize {
		return nil, fmt.Errorf("configuration file %s is too large: at most %d bytes are read", path, maxFileSize)
	}
	// Some editors put a byte order mark first, which nobody sees.
	return bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")), nil
}
