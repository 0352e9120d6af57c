package upstream

import (
	"net/url"
	"strings"
	"testing"
)

func mustURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestNewNamesTheSettingThatIsWrong(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{}, "name"},
		{Options{Name: "r"}, "upstreams.r.endpoints"},
		{Options{Name: "r", Endpoints: []string{"reg.test"}}, "upstreams.r.endpoints"},
		{Options{Name: "r", Endpoints: []string{"ftp://reg.test"}}, "upstreams.r.endpoints"},
		{Options{Name: "r", Endpoints: []string{"https://reg.test?X-Signature=1"}}, "upstreams.r.endpoints"},
		{Options{Name: "r", Endpoints: []string{"https://a:hunter2@reg.test"}}, "credentials"},
		{Options{Name: "r", Endpoints: []string{"https://reg.test"}, Realms: []string{"ftp://x"}}, "upstreams.r.realms"},
		{Options{Name: "r", Endpoints: []string{"https://reg.test"}, RedirectHosts: []string{"http://x/y"}}, "upstreams.r.redirect_hosts"},
		{Options{Name: "r", Endpoints: []string{"https://reg.test"}, CAFile: "/nonexistent/ca.pem"}, "upstreams.r.tls.ca"},
		{Options{Name: "r", Endpoints: []string{"https://reg.test"}, CAFile: "registry.go"}, "upstreams.r.tls.ca"},
		{Options{Name: "r", Endpoints: []string{"https://reg.test"}, CertFile: "x"}, "tls.key"},
		{Options{Name: "r", Endpoints: []string{"https://reg.test"}, CertFile: "x", KeyFile: "y"}, "upstreams.r.tls.cert"},
	} {
		r, err := New(c.o)
		if err == nil {
			r.Close()
			t.Errorf("New(%+v) is well, want an error that names %s", c.o, c.want)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "X-Signature") {
			t.Errorf("New(%+v): %v; want it to name %s, and no secret", c.o, err, c.want)
		}
	}
}
