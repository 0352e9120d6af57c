package upstream

import "testing"

func TestEndpointsMayHaveAPath(t *testing.T) {
	for _, c := range []struct{ endpoint, url, scope string }{
		{"https://reg.test", "https://reg.test/v2/a/b/tags/list", "repository:a/b:pull"},
		{"https://reg.test/", "https://reg.test/v2/a/b/tags/list", "repository:a/b:pull"},
		{"https://reg.test/v2/", "https://reg.test/v2/a/b/tags/list", "repository:a/b:pull"},
		{"http://REG.test:5000", "http://reg.test:5000/v2/a/b/tags/list", "repository:a/b:pull"},
		{"https://reg.test/artifactory/hub", "https://reg.test/artifactory/hub/v2/a/b/tags/list", "repository:a/b:pull"},
		{"https://reg.test/v2/proxy/hub", "https://reg.test/v2/proxy/hub/a/b/tags/list", "repository:proxy/hub/a/b:pull"},
		{"https://reg.test/v2x", "https://reg.test/v2x/v2/a/b/tags/list", "repository:a/b:pull"},
	} {
		e, err := newEndpoint(c.endpoint)
		if err != nil {
			t.Errorf("%s: %v", c.endpoint, err)
			continue
		}
		if got := e.url("a/b/tags/list").String(); got != c.url {
			t.Errorf("%s asks %s, want %s", c.endpoint, got, c.url)
		}
		if got := e.scope("a/b"); got != c.scope {
			t.Errorf("%s wants the scope %s, want %s", c.endpoint, got, c.scope)
		}
	}
}
