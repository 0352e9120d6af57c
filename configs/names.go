package configs

import (
	"fmt"
	"slices"
	"strings"
)

// source is one way to know clients, and the names that it can give them.
type source struct {
	// prefix stands before its names in rules and groups: "net:".
	prefix string
	// what says whose name it is, for messages: "a network of auth.networks".
	what string
	// key is what sets it.
	key string
	set bool
	// names are all that it can give; any means that it can give every name.
	names []string
	index map[string]bool
	any   bool
}

// known is what rules and groups may name.
type known struct {
	sources, groupSources []source
	// groups are the names of auth.groups.
	groups     []string
	groupIndex map[string]bool
	// owners gives the upstream of each name and alias; registries are these and the
	// built-in ones.
	owners     map[string]string
	registries map[string]bool
}

// look collects what rules and groups may name, once.
func (l *loader) look() *known {
	if l.known != nil {
		return l.known
	}
	k := &known{sources: l.sources(), groupSources: l.groupSources(), groupIndex: map[string]bool{}, owners: map[string]string{}, registries: map[string]bool{"localhost": true}}
	for _, g := range l.cfg.Auth.Groups {
		k.groups = append(k.groups, g.Name)
		k.groupIndex[g.Name] = true
	}
	for _, upstreams := range []map[string]*Upstream{Default().Upstreams, l.cfg.Upstreams} {
		for name, u := range upstreams {
			for _, n := range append([]string{name}, u.Aliases...) {
				k.registries[n] = true
			}
		}
	}
	for _, name := range names(l.cfg.Upstreams) {
		for _, n := range append([]string{name}, l.cfg.Upstreams[name].Aliases...) {
			if k.owners[n] == "" {
				k.owners[n] = name
			}
		}
	}
	l.known = k
	return k
}

// prefixes stand before names and groups in rules.
var prefixes = []string{"user:", "token:", "net:", "cert:", "oidc:", group, "cert-group:", "oidc-group:"}

// gives reports whether the source is configured and can give a name. Basic credentials
// and htpasswd files end a user's name at the first colon.
func (s source) gives(name string) bool {
	if s.prefix == "user:" && strings.Contains(name, ":") {
		return false
	}
	return s.set && (s.any || s.index[name])
}

// sources returns the ways to know clients. Users are any names, because their file
// may change while the proxy runs.
func (l *loader) sources() []source {
	a := l.cfg.Auth
	list := []source{
		{prefix: "token:", what: "a token of auth.tokens", key: "auth.tokens"},
		{prefix: "net:", what: "a network of auth.networks", key: "auth.networks"},
		{prefix: "user:", what: "a user of auth.htpasswd", key: "auth.htpasswd", set: a.Htpasswd != "", any: true},
		{prefix: "cert:", what: "a client certificate's name", key: "tls.client_ca", set: l.cfg.TLS.ClientCA != "", any: true},
		{prefix: "oidc:", what: "a name in the issuer's tokens", key: "auth.oidc", set: a.OIDC.Issuer != "", any: true},
	}
	for _, t := range a.Tokens {
		list[0].names = append(list[0].names, t.Name)
	}
	for _, n := range a.Networks {
		list[1].names = append(list[1].names, n.Name)
	}
	for i := range list[:2] {
		list[i].set = len(list[i].names) > 0
		list[i].index = map[string]bool{}
		for _, name := range list[i].names {
			list[i].index[name] = true
		}
	}
	return list
}

// groupSources returns where groups come from, beside auth.groups, whose names are
// never taken for a certificate's or a token's.
func (l *loader) groupSources() []source {
	return []source{
		{prefix: "cert-group:", what: "an organization of client certificates", key: "tls.client_ca", set: l.cfg.TLS.ClientCA != "", any: true},
		{prefix: "oidc-group:", what: "a group in the issuer's tokens", key: "auth.oidc", set: l.cfg.Auth.OIDC.Issuer != "", any: true},
	}
}

// group is the prefix of a group's name in rules.
const group = "group:"

// bindNames writes each name in rules and groups with its source, and reports the
// names for which there isn't exactly one. From then on a name has one meaning,
// whatever users, certificates and tokens appear later.
func (l *loader) bindNames() {
	for i, g := range l.cfg.Auth.Groups {
		for j, member := range g.Members {
			if l.isFull() {
				return
			}
			g.Members[j] = l.bindName(fmt.Sprintf("auth.groups[%d].members[%d]", i, j), member)
		}
	}
	for i, r := range l.cfg.Access {
		for j, who := range r.Who {
			if l.isFull() {
				return
			}
			r.Who[j] = l.bindWho(fmt.Sprintf("access[%d].who[%d]", i, j), who)
		}
	}
}

