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
)

// CheckYAML reports what would cost the YAML parser memory or time out of proportion:
// deep nesting, very many words and signs, and more aliases than the given number. It
// returns nil, or one sentence, and the token it is about. Call it before text is parsed by goccy/go-yaml, whose own scanner
// it uses, so that both read the same. Its time and memory are linear in text.
func CheckYAML(text []byte, aliases int) (*token.Token, error) {
	var s scanner.Scanner
	s.Init(string(text))
	n := nesting{}
	count, aliased := 0, 0
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
			if n.read(t); n.depth() > maxNesting {
				return t, fmt.Errorf("lists and keys lie more than %d deep in each other", maxNesting)
			}
		}
	}
}

// nesting is how deep the tokens read so far lie in each other.
type nesting struct {
	// flow counts open brackets and braces.
	flow int
	// columns are those where the open block lists and mappings begin, each greater
	// than the one before.
	columns []int
	last    *token.Token
}

func (n *nesting) depth() int { return n.flow + len(n.columns) }

func (n *nesting) read(t *token.Token) {
	switch t.Type {
	case token.MappingStartType, token.SequenceStartType:
		n.flow++
	case token.MappingEndType, token.SequenceEndType:
		n.flow = max(0, n.flow-1)
	case token.SequenceEntryType, token.MappingKeyType:
		n.open(t)
	case token.MappingValueType:
		n.open(n.last) // the key
	}
	n.last = t
}

// open notes that a list or mapping has an entry that begins with t.
func (n *nesting) open(t *token.Token) {
	if n.flow > 0 || t == nil || t.Position == nil {
		return
	}
	column := t.Position.Column
	for len(n.columns) > 0 && n.columns[len(n.columns)-1] > column {
		n.columns = n.columns[:len(n.columns)-1]
	}
	if len(n.columns) == 0 || n.columns[len(n.columns)-1] < column {
		n.columns = append(n.columns, column)
	}
}
