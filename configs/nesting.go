package configs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

const (
	// MaxNesting bounds how deep the lists and mappings of a YAML file may lie in each other. The
	// deepest key of a configuration lies 6 deep. The parser itself stops at 10,000.
	MaxNesting = 100
	// maxSearch bounds the text in which syntaxError looks for a column, in bytes: it parses the
	// text about 20 times.
	maxSearch = 128 << 10
)

// Documents returns the first two documents of text that say something, nil for each that isn't
// there. The error is the parser's.
func Documents(text []byte) (first, second *yaml.Node, err error) {
	d := yaml.NewDecoder(bytes.NewReader(text))
	for second == nil {
		var n yaml.Node
		if err := d.Decode(&n); errors.Is(err, io.EOF) {
			return first, second, nil
		} else if err != nil {
			return nil, nil, err
		}
		body := &n
		if n.Kind == yaml.DocumentNode {
			body = n.Content[0]
		}
		switch {
		case body.Kind == 0 || body.ShortTag() == nullTag:
		case first == nil:
			first = body
		default:
			second = body
		}
	}
	return first, second, nil
}

// TooDeep returns the first list or mapping below n that lies more than MaxNesting deep, or nil.
// It doesn't follow aliases.
func TooDeep(n *yaml.Node) *yaml.Node { return tooDeep(n, 1) }

func tooDeep(n *yaml.Node, depth int) *yaml.Node {
	if n.Kind != yaml.MappingNode && n.Kind != yaml.SequenceNode {
		return nil
	}
	if depth > MaxNesting {
		return n
	}
	for _, c := range n.Content {
		if deep := tooDeep(c, depth+1); deep != nil {
			return deep
		}
	}
	return nil
}

// syntaxError is a parser's error with its place. Line and column count from 1; a column of 0
// is not known, nor is a line of 0.
type syntaxError struct {
	line, column int
	message      string
}

// explain finds out where the error is that Documents returned for text. The parser says at most a line,
// which may be that of the surrounding mapping. The place is the end of the shortest beginning of
// text that has the same error: where the parser stopped.
func explain(text []byte, err error) syntaxError {
	// The parser doesn't say where a quote or bracket begins if that is in the first line.
	above := 0
	if len(text) > 0 && text[0] < utf8.RuneSelf { // else it may have a byte order mark
		below := append([]byte("\n"), text...)
		if _, _, e := Documents(below); e != nil {
			text, err, above = below, e, 1
		}
	}
	e := syntaxError{message: strings.TrimPrefix(err.Error(), "yaml: ")}
	if line, message, ok := strings.Cut(strings.TrimPrefix(e.message, "line "), ": "); ok {
		if n, err := strconv.Atoi(line); err == nil {
			e.line, e.message = n, message
		}
	}
	fails := func(size int) bool {
		_, _, other := Documents(text[:size])
		return other != nil && other.Error() == err.Error()
	}
	if limit := min(len(text), maxSearch); fails(limit) {
		end := sort.Search(limit, fails)
		if end > 0 {
			end-- // the last byte that the parser took
		}
		for end > 0 && !utf8.RuneStart(text[end]) {
			end--
		}
		start := bytes.LastIndexByte(text[:end], '\n') + 1
		e.line, e.column = bytes.Count(text[:end], []byte("\n"))+1, utf8.RuneCount(text[start:end])+1
		if text[end] == '\t' && strings.Contains(e.message, "cannot start any token") {
			e.message = "found a tab character"
		}
	}
	e.line = max(e.line-above, 0)
	if name, ok := strings.CutPrefix(e.message, "unknown anchor '"); ok {
		// Without the name: it may be a password that begins with a star.
		e.message = "an alias has no anchor above it; put quotes around a text that begins with *"
		if name = strings.TrimSuffix(name, "' referenced"); e.column > utf8.RuneCountInString(name) {
			e.column -= utf8.RuneCountInString(name) // where the alias begins
		}
	}
	switch {
	case strings.Contains(e.message, "exceeded max depth"):
		e.message = tooDeepMessage
	case strings.HasPrefix(e.message, "found a tab character"):
		e.message += "; indent with spaces"
	case e.message == "did not find expected key":
		e.message += "; check how far this line is indented, and the brackets and quotes before it"
	case e.message == "mapping values are not allowed in this context":
		e.message = "a key is not allowed here; check how far this line is indented, and put quotes around a text that has a colon and a space"
	}
	return e
}

// SyntaxError describes an error that Documents returned for text, with its line and column, without
// quoting text.
func SyntaxError(text []byte, err error) string {
	e := explain(text, err)
	switch {
	case e.line == 0:
		return e.message
	case e.column == 0:
		return fmt.Sprintf("line %d: %s", e.line, e.message)
	}
	return fmt.Sprintf("line %d, column %d: %s", e.line, e.column, e.message)
}

// tooDeepMessage is what a person is told about a file that TooDeep refuses.
var tooDeepMessage = "lists and keys lie more than " + strconv.Itoa(MaxNesting) + " deep in each other"