// bindWho returns a word of who as bindNames writes it.
func (l *loader) bindWho(key, who string) string {
	switch {
	case who == "":
		l.reportKey(key, "%q matches nobody", who)
		return who
	case who == "*" || who == anonymous || isRange(who):
		return who
	case isAddressLike(who):
		l.reportKey(key, "%q is not a range of addresses; write 10.0.0.0/8, 2001:db8::/32 or one address", who)
		return who
	}
	if name, ok := strings.CutPrefix(who, group); ok {
		return l.bindGroup(key, name)
	}
	for _, s := range l.look().groupSources {
		if name, ok := strings.CutPrefix(who, s.prefix); ok {
			l.checkTyped(key, who, name, s)
			return who
		}
	}
	return l.bindName(key, who)
}

// bindGroup returns the group that name stands for, with its source: one of
// auth.groups if it is there, else the one kind of group that certificates or tokens
// can give.
func (l *loader) bindGroup(key, name string) string {
	word := group + name
	k := l.look()
	switch from := able(k.groupSources, name); {
	case !l.checkSpelling(key, word, name):
	case k.groupIndex[name]:
	case len(from) == 1:
		return from[0].prefix + name
	case len(from) == 0:
		l.reportKey(key, "%q matches nobody: auth.groups has no group %q%s", word, name, perhaps(group, suggest(name, k.groups)))
	default:
		l.reportKey(key, "%q has two meanings; write %s", word, choices(from, name))
	}
	return word
}

// bindName returns a caller's name with its source.
func (l *loader) bindName(key, word string) string {
	all := l.look().sources
	for _, s := range all {
		if name, ok := strings.CutPrefix(word, s.prefix); ok {
			l.checkTyped(key, word, name, s)
			return word
		}
	}
	if !l.checkSpelling(key, word, word) {
		return word
	}
	switch from := able(all, word); len(from) {
	case 1:
		return from[0].prefix + word
	case 0:
		var known []string
		for _, s := range all {
			for _, name := range s.names {
				known = append(known, s.prefix+name)
			}
		}
		l.reportKey(key, "%q matches nobody: no way to know clients (auth, tls.client_ca) gives this name%s", word, perhaps("", suggest(word, known)))
	default:
		l.reportKey(key, "%q has %d meanings; write %s", word, len(from), choices(from, word))
	}
	return word
}

// checkTyped reports a word with a source in front that can match nobody.
func (l *loader) checkTyped(key, word, name string, s source) {
	switch {
	case !l.checkSpelling(key, word, name):
	case !s.set:
		l.reportKey(key, "%q matches nobody: %s is not set", word, s.key)
	case !s.gives(name) && s.any:
		l.reportKey(key, "%q matches nobody: the name of %s has no colon", word, s.what)
	case !s.gives(name):
		l.reportKey(key, "%q matches nobody: %s has no %q%s", word, s.key, name, perhaps(s.prefix, suggest(name, s.names)))
	}
}

// checkSpelling reports a name that nobody can have, and false.
func (l *loader) checkSpelling(key, word, name string) bool {
	switch {
	case name == "" || strings.TrimSpace(name) != name:
		l.reportKey(key, "%q matches nobody; write the name without spaces around it", word)
	case isRange(word):
		l.reportKey(key, "%q is a range of addresses, not a name; write it in who", word)
	case strings.EqualFold(name, anonymous):
		l.reportKey(key, "%q matches nobody by name; write anonymous, in who, for clients that are not known", word)
	case strings.ContainsAny(name, "*?") && !strings.HasPrefix(word, "cert:*."): // a wildcard certificate
		l.reportKey(key, "%q matches nobody: names are compared as they are; * and ? work in upstreams and repositories only", word)
	default:
		return true
	}
	return false
}

// able returns the sources that can give name.
func able(all []source, name string) []source {
	return slices.DeleteFunc(slices.Clone(all), func(s source) bool { return !s.gives(name) })
}

// choices lists what to write for name instead, each with its meaning.
func choices(from []source, name string) string {
	list := make([]string, len(from))
	for i, s := range from {
		list[i] = fmt.Sprintf("%s%s (%s)", s.prefix, name, s.what)
	}
	return strings.Join(list, " or ")
}

// perhaps ends a message with a suggestion; it is empty if there is none.
func perhaps(prefix, word string) string {
	if word == "" {
		return ""
	}
	return "; did you mean " + prefix + word + "?"
}
