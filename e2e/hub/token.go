package hub

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// grant is what a token is good for.
type grant struct {
	user   string // empty: anonymous
	repos  []string
	pushes []string
	until  time.Time
}

// ExpireOldTokens lets the tokens expire that were given out longer than age ago.
func (h *Hub) ExpireOldTokens(age time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for token, g := range h.tokens {
		if time.Until(g.until) < h.o.TokenTTL-age {
			delete(h.tokens, token)
		}
	}
}

// ExpireTokens lets all tokens that have been given out expire.
func (h *Hub) ExpireTokens() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.tokens)
}

// serveToken is the token server: GET with Basic credentials or none, and the
// OAuth2 POST (distribution, "Token Authentication Specification").
func (h *Hub) serveToken(w http.ResponseWriter, r *http.Request) {
	h.note(Token, r)
	met := h.trouble(ask{kind: Token})
	if h.before(w, r, met) {
		return
	}
	if strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
		h.count(func(c *Counts) { c.Leaks++ })
	}
	if r.URL.Path != "/token" {
		writeError(w, r, http.StatusNotFound, "UNKNOWN", "no such page")
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	if err := r.ParseForm(); err != nil {
		writeError(w, r, http.StatusBadRequest, "UNKNOWN", "the form cannot be read")
		return
	}
	user, password, has := r.BasicAuth()
	post := r.Method == http.MethodPost
	switch {
	case r.Method == http.MethodGet:
	case post && r.PostForm.Get("grant_type") == "password":
		user, password, has = r.PostForm.Get("username"), r.PostForm.Get("password"), true
	case post && r.PostForm.Get("grant_type") == "refresh_token":
		// A refresh token is "refresh:user:password", as identity tokens are
		// opaque to clients.
		f := strings.SplitN(r.PostForm.Get("refresh_token"), ":", 3)
		if len(f) == 3 && f[0] == "refresh" {
			user, password = f[1], f[2]
		}
		has = true
	case post:
		writeError(w, r, http.StatusBadRequest, "UNSUPPORTED", "unsupported grant type")
		return
	default:
		writeError(w, r, http.StatusMethodNotAllowed, "UNSUPPORTED", "GET or POST")
		return
	}
	if has && !h.known(user, password) {
		writeError(w, r, http.StatusUnauthorized, "UNAUTHORIZED", "incorrect username or password")
		return
	}
	if s := r.Form.Get("service"); s != h.o.Service {
		writeError(w, r, http.StatusBadRequest, "UNKNOWN", fmt.Sprintf("the service is %s, not %s", h.o.Service, s))
		return
	}
	answer := h.grantToken(user, r.Form["scope"], post && r.PostForm.Get("access_type") == "offline", password)
	writeToken(w, answer, met)
}

// RefreshToken gives a token that the OAuth2 POST takes for the user.
func (h *Hub) RefreshToken(user string) string { return "refresh:" + user + ":" + h.o.Users[user] }

func (h *Hub) known(user, password string) bool {
	h.users.RLock()
	defer h.users.RUnlock()
	want, ok := h.o.Users[user]
	return ok && want == password
}

// ChangePassword gives a user another password. Tokens that have been given out stay
// good, as they do at the real one.
func (h *Hub) ChangePassword(user, password string) {
	h.users.Lock()
	defer h.users.Unlock()
	h.o.Users[user] = password
}

// grantToken makes a token. What the user may not have is left out silently, as
// the real one does: the registry then answers 401.
func (h *Hub) grantToken(user string, scopes []string, offline bool, password string) map[string]any {
	g := grant{user: user, until: time.Now().Add(h.o.TokenTTL)}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range scopes {
		for _, one := range strings.Fields(s) {
			name, actions, ok := strings.Cut(strings.TrimPrefix(one, "repository:"), ":")
			if !ok || !strings.HasPrefix(one, "repository:") || !h.mayPull(user, name) {
				continue
			}
			acts := strings.Split(actions, ",")
			if slices.Contains(acts, "pull") || slices.Contains(acts, "*") {
				g.repos = append(g.repos, name)
			}
			if slices.Contains(acts, "push") || slices.Contains(acts, "*") {
				g.pushes = append(g.pushes, name)
			}
		}
	}
	token := "fake." + rand.Text()
	h.tokens[token] = g
	a := map[string]any{}
	if h.o.TokenField != "access_token" {
		a["token"] = token
	}
	if h.o.TokenField != "token" {
		a["access_token"] = token
	}
	if !h.o.NoExpiresIn {
		a["expires_in"] = int(h.o.TokenTTL / time.Second)
		a["issued_at"] = time.Now().UTC().Format(time.RFC3339)
	}
	if offline {
		a["refresh_token"] = "refresh:" + user + ":" + password
	}
	return a
}

// mayPull tells whether user may read a repository. h.mu is held.
func (h *Hub) mayPull(user, name string) bool {
	r := h.repos[name]
	return r == nil || r.users == nil || slices.Contains(r.users, user)
}

// authorize lets a request pass or answers it with a challenge.
func (h *Hub) authorize(w http.ResponseWriter, r *http.Request, repo string, push bool) bool {
	if h.o.Auth == Open {
		return true
	}
	var problem string
	if h.o.Auth == Basic {
		user, password, has := r.BasicAuth()
		h.mu.Lock()
		ok := has && h.known(user, password) && h.mayPull(user, repo)
		h.mu.Unlock()
		if ok {
			return true
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf("Basic realm=%q", h.url(h.registry)))
	} else {
		problem = h.checkToken(r.Header.Get("Authorization"), repo, push)
		if problem == "" {
			return true
		}
		challenge := fmt.Sprintf("Bearer realm=%q,service=%q", h.Realm(), h.o.Service)
		if repo != "" {
			actions := "pull"
			if push {
				actions = "pull,push"
			}
			challenge += fmt.Sprintf(",scope=%q", "repository:"+repo+":"+actions)
		}
		if problem != "none" {
			challenge += fmt.Sprintf(",error=%q", problem)
		}
		w.Header().Set("WWW-Authenticate", challenge)
	}
	h.count(func(c *Counts) { c.Challenges++ })
	writeError(w, r, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
	return false
}

// checkToken gives "" for a token that is good for repo, "none" where there is
// none, or the OAuth2 word for what is wrong.
func (h *Hub) checkToken(authorization, repo string, push bool) string {
	token, ok := strings.CutPrefix(authorization, "Bearer ")
	if !ok {
		return "none"
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	g, ok := h.tokens[token]
	if !ok || time.Now().After(g.until) {
		return "invalid_token"
	}
	if repo == "" {
		return ""
	}
	have := g.repos
	if push {
		have = g.pushes
	}
	if !slices.Contains(have, repo) || !h.mayPull(g.user, repo) {
		return "insufficient_scope"
	}
	return ""
}
