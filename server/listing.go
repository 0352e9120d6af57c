package server

import (
	"encoding/json"
	"hash/maphash"
)

// listing is a JSON document with a list in it: the items, with commas between them,
// between head and tail.
type listing struct {
	head, tail string
	n          int
	// item appends the i-th item to b.
	item func(b []byte, i int) []byte
}

// stringsOf is a listing of strings.
func stringsOf(head string, list []string, tail string) listing {
	return listing{head: head, tail: tail, n: len(list), item: func(b []byte, i int) []byte { return appendString(b, list[i]) }}
}

// measure gives the size of the document and a hash of it, without making it.
func (l listing) measure(seed maphash.Seed) (size int64, sum uint64) {
	var h maphash.Hash
	h.SetSeed(seed)
	_, _ = h.WriteString(l.head) // no write fails
	size = int64(len(l.head) + len(l.tail))
	var b []byte
	for i := range l.n {
		if i > 0 {
			size++
		}
		b = l.item(b[:0], i)
		size += int64(len(b))
		_, _ = h.Write(b)
		_ = h.WriteByte(0) // no item has it
	}
	_, _ = h.WriteString(l.tail)
	return size, h.Sum64()
}

// render makes the document, of size bytes.
func (l listing) render(size int64) []byte {
	b := append(make([]byte, 0, size), l.head...)
	for i := range l.n {
		if i > 0 {
			b = append(b, ',')
		}
		b = l.item(b, i)
	}
	return append(b, l.tail...)
}

// appendString appends s as JSON, as encoding/json does.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			quoted, _ := json.Marshal(s) // a string cannot fail
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}
