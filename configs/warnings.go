package configs

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
)

// Warnings returns a sentence for each setting that is valid, but probably not what was
// meant, in the order of the upstreams' names. The sentences hold no secrets.
func (c *Config) Warnings() []string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(c.Upstreams)) {
		u := c.Upstreams[name]
		plain := slices.ContainsFunc(u.Endpoints, func(e string) bool { return strings.HasPrefix(e, "http://") })
		for i, r := range u.Realms {
			if strings.Contains(r, "://") {
				continue
			}
			at, err := url.Parse("https://" + r)
			if err != nil || !plain && (at.Port() == "" || at.Port() == "443") {
				continue
			}
			all = append(all, fmt.Sprintf("upstreams.%s.realms[%d]: %q means https://%s; if that token server is asked over plain http, write http://%s", name, i, r, r, r))
		}
	}
	return all
}
