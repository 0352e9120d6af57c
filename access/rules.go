package access

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/entrepot-dev/entrepot/oci"
)

// Rule says what some callers may or may not pull.
type Rule struct {
	// Name is how a refused client is told of the rule.
	Name string
	// Who lists the callers the rule is about: names with their source
	// ("user:alice"), groups ("group:NAME", "cert-group:NAME", "oidc-group:NAME"),
	// "anonymous", ranges of addresses, or "*". An empty list is everybody.
	Who []string
	// Upstreams are patterns of configured upstreams, and Repositories of full
	// names there; in both * stands for any run of characters and ? for any
	// one. None is all.
	Upstreams, Repositories []string
	// Allow makes it a rule of what may be pulled, and of nothing else: whoever
	// such a rule is about may pull only what one of theirs allows. Otherwise
	// what the rule matches may not be pulled, whatever else allows it.
	Allow bool
}

// Concerns reports whether the rule is about an upstream, or a part of it.
func (r *Rule) Concerns(upstream string) bool { return matchesAny(r.Upstreams, upstream) }

// rule is a Rule, parsed.
type rule struct {
	Rule
	everybody, anonymous bool
	names, groups        []string
	ranges               []netip.Prefix
}

// newRule parses r. It refuses a name without a source: such a name would match
// the callers of every source.
func newRule(r Rule) (rule, error) {
	read := rule{Rule: r, everybody: len(r.Who) == 0}
	for _, who := range r.Who {
		switch {
		case who == "*":
			read.everybody = true
		case who == Anonymous:
			read.anonymous = true
		case isTypedGroup(who):
			read.groups = append(read.groups, who)
		case isRange(who):
			p, err := ParsePrefix(who)
			if err != nil {
				return rule{}, fmt.Errorf("access rule %s: who: %w", r.Name, err)
			}
			read.ranges = append(read.ranges, p)
		case isTyped(who):
			read.names = append(read.names, who)
		default:
			return rule{}, fmt.Errorf("access rule %s: who: %q has no source in front; write user:%[2]s or the like", r.Name, who)
		}
	}
	return read, nil
}

// isTyped reports whether a word has the source of a name in front.
func isTyped(word string) bool {
	source, name, ok := strings.Cut(word, ":")
	return ok && name != "" && slices.Contains(sources, Source(source))
}

func isTypedGroup(word string) bool {
	return strings.HasPrefix(word, configuredGroup) || strings.HasPrefix(word, certificateGroup) || strings.HasPrefix(word, issuerGroup)
}

// isRange tells whether a word of who is meant as addresses: no name has a mask.
func isRange(who string) bool {
	if _, err := netip.ParseAddr(who); err == nil {
		return true
	}
	address, _, masked := strings.Cut(who, "/")
	_, err := netip.ParseAddr(address)
	return masked && err == nil
}

// isAbout reports whether a rule is about a caller at an address.
func (r *rule) isAbout(c *Caller, at netip.Addr) bool {
	if r.everybody || r.anonymous && c.IsAnonymous() || contains(r.ranges, at) {
		return true
	}
	if c.IsAnonymous() {
		return false
	}
	if slices.Contains(r.names, c.String()) {
		return true
	}
	for _, group := range r.groups {
		if slices.Contains(c.Groups, group) {
			return true
		}
	}
	return false
}

func (r *rule) matches(upstream, repository string) bool {
	return matchesAny(r.Upstreams, upstream) && matchesAny(r.Repositories, repository)
}

// Allow says whether a caller may pull from a repository: nil, or an *oci.Error
// that names the rule. It is DENIED, or UNAUTHORIZED where the caller is
// anonymous and could log in.
func (g *Guard) Allow(c *Caller, at netip.Addr, upstream, repository string) error {
	if len(g.rules) == 0 {
		return nil
	}
	only, allowed := "", false
	for i := range g.rules {
		r := &g.rules[i]
		if allowed && r.Allow || !r.isAbout(c, at) {
			continue
		}
		matches := r.matches(upstream, repository)
		switch {
		case !r.Allow && matches:
			return g.refuse(c, fmt.Sprintf("%s may not pull %s/%s here: rule %s denies it", c, upstream, repository, r.Name))
		case r.Allow && matches:
			allowed = true
		case r.Allow && only == "":
			only = r.Name
		}
	}
	if only == "" || allowed {
		return nil
	}
	return g.refuse(c, fmt.Sprintf("%s may not pull %s/%s here: no rule allows it, and rule %s allows %s other things only", c, upstream, repository, only, c))
}

func (g *Guard) refuse(c *Caller, message string) error {
	g.refused("rule")
	if c.IsAnonymous() && g.challenge != "" {
		return &oci.Error{Code: oci.CodeUnauthorized, Message: message + "; log in, if you may", Challenge: g.challenge}
	}
	return &oci.Error{Code: oci.CodeDenied, Message: message}
}

// matchesAny tells whether one of the patterns matches; none at all matches
// everything.
func matchesAny(patterns []string, s string) bool {
	if len(patterns) == 0 {
		return true
	}
	for _, p := range patterns {
		if matches(p, s) {
			return true
		}
	}
	return false
}

// matches tells whether s is a pattern's: * stands for any run of bytes, slashes
// included, ? for any one. It takes len(pattern) × len(s) steps at most.
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
