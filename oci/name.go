package oci

import (
	"strings"
)

// MaxName is the longest repository name in bytes; many clients limit host and
// name together to this (distribution-spec, "Pulling manifests").
const MaxName = 255

// CheckName tells, as NAME_INVALID, why name is no repository's name by the
// distribution-spec's grammar; nil where it is one.
func CheckName(name string) error {
	if len(name) > MaxName {
		return Errorf(CodeNameInvalid, "repository name %s has %d characters; at most %d are allowed", Quote(name), len(name), MaxName)
	}
	for rest, more := name, true; more; {
		var component string
		component, rest, more = strings.Cut(rest, "/")
		if !isComponent(component) {
			return Errorf(CodeNameInvalid, "%s is no repository name: parts of lower-case letters and digits, "+
				"joined by single '.', '_', '__' or '-', are separated by '/'", Quote(name))
		}
	}
	return nil
}

// isComponent is the grammar [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*.
func isComponent(s string) bool {
	separators := 0 // the length of the run of separators before s[i]
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z' || '0' <= c && c <= '9':
			separators = 0
			continue
		case i == 0:
			return false
		case c == '-' && (separators == 0 || s[i-1] == '-'):
		case c == '_' && (separators == 0 || separators == 1 && s[i-1] == '_'):
		case c == '.' && separators == 0:
		default:
			return false
		}
		separators++
	}
	return s != "" && separators == 0
}

// IsTag is the grammar [a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}.
func IsTag(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_':
		case i > 0 && (c == '.' || c == '-'):
		default:
			return false
		}
	}
	return s != "" && len(s) <= 128
}

// IsHost tells whether s can be the name of a registry: a host name or address
// with or without a port, in lower case.
func IsHost(s string) bool {
	host, port, hasPort := strings.Cut(s, ":")
	if strings.HasPrefix(s, "[") { // [2001:db8::1]:5000
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return false
		}
		for _, c := range s[1:end] {
			if !strings.ContainsRune("0123456789abcdef:.", c) {
				return false
			}
		}
		host = "x"
		port, hasPort = strings.CutPrefix(s[end+1:], ":")
		if !hasPort && s[end+1:] != "" {
			return false
		}
	}
	if hasPort && (port == "" || len(port) > 5 || strings.Trim(port, "0123456789") != "") {
		return false
	}
	if host == "" || len(s) > MaxName {
		return false
	}
	for i := range len(host) {
		c := host[i]
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '_':
		case (c == '-' || c == '.') && i > 0 && i < len(host)-1 && host[i-1] != '.':
		default:
			return false
		}
	}
	return true
}
