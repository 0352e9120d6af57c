package configs

import (
	"fmt"

	"github.com/goccy/go-yaml/scanner"
	"github.com/goccy/go-yaml/token"
)

const (
	// maxNesting bounds how deep lists and keys may lie in each other. The deepest key
	// of a configuration lies 6 deep.
	maxNesting = 100
	// maxTokens bounds the words and signs of a document. The parser takes some hundred
	// bytes of memory for each.
	maxTokens = 200_000
	// maxKeys bounds the keys of one mapping: the parser compares each with all others.
	maxKeys = 2000
	// maxDocuments bounds the documents of one text: the parser copies all that is left of the
	// text for each.
	maxDocuments = 10
	// maxEmptyLines bounds the empty lines in a row: the scanner copies a block text for each
	// that it ends with.
	maxEmptyLines = 100
)

// CheckYAML reports what would cost the YAML parser memory or time out of proportion: deep
// nesting, very many words and signs, keys of one mapping, documents or empty lines in a row,
// and more aliases than the given number. It returns nil, or one sentence, and the token it is
// about. Call it before text is parsed by goccy/go-yaml, whose own scanner it uses, so that both
// read the same. Its time and memory are linear in text.
func CheckYAML(text []byte, aliases int) (*token.Token, error) {
	if line := emptyLines(text); line > 0 {
		return &token.Token{Position: &token.Position{Line: line, Column: 1}}, fmt.Errorf("it has more than %d empty lines in a row", maxEmptyLines)
	}
	var s scanner.Scanner
	s.Init(string(text))
	n := nesting{}
	count, aliased, documents := 0, 0, 0
	for {
		tokens, err := s.Scan()
		if err != nil {
			return nil, nil // io.EOF; the parser reports anything else
		}
		for _, t := range tokens {
			if count++; count > maxTokens {
				return t, fmt.Errorf("it has more than %d words and signs", maxTokens)
			}
			if t.Type == token.AliasType {
				aliased++
			}
			if aliased > aliases {
				return t, fmt.Errorf("it has more than %d aliases", aliases)
			}
			if t.Type == token.DocumentHeaderType || t.Type == token.DocumentEndType {
				documents++
			}
			if documents > maxDocuments {
				return t, fmt.Errorf("it has more than %d documents; write only one", maxDocuments)
			}
			keys := n.read(t)
			if n.depth() > maxNesting {
				return t, fmt.Errorf("lists and keys lie more than %d deep in each other", maxNesting)
			}
			if keys > maxKeys {
				return t, fmt.Errorf("more than %d keys lie side by side", maxKeys)
			}
		}
	}
}

// emptyLines returns the number of the line by which text has more than maxEmptyLines lines in
// a row that have nothing but white space; 0 if there is none.
func emptyLines(text []byte) int {
	line, empty := 1, 0
	for i, c := range text {
		switch c {
		case ' ', '\t':
		case '\r', '\n':
			if c == '\r' && i+1 < len(text) && text[i+1] == '\n' {
				continue // the line ends with both
			}
			line++
			if empty++; empty > maxEmptyLines {
				return line
			}
		default:
			empty = 0
		}
	}
	return 0
}

// nesting is how deep the tokens read so far lie in each other.
type nesting struct {
	// flow are the open brackets and braces, blocks the open block lists and mappings, each
	// at a greater column than the one before.
	flow, blocks []level
	last         *token.Token
}

// level is a list or mapping that is open.
type level struct {
	// column is where a block begins.
	column int
	// keys counts those of a mapping so far.
	keys    int
	mapping bool // it is in braces
}

func (n *nesting) depth() int { return len(n.flow) + len(n.blocks) }

// read notes t, and returns how many keys the mapping has that t belongs to, as far as that
// is known by now.
func (n *nesting) read(t *token.Token) (keys int) {
	switch t.Type {
	case token.MappingStartType, token.SequenceStartType:
		n.flow = append(n.flow, level{mapping: t.Type == token.MappingStartType})
	case token.MappingEndType, token.SequenceEndType:
		n.flow = n.flow[:max(0, len(n.flow)-1)]
	case token.SequenceEntryType:
		n.open(t)
	case token.MappingKeyType:
		keys = n.key(t)
	case token.MappingValueType:
		keys = n.key(n.last)
	case token.CollectEntryType: // {a, b} has keys without values
		keys = n.key(nil)
	}
	n.last = t
	return keys
}

// key notes that a mapping has a key that begins with t, and returns how many it has.
func (n *nesting) key(t *token.Token) int {
	var l *level
	if len(n.flow) > 0 {
		if l = &n.flow[len(n.flow)-1]; !l.mapping {
			return 0
		}
	} else if n.open(t); len(n.blocks) > 0 {
		l = &n.blocks[len(n.blocks)-1]
	}
	if l == nil {
		return 0
	}
	l.keys++
	return l.keys
}

// open notes that a list or mapping has an entry that begins with t.
func (n *nesting) open(t *token.Token) {
	if len(n.flow) > 0 || t == nil || t.Position == nil {
		return
	}
	column := t.Position.Column
	for len(n.blocks) > 0 && n.blocks[len(n.blocks)-1].column > column {
		n.blocks = n.blocks[:len(n.blocks)-1]
	}
	if len(n.blocks) == 0 || n.blocks[len(n.blocks)-1].column < column {
		n.blocks = append(n.blocks, level{column: column})
	}
}
