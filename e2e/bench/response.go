package main

import (
	"bytes"
	"errors"
	"strconv"
)

// head is what the load client reads of a response's head.
type head struct {
	status int
	// length is the body's, from Content-Length.
	length int64
	// size is the head's own, the empty line included.
	size int
}

// maxHead bounds a response's head.
const maxHead = 16 << 10

var (
	errNoHead   = errors.New("no HTTP/1.1 response")
	errLongHead = errors.New("a response's head without an end")
	errNoLength = errors.New("a response without a Content-Length")
)

var (
	headEnd       = []byte("\r\n\r\n")
	statusPrefix  = []byte("HTTP/1.1 ")
	contentLength = []byte("content-length:")
)

// parseHead reads a response's head at the beginning of b; ok is false where it
// is not all there yet. It allocates nothing.
func parseHead(b []byte) (h head, ok bool, err error) {
	end := bytes.Index(b, headEnd)
	if end < 0 {
		if len(b) >= maxHead {
			return h, false, errLongHead
		}
		return h, false, nil
	}
	h.size = end + len(headEnd)
	b = b[:end+2]
	if !bytes.HasPrefix(b, statusPrefix) || len(b) < len(statusPrefix)+3 {
		return h, false, errNoHead
	}
	for _, c := range b[len(statusPrefix) : len(statusPrefix)+3] {
		if c < '0' || c > '9' {
			return h, false, errNoHead
		}
		h.status = 10*h.status + int(c-'0')
	}
	h.length = -1
	for {
		eol := bytes.IndexByte(b, '\n')
		if eol < 0 {
			break
		}
		b = b[eol+1:]
		// Few lines begin with a c: the rest is looked at no further.
		if len(b) > len(contentLength) && b[0]|0x20 == 'c' && bytes.EqualFold(b[:len(contentLength)], contentLength) {
			line := b[len(contentLength):]
			line = bytes.TrimSpace(line[:max(bytes.IndexByte(line, '\n'), 0)])
			if h.length, err = strconv.ParseInt(string(line), 10, 64); err != nil || h.length < 0 {
				return h, false, errNoLength
			}
			return h, true, nil
		}
	}
	return h, false, errNoLength
}
