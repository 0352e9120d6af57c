package configs

import (
	"strings"
	"testing"
)

func TestSuggestionIsTheNearestWord(t *testing.T) {
	words := []string{"listen", "tls", "admin", "cache", "default_upstream", "platforms", "upstreams", "log"}
	for got, want := range map[string]string{
		"lisen": "listen", "Listen": "listen", "chache": "cache", "cahce": "cache", "lgo": "log", "logging": "log", "def": "default_upstream", "platform": "platforms",
		"upstream": "upstreams", "default-upstream": "default_upstream", "logs": "log",
		"colour": "", strings.Repeat("nope", 1000): "", "x": "", "": "",
	} {
		if s := suggest(got, words); s != want {
			t.Errorf("suggest(%q): want %q, got %q", got, want, s)
		}
	}
}
