package configs

import (
	"fmt"
	"slices"
	"strings"
)

// hubName is the upstream whose names all have a namespace: "nginx" is
// "library/nginx" there, and no namespace has a dot, so that it isn't taken for a host.
const hubName = "docker.io"

// matchNothing is the one pattern of an allow rule that may match nothing: it takes
// everything from everybody, and further rules give some of it back.
const matchNothing = "-"

// maxName is the longest repository name.
const maxName = 255

// checkRules reports rules that cannot be meant. Each pattern has to match a
// repository name that can occur: a deny rule that matches nothing protects nothing,
// and nobody would notice.
func (l *loader) checkRules(rules []AccessRule) {
	for i, r := range rules {
		if l.isFull() {
			return
		}
		key := fmt.Sprintf("access[%d]", i)
		l.checkWord(key+".action", r.Action, "allow", "deny")
		upstreams := l.checkRuleUpstreams(key+".upstreams", r.Upstreams)
		for j, pattern := range r.Repositories {
			if l.isFull() {
				return
			}
			if pattern == matchNothing && r.Action == "allow" {
				continue
			}
			if why := l.deadPattern(r, pattern, upstreams); why != "" {
				l.reportKey(fmt.Sprintf("%s.repositories[%d]", key, j), "%q %s", pattern, why)
			}
		}
	}
}

// checkRuleUpstreams reports patterns that match no configured upstream. It returns
// those that the others match.
func (l *loader) checkRuleUpstreams(key string, patterns []string) []string {
	all := names(l.cfg.Upstreams)
	if len(patterns) == 0 {
		return all
	}
	var covered []string
	for i, p := range patterns {
		if l.isFull() {
			return all
		}
		matching := slices.DeleteFunc(slices.Clone(all), func(name string) bool { return !matches(p, name) })
		covered = append(covered, matching...)
		if len(matching) > 0 || l.cfg.FamilyOf(p) != "" {
			continue
		}
		k := fmt.Sprintf("%s[%d]", key, i)
		host, rest, path := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(p, "https://"), "http://"), "/")
		host = strings.ToLower(strings.TrimSpace(host))
		switch owner := l.ownerOf(host); {
		case p == "":
			l.reportKey(k, "%q matches nothing", p)
		case owner != "" && path && rest != "":
			l.reportKey(k, "%q is not among the upstreams; write %s here, and %s in repositories", p, owner, rest)
		case owner != "":
			l.reportKey(k, "%q is not among the upstreams; write %s", p, owner)
		default:
			l.reportKey(k, "%q is not among the upstreams; %s", p, didYouMean(p, all))
		}
	}
	slices.Sort(covered)
	return slices.Compact(covered)
}

// ownerOf returns the upstream that has a name or an alias; empty if none has it.
func (l *loader) ownerOf(name string) string { return l.look().owners[name] }

// deadPattern says why a pattern cannot match what r is about; empty means that it
// can. upstreams are those that r covers.
func (l *loader) deadPattern(r AccessRule, pattern string, upstreams []string) string {
	first, rest, more := strings.Cut(pattern, "/")
	switch host := strings.ToLower(strings.TrimRight(first, "*")); {
	case pattern == "":
		return "matches nothing; \"*\" matches everything"
	case strings.Contains(pattern, "://"):
		return "is a URL; write the repository's name without scheme and host, and the host in upstreams"
	case host != "" && l.isRegistry(host):
		// More precisely "docker.io*" could match a name; nobody means it.
		if !more {
			rest = "*"
		}
		return fmt.Sprintf("begins with a registry; write upstreams: [%s], repositories: [%q]", l.nameOf(host), rest)
	}
	if canMatch(pattern, "") {
		return l.deadAtHub(r, pattern, upstreams)
	}
	// It matches no name at all. Look for one that it could stand for.
	plain, _, digest := strings.Cut(pattern, "@")
	if slash := strings.LastIndexByte(plain, '/'); strings.LastIndexByte(plain, ':') > slash {
		plain, digest = plain[:strings.LastIndexByte(plain, ':')], true
	}
	lower := strings.ToLower(strings.TrimSpace(plain))
	trimmed := strings.Trim(lower, "/")
	switch {
	case strings.ContainsAny(pattern, "[]{}()^$|+\\"):
		return "matches no repository: * (any characters) and ? (any one) are the only wildcards"
	case strings.ContainsAny(pattern, ","):
		return "matches no repository; write each pattern as an item of its own"
	case digest && trimmed != "" && canMatch(trimmed, ""):
		return fmt.Sprintf("matches no repository: it has a tag or digest, and rules are about whole repositories; write %q", l.full(trimmed, upstreams))
	case strings.HasSuffix(lower, "/") && canMatch(trimmed, ""):
		return fmt.Sprintf("matches no repository, because no name ends with a slash; write %q", trimmed+"/*")
	case trimmed != plain && canMatch(trimmed, ""):
		return fmt.Sprintf("matches no repository; write %q", l.full(trimmed, upstreams))
	}
	return "matches no repository: names have at most 255 lower-case letters and digits, in parts joined by '.', '_', '__' or '-' and separated by '/'"
}

