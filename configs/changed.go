package configs

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
)

// live are the keys that a running process can take over; what is below one of
// them counts too.
var live = []string{
	"default_upstream", "platforms", "upstreams", "auth", "access", "log.level",
	"cache.offline", "cache.max_size", "cache.min_free", "cache.reverify_after", "cache.scrub_rate",
}

// Changed gives the keys whose values differ between two configurations, sorted, in
// two lists: those that a running process can take over, and those that hold from the
// next start on. An upstream that only one of them has is one key, "upstreams.NAME".
func Changed(before, after *Config) (now, later []string) {
	was, is := values(before), values(after)
	for path, v := range is {
		if w, ok := was[path]; !ok || !reflect.DeepEqual(v, w) {
			now = append(now, path)
		}
		delete(was, path)
	}
	for path := range was {
		now = append(now, path)
	}
	for i, path := range now {
		now[i] = upstreamOf(path, before, after)
	}
	slices.Sort(now)
	now = slices.Compact(now)
	now = slices.DeleteFunc(now, func(path string) bool {
		if isLive(path) {
			return false
		}
		later = append(later, path)
		return true
	})
	return now, later
}

// values gives each key's value.
func values(c *Config) map[string]any {
	m := map[string]any{}
	for _, k := range keysIn(reflect.ValueOf(c).Elem(), "") {
		if !strings.Contains(k.Path, "[]") { // part of the list, which is there whole
			m[k.Path] = k.value.Interface()
		}
	}
	return m
}

// upstreamOf shortens the key of an upstream that one configuration alone has.
func upstreamOf(path string, before, after *Config) string {
	for name := range before.Upstreams {
		if at := "upstreams." + name; after.Upstreams[name] == nil && strings.HasPrefix(path, at+".") {
			return at
		}
	}
	for name := range after.Upstreams {
		if at := "upstreams." + name; before.Upstreams[name] == nil && strings.HasPrefix(path, at+".") {
			return at
		}
	}
	return path
}

// Values gives each key's value as JSON, secrets hidden, to be compared and not to be
// read in again: lists of rules are whole, each upstream's keys stand under its name.
func (c *Config) Values() map[string]string {
	m := map[string]string{}
	for path, v := range values(c) {
		text, err := json.Marshal(v)
		if err != nil {
			text = []byte("null") // of strings, numbers and lists of them there is none
		}
		m[path] = string(text)
	}
	return m
}

func isLive(path string) bool {
	return slices.ContainsFunc(live, func(key string) bool { return path == key || strings.HasPrefix(path, key+".") })
}
