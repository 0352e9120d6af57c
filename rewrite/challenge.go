package rewrite

import "strings"

// Challenge is one challenge out of WWW-Authenticate (RFC 9110, section 11.6.1).
type Challenge struct {
	// Scheme is in lower case: "bearer", "basic".
	Scheme string
	// Params has its names in lower case. Where a name comes more than once
	// the first value counts, but for scope: scopes are joined by a space, as
	// they stand for several.
	Params map[string]string
}

// What is read of a stranger's challenges. Real ones are a few hundred bytes.
const (
	maxChallengeBytes  = 16 << 10
	maxChallenges      = 16
	maxChallengeParams = 32
)

// Challenges reads the values of all WWW-Authenticate headers of a response,
// each of which may hold several challenges. What can not be read ends its
// header: the challenges before it are still given. It never fails, for an
// answer whose challenge is unreadable is one without a challenge.
func Challenges(headers []string) []Challenge {
	var all []Challenge
	room := maxChallengeBytes
	for _, h := range headers {
		if len(h) > room {
			break
		}
		room -= len(h)
		all = (&challengeReader{rest: h}).read(all)
	}
	return all
}

// challengeReader walks one header. A comma parts both challenges and the
// parameters of one, so a name is known to be a scheme only by what follows it.
type challengeReader struct{ rest string }

func (r *challengeReader) read(all []Challenge) []Challenge {
	open := -1 // the index of the challenge that a parameter belongs to
	for {
		r.skip(" \t,")
		name := r.token()
		if name == "" {
			return all
		}
		spaced := r.skip(" \t")
		if r.next('=') {
			if open < 0 {
				return all
			}
			r.skip(" \t")
			value, ok := r.value()
			if !ok {
				return all
			}
			all[open].add(strings.ToLower(name), value)
			continue
		}
		if len(all) == maxChallenges {
			return all
		}
		all = append(all, Challenge{Scheme: strings.ToLower(name), Params: map[string]string{}})
		open = len(all) - 1
		if spaced {
			r.token68()
		}
	}
}

func (c *Challenge) add(name, value string) {
	old, have := c.Params[name]
	switch {
	case !have && len(c.Params) < maxChallengeParams:
		c.Params[name] = value
	case have && name == "scope" && value != "":
		c.Params[name] = strings.TrimSpace(old + " " + value)
	}
}

// skip passes over any of set and tells whether there was one.
func (r *challengeReader) skip(set string) bool {
	trimmed := strings.TrimLeft(r.rest, set)
	some := len(trimmed) != len(r.rest)
	r.rest = trimmed
	return some
}

func (r *challengeReader) next(c byte) bool {
	if r.rest == "" || r.rest[0] != c {
		return false
	}
	r.rest = r.rest[1:]
	return true
}

// token reads a token of RFC 9110, section 5.6.2; empty if there is none.
func (r *challengeReader) token() string {
	n := 0
	for n < len(r.rest) && isChallengeToken(r.rest[n]) {
		n++
	}
	t := r.rest[:n]
	r.rest = r.rest[n:]
	return t
}

// token68 passes over the one unnamed value that a scheme may have instead of
// parameters (Negotiate). It is of no use to us.
func (r *challengeReader) token68() {
	n := 0
	for n < len(r.rest) && (isChallengeToken(r.rest[n]) || r.rest[n] == '/') {
		n++
	}
	if n == 0 {
		return
	}
	for n < len(r.rest) && r.rest[n] == '=' {
		n++
	}
	after := strings.TrimLeft(r.rest[n:], " \t")
	if after == "" || after[0] == ',' {
		r.rest = after
	}
}

// value reads a token or a quoted string. Some registries leave the quotes out
// around values that need them, so an unquoted value reaches to the next comma.
func (r *challengeReader) value() (string, bool) {
	if !r.next('"') {
		v, rest, _ := strings.Cut(r.rest, ",")
		r.rest = rest
		return strings.TrimRight(v, " \t"), true
	}
	var b strings.Builder
	for i := 0; i < len(r.rest); i++ {
		switch c := r.rest[i]; c {
		case '"':
			r.rest = r.rest[i+1:]
			return b.String(), true
		case '\\':
			if i++; i == len(r.rest) {
				return "", false
			}
			b.WriteByte(r.rest[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}

func isChallengeToken(c byte) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		return true
	}
	return strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}
