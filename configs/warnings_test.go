package configs

import (
	"slices"
	"testing"
)

func TestWarningsNameRealmsThatAreProbablyPlainHTTP(t *testing.T) {
	c := &Config{Upstreams: map[string]*Upstream{
		"plain.test":  {Endpoints: []string{"http://127.0.0.1:7000"}, Realms: []string{"127.0.0.2:7001", "http://127.0.0.2:7002", "auth.test"}},
		"secure.test": {Endpoints: []string{"https://secure.test"}, Realms: []string{"auth.test", "auth.test:443", "auth.test:8080"}},
	}}
	want := []string{
		`upstreams.plain.test.realms[0]: "127.0.0.2:7001" means https://127.0.0.2:7001; if that token server is asked over plain http, write http://127.0.0.2:7001`,
		`upstreams.plain.test.realms[2]: "auth.test" means https://auth.test; if that token server is asked over plain http, write http://auth.test`,
		`upstreams.secure.test.realms[2]: "auth.test:8080" means https://auth.test:8080; if that token server is asked over plain http, write http://auth.test:8080`,
	}
	if got := c.Warnings(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
