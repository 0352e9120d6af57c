package oci

import (
	"strings"
)

// IsMediaType tells whether b is type/subtype of RFC 9110 tokens, or a wildcard
// of them, of a bounded length: safe to be put into a header.
func IsMediaType[T string | []byte](b T) bool {
	if string(b) == "*" {
		return true
	}
	if len(b) > 255 {
		return false
	}
	slash := -1
	for i := range len(b) {
		switch c := b[i]; {
		case c == '/':
			if slash >= 0 {
				return false
			}
			slash = i
		case !isTokenByte(c):
			return false
		}
	}
	return slash > 0 && slash < len(b)-1
}

func isTokenByte(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}
