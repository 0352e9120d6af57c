package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// Each team's repositories are pulled with its own account, whether the registry takes
// tokens or passwords.
func TestAccountsByRepository(t *testing.T) {
	t.Parallel()
	for _, auth := range []hub.Auth{hub.Bearer, hub.Basic} {
		h := hub.New(t, hub.Options{Auth: auth, Users: map[string]string{"alice": "a-secret", "bob": "b-secret", "carol": "c-secret"}})
		i := image.New(image.Options{Seed: 1})
		for repo, user := range map[string]string{"team-a/app": "alice", "team-a/deep/app": "alice", "team-b/app": "bob", "team-a-not/app": "carol", "rest/app": "carol"} {
			h.Push(repo, "1.0", i)
			h.MakePrivate(repo, user)
		}
		p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: fmt.Sprintf(`upstreams: {docker.io: {realms: [%q],
accounts: [{repositories: ["team-a/*"], credentials: {username: alice, password: a-secret}},
  {repositories: ["team-b/*", "none/*"], credentials: {username: bob, password: b-secret}}, {repositories: ["open/*"]}],
credentials: {username: carol, password: c-secret}}}`, h.Realm())})
		for range 2 {
			for _, repo := range []string{"team-a/app", "team-b/app", "rest/app", "team-a-not/app", "team-a/deep/app"} {
				wantBytes(t, repo, i.Bytes(), get(t, p, "/v2/"+repo+"/manifests/1.0").body)
				pullRaw(t, p, repo, i)
			}
		}
		h.Push("team-b/other", "1.0", i)
		h.MakePrivate("team-b/other", "alice")
		if a := ask(t, p, http.MethodGet, "/v2/team-b/other/manifests/1.0"); a.status < 400 || a.status >= 500 {
			t.Errorf("another team's image: want a refusal, got %s", a)
		}
		for _, secret := range []string{"a-secret", "b-secret", "c-secret"} {
			if strings.Contains(p.Log(), secret) {
				t.Errorf("%s is in the log", secret)
			}
		}
	}
}
