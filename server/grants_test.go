package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/access"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// doorkeeper lets "Basic alice" have all of docker.io, and nobody else.
type doorkeeper struct{}

func (doorkeeper) Admit(_ context.Context, t oci.Target, _ rewrite.Resource, authorization []byte, _ netip.Addr) (bool, error) {
	switch {
	case t.Upstream != "docker.io":
		return false, nil
	case string(authorization) == "Basic alice":
		return true, nil
	case len(authorization) == 0:
		return true, oci.Errorf(oci.CodeUnauthorized, "who are you?")
	case strings.HasPrefix(string(authorization), "Bearer"):
		return true, oci.Errorf(oci.CodeUnauthorized, "that will not do")
	}
	return true, oci.Errorf(oci.CodeDenied, "not you")
}

func (doorkeeper) Visible(names []string, authorization []byte) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool {
		return strings.HasPrefix(n, "docker.io") && string(authorization) != "Basic alice"
	})
}

func (doorkeeper) Known(authorization []byte) error {
	if len(authorization) == 0 || string(authorization) == "Bearer old" {
		return oci.Errorf(oci.CodeUnauthorized, "who are you?")
	}
	return nil
}

func (doorkeeper) Token(authorization []byte) (string, time.Duration, error) {
	if string(authorization) == "Basic !" {
		return "", 0, oci.Errorf(oci.CodeUnauthorized, "what?")
	}
	return "the-token", time.Minute, nil
}

// guarded asks a server with a doorkeeper.
func guarded(t *testing.T, method, url string, headers ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
		}
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

func TestWhoIsNotAdmittedReachesNothing(t *testing.T) {
	shelf := newShelf()
	shelf.err = errors.New("the content was asked for")
	_, url := start(t, shelf, func(o *Options) { o.Grants = doorkeeper{} })
	d := "sha256:" + strings.Repeat("a", 64)
	for _, path := range []string{"manifests/1.27", "manifests/" + d, "blobs/" + d, "tags/list", "referrers/" + d} {
		for _, method := range []string{"GET", "HEAD"} {
			for header, want := range map[string]int{"": 401, "Basic bob": 403, "Bearer x": 401} {
				res, body := guarded(t, method, url+"/v2/library/nginx/"+path, "Authorization", header)
				if res.StatusCode != want || res.Header.Get("Cache-Control") != "private" {
					t.Errorf("%s %s as %q: %d %v %s; want %d", method, path, header, res.StatusCode, res.Header, body, want)
				}
			}
		}
	}
}

func TestAChallengeTellsWhereToGetAToken(t *testing.T) {
	guard, err := access.New(access.Options{TrustedProxies: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(guard.Close)
	_, url := start(t, newShelf(), func(o *Options) { o.Grants, o.Guard = doorkeeper{}, guard })
	stranger, err := access.New(access.Options{TrustedProxies: []string{"192.0.2.1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stranger.Close)
	_, unbelieving := start(t, newShelf(), func(o *Options) { o.Grants, o.Guard = doorkeeper{}, stranger })
	const scope = `,scope="repository:library/nginx:pull"`
	for from, base := range map[string]string{"a stranger": unbelieving, "a proxy": url} {
		scheme := map[string]string{"a stranger": "http", "a proxy": "https"}[from]
		res, _ := guarded(t, "GET", base+"/v2/", "Host", "cache:5000", "X-Forwarded-Proto", "https")
		if got, want := res.Header.Get("WWW-Authenticate"), `Bearer realm="`+scheme+`://cache:5000/token",service="cache:5000"`; got != want {
			t.Errorf("X-Forwarded-Proto of %s: want %s, got %s", from, want, got)
		}
	}
	for _, c := range []struct {
		path, authorization, host, proto, want string
	}{
		{"/v2/", "", "cache:5000", "", `Bearer realm="http://cache:5000/token",service="cache:5000"`},
		{"/v2/library/nginx/tags/list", "", "cache:5000", "https", `Bearer realm="https://cache:5000/token",service="cache:5000"` + scope},
		{"/v2/library/nginx/tags/list", "Bearer x", "[::1]:5000", "", `Bearer realm="http://[::1]:5000/token",service="[::1]:5000"` + scope + `,error="insufficient_scope"`},
		{"/v2/library/nginx/tags/list", "Bearer old", "cache", "nonsense", `Bearer realm="http://cache/token",service="cache"` + scope + `,error="invalid_token"`},
		{"/v2/", "", `x",realm="http:/evil`, "", ""},
		{"/token", "Basic !", "cache", "", `Bearer realm="http://cache/token",service="cache"`},
	} {
		headers := []string{"Host", c.host, "Authorization", c.authorization}
		if c.proto != "" {
			headers = append(headers, "X-Forwarded-Proto", c.proto)
		}
		res, body := guarded(t, "GET", url+c.path, headers...)
		if res.StatusCode == http.StatusBadRequest && c.want == "" {
			continue
		}
		want := []string{c.want}
		if c.want == "" {
			want[0] = `Basic realm="entrepot"`
		}
		if got := res.Header.Values("WWW-Authenticate"); res.StatusCode != 401 || !slices.Equal(got, want) || !strings.Contains(body, "UNAUTHORIZED") {
			t.Errorf("%s of %s: %d %q %s; want 401 %q", c.path, c.host, res.StatusCode, got, body, want)
		}
	}
}

func TestOnlyGuardedUpstreamsAskWhoOneIs(t *testing.T) {
	_, url := start(t, newShelf(), func(o *Options) { o.Grants = doorkeeper{} })
	for _, c := range [][]string{
		{"/v2/"}, {"/v2/library/nginx/tags/list"}, {"/token"},
	} {
		res, body := guarded(t, "GET", url+c[0], "Authorization", "Basic alice")
		if res.StatusCode != 200 || res.Header.Get("WWW-Authenticate") != "" {
			t.Errorf("%s: %d %s", c[0], res.StatusCode, body)
		}
	}
	res, body := guarded(t, "GET", url+"/v2/ghcr.io/org/app/tags/list", "Authorization", "nonsense")
	if res.StatusCode != 200 || res.Header.Get("Cache-Control") != "" {
		t.Errorf("of an upstream for everyone: %d %v %s", res.StatusCode, res.Header, body)
	}
	res, body = guarded(t, "GET", url+"/token")
	if res.Header.Get("Cache-Control") != "no-store" || !strings.Contains(body, `"token":"the-token"`) || !strings.Contains(body, `"expires_in":60`) {
		t.Errorf("token: %v %s", res.Header, body)
	}
	if _, body = guarded(t, "GET", url+"/v2/_catalog"); strings.Contains(body, "docker.io") || !strings.Contains(body, "ghcr.io/org/app") {
		t.Errorf("the catalog for nobody: %s", body)
	}
	if _, body = guarded(t, "GET", url+"/v2/_catalog", "Authorization", "Basic alice"); !strings.Contains(body, "docker.io/library/nginx") {
		t.Errorf("the catalog for Alice: %s", body)
	}
	_, plain := start(t, newShelf())
	if res, _ := guarded(t, "GET", plain+"/token"); res.StatusCode != 404 {
		t.Errorf("a token server where nobody needs it: %d", res.StatusCode)
	}
	if res, _ := guarded(t, "GET", plain+"/v2/"); res.StatusCode != 200 {
		t.Errorf("ping where nobody is asked who one is: %d", res.StatusCode)
	}
}
