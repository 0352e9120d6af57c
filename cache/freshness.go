package cache

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// DefaultTTL is for how long a tag is fresh where no rule says otherwise. Short,
// for asking again is a HEAD, which Docker Hub does not count as a pull.
const DefaultTTL = time.Minute

// DefaultStaleIfError is for how long past its TTL a tag is served while its
// upstream can not be asked, where no rule says otherwise.
const DefaultStaleIfError = 720 * time.Hour

// TagRule says for how long the tags that it matches are fresh.
type TagRule struct {
	// Match is a pattern over "repository:tag": * stands for any characters,
	// ? for one. A pattern without a colon is one over the repository, and
	// takes all its tags; "*" matches every tag.
	Match string
	// TTL is for how long an answer about a tag counts as fresh.
	TTL time.Duration
	// StaleIfError is for how much longer it is served when the upstream
	// can not be asked.
	StaleIfError time.Duration
	// StaleWhileRevalidate is for how long past its TTL a tag is served at
	// once, while the upstream is asked behind. Zero is not at all.
	StaleWhileRevalidate time.Duration
	// Immutable tags never move: they are asked for once.
	Immutable bool
	// KeepDeleted goes on serving a tag that the upstream has deleted, as it
	// last was.
	KeepDeleted bool
	// KeepHistory is for how long what a tag stood for is not evicted after the
	// tag has moved. Zero is not at all.
	KeepHistory time.Duration
	// Hold is for how long a tag that has moved is served as it was.
	Hold time.Duration
	// OnMove says what becomes of a tag that moves.
	OnMove OnMove
}

// freshness is an upstream's rules, the first that matches holds.
type freshness []compiledRule

type compiledRule struct {
	TagRule
	pattern *regexp.Regexp // nil matches all
}

func compileRules(rules []TagRule) (freshness, error) {
	var f freshness
	for i, r := range rules {
		if r.Match == "" {
			return nil, fmt.Errorf("tag rule %d: match is empty", i+1)
		}
		c := compiledRule{TagRule: r}
		if r.Match != "*" {
			match := r.Match
			if !strings.Contains(match, ":") {
				match += ":*"
			}
			c.pattern = compilePattern(match)
		}
		f = append(f, c)
	}
	return f, nil
}

// compilePattern compiles a pattern in which * stands for any characters, ? for one.
func compilePattern(pattern string) *regexp.Regexp {
	pattern = regexp.QuoteMeta(pattern)
	pattern = strings.NewReplacer(`\*`, `.*`, `\?`, `.`).Replace(pattern)
	return regexp.MustCompile("^" + pattern + "$")
}

// rule gives the rule that holds for a tag.
func (f freshness) rule(repo, tag string) TagRule {
	name := ""
	for _, r := range f {
		if r.pattern != nil && name == "" {
			name = repo + ":" + tag
		}
		if r.pattern == nil || r.pattern.MatchString(name) {
			return r.TagRule
		}
	}
	return TagRule{Match: "*", TTL: DefaultTTL, StaleIfError: DefaultStaleIfError}
}

// fresh tells whether what was confirmed age ago need not be asked for again.
// What was confirmed in the future says that the clock has been set back.
func (r TagRule) fresh(age time.Duration) bool { return r.Immutable || 0 <= age && age < r.TTL }

// usable tells whether what was confirmed age ago may be served while the
// upstream can not be asked.
func (r TagRule) usable(age time.Duration) bool {
	return r.Immutable || age < r.TTL || age-r.TTL < r.StaleIfError
}

// behind tells whether what was confirmed age ago, and is not fresh, is served
// while the upstream is asked.
func (r TagRule) behind(age time.Duration) bool {
	return 0 <= age && age-r.TTL < r.StaleWhileRevalidate
}

// outcome says how an answer that was confirmed age ago stands.
func (r TagRule) outcome(s Status, age time.Duration) Outcome {
	if r.Immutable {
		return Outcome{Status: s, Age: age}
	}
	return Outcome{Status: s, Age: age, TTL: r.TTL - age}
}
