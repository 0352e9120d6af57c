package images

import (
	"fmt"
	"strings"
)

// expander fills in variables as Compose and Dockerfiles write them.
type expander struct {
	env func(string) (string, bool)
	// problem is the first reason why a text can not be filled in.
	problem string
}

func (e *expander) fail(format string, args ...any) string {
	if e.problem == "" {
		e.problem = fmt.Sprintf(format, args...)
	}
	return ""
}

// maxExpanded bounds what becomes of a text, for a variable may hold others by the
// thousand.
const maxExpanded = 4096

// expand fills in $NAME, ${NAME}, and of ${NAME:-default} and its like the part that
// counts; $$ is a dollar.
func (e *expander) expand(s string, depth int) string {
	if depth > 16 {
		return e.fail("its variables lie more than 16 deep in each other")
	}
	var b strings.Builder
	for s != "" && e.problem == "" && b.Len() <= maxExpanded {
		i := strings.IndexByte(s, '$')
		if i < 0 {
			b.WriteString(s)
			break
		}
		b.WriteString(s[:i])
		s = s[i+1:]
		switch {
		case strings.HasPrefix(s, "$"):
			b.WriteByte('$')
			s = s[1:]
		case strings.HasPrefix(s, "{"):
			end := closing(s)
			if end < 0 {
				return e.fail("a ${ is not closed")
			}
			b.WriteString(e.braced(s[1:end], depth))
			s = s[end+1:]
		default:
			n := nameLength(s)
			if n == 0 {
				return e.fail("a $ stands before what is no variable")
			}
			b.WriteString(e.braced(s[:n], depth))
			s = s[n:]
		}
	}
	if b.Len() > maxExpanded {
		return e.fail("with its variables it has more than %d bytes", maxExpanded)
	}
	return b.String()
}

// closing gives where the brace that s begins with is closed, or -1.
func closing(s string) int {
	open := 0
	for i := range len(s) {
		switch s[i] {
		case '{':
			open++
		case '}':
			if open--; open == 0 {
				return i
			}
		}
	}
	return -1
}

// nameLength gives how long the name of a variable is that s begins with.
func nameLength(s string) int {
	for i := range len(s) {
		c := s[i]
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return i
		}
	}
	return len(s)
}

// braced gives what stands for what was in the braces.
func (e *expander) braced(s string, depth int) string {
	n := nameLength(s)
	name, op := s[:n], s[n:]
	if name == "" {
		return e.fail("${%s} names no variable", cut(s))
	}
	v, set := "", false
	if e.env != nil {
		v, set = e.env(name)
	}
	full := set
	if strings.HasPrefix(op, ":") {
		op, full = op[1:], set && v != ""
	}
	switch {
	case op == "" && len(s) == n:
		if !set {
			return e.fail("the variable %s is not set, and has no default", name)
		}
		return v
	case strings.HasPrefix(op, "-"):
		if full {
			return v
		}
		return e.expand(op[1:], depth+1)
	case strings.HasPrefix(op, "?"):
		if full {
			return v
		}
		return e.fail("the variable %s is not set: %s", name, cut(op[1:]))
	case strings.HasPrefix(op, "+"):
		if full {
			return e.expand(op[1:], depth+1)
		}
		return ""
	}
	return e.fail("${%s} is not understood", cut(s))
}