// deadAtHub says why a pattern that matches some names does not match those of Docker
// Hub, if r is about it. A deny rule has to match at each upstream that it covers; an
// allow rule that names its upstreams, at one of them.
func (l *loader) deadAtHub(r AccessRule, pattern string, upstreams []string) string {
	if !slices.Contains(upstreams, hubName) || canMatch(pattern, hubName) {
		return ""
	}
	others := slices.DeleteFunc(slices.Clone(upstreams), func(name string) bool { return name == hubName })
	if r.Action == "allow" && len(r.Upstreams) > 0 && len(others) > 0 {
		return ""
	}
	if first, rest, more := strings.Cut(pattern, "/"); more {
		return fmt.Sprintf("matches nothing at docker.io, where no namespace has a dot; write upstreams: [%s], repositories: [%q] if %[1]s is a registry", first, rest)
	}
	why := fmt.Sprintf("matches nothing at docker.io, where names have a namespace; write %q for an official image, \"*/%s\" for any namespace", "library/"+pattern, pattern)
	if len(others) > 0 {
		why += ", and a rule of its own with upstreams for registries where the name stands alone"
	}
	return why
}

// full adds the namespace that official images have if upstreams is Docker Hub alone.
func (l *loader) full(name string, upstreams []string) string {
	if len(upstreams) == 1 && upstreams[0] == hubName && !strings.ContainsAny(name, "/*") {
		return "library/" + name
	}
	return name
}

// isRegistry reports whether a name's first part is that of a registry: a configured
// one, a built-in one, or what only a host can look like.
func (l *loader) isRegistry(host string) bool {
	if l.look().registries[host] {
		return true
	}
	name, port, found := strings.Cut(host, ":")
	return found && strings.Contains(name+".", ".") && port != "" && strings.Trim(port, "0123456789") == "" && (strings.Contains(name, ".") || name == "localhost")
}

// nameOf returns the upstream that host stands for, or host.
func (l *loader) nameOf(host string) string {
	if owner := l.ownerOf(host); owner != "" {
		return owner
	}
	return host
}

// canMatch reports whether a pattern matches any repository name of at most maxName
// bytes, at Docker Hub or, if upstream is empty, at some other registry. It walks the
// pattern and the grammar of names side by side, so the answer is exact.
func canMatch(pattern, upstream string) bool {
	for strings.Contains(pattern, "**") {
		pattern = strings.ReplaceAll(pattern, "**", "*")
	}
	if len(pattern) > 2*maxName+1 {
		return false // more than maxName characters beside the stars
	}
	type place struct {
		pattern int
		name    nameState
	}
	hub := upstream == hubName
	seen := map[place]bool{{}: true}
	reached := []place{{}}
	for length := 0; length <= maxName && len(reached) > 0; length++ {
		for i := 0; i < len(reached); i++ { // it grows: a star may stand for nothing
			s := reached[i]
			if s.pattern == len(pattern) {
				if s.name.ends(hub) {
					return true
				}
				continue
			}
			if to := (place{s.pattern + 1, s.name}); pattern[s.pattern] == '*' && !seen[to] {
				seen[to] = true
				reached = append(reached, to)
			}
		}
		var next []place
		for _, s := range reached {
			if s.pattern == len(pattern) {
				continue
			}
			p := pattern[s.pattern]
			for _, c := range []byte("a._-/") { // a is any letter or digit
				if p != '*' && p != '?' && c != p && (c != 'a' || !isAlphanumeric(p)) {
					continue
				}
				name, ok := s.name.next(c, hub)
				if !ok {
					continue
				}
				to := place{s.pattern, name}
				if p != '*' {
					to.pattern++
				}
				if !seen[to] {
					seen[to] = true
					next = append(next, to)
				}
			}
		}
		reached = next
	}
	return false
}

func isAlphanumeric(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

// nameState is how far a repository name has been read, by the grammar of the
// distribution-spec: components [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)* separated by slashes.
type nameState struct {
	// last is 'a' after a letter or digit, else the separator that was read last;
	// zero at the beginning.
	last byte
	// twice is set after the second of two underscores.
	twice bool
	// slashed is set after the first slash.
	slashed bool
}

func (s nameState) ends(hub bool) bool { return s.last == 'a' && (s.slashed || !hub) }

// next reads one more byte of the classes "a._-/".
func (s nameState) next(c byte, hub bool) (nameState, bool) {
	n := nameState{last: c, slashed: s.slashed || c == '/'}
	switch c {
	case 'a':
		return n, true
	case '-':
		return n, s.last == 'a' || s.last == '-'
	case '_':
		n.twice = s.last == '_'
		return n, s.last == 'a' || s.last == '_' && !s.twice
	case '.':
		return n, s.last == 'a' && (s.slashed || !hub)
	}
	return n, s.last == 'a'
}

// Matches reports whether a pattern of repositories matches s.
func Matches(pattern, s string) bool { return matches(pattern, s) }

// matches reports whether a pattern of a rule matches s, as access does.
func matches(pattern, s string) bool {
	p, i, star, from := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			from++
			p, i = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
