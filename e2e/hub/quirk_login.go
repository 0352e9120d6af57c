package hub

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// Hide answers everything but GET /v2/ with status, and no challenge, to those who may not
// have it: registries that keep secret what there is, or refuse without saying how to log in.
func Hide(status int) Fault {
	return Fault{kind: Any, act: func(h *Hub, w http.ResponseWriter, r *http.Request) bool {
		rt := parseRoute(r.Method, r.URL.Path)
		if !h.atRegistry(r) || rt.kind == Ping || rt.kind == Other || h.lets(r, rt.repo) {
			return false
		}
		writeError(w, r, status, codeFor(status), "there is nothing here for you")
		return true
	}}
}

// OpenPing answers GET /v2/ with 200 to everyone, whatever the rest wants.
func OpenPing() Fault {
	return Fault{kind: Ping, act: func(_ *Hub, w http.ResponseWriter, r *http.Request) bool {
		writeJSON(w, r, "application/json", []byte("{}"))
		return true
	}}
}

// RedirectAll sends everything but GET /v2/ to the same path of another registry.
func RedirectAll(status int, to string) Fault {
	return Fault{kind: Any, act: func(h *Hub, w http.ResponseWriter, r *http.Request) bool {
		rt := parseRoute(r.Method, r.URL.Path)
		if !h.atRegistry(r) || rt.kind == Ping || rt.kind == Other {
			return false
		}
		w.Header().Set("Location", to+r.URL.RequestURI())
		w.WriteHeader(status)
		return true
	}}
}

// NameScopes names repositories in challenges, and wants them in tokens, with prefix in
// front, as proxies do that keep several registries below projects.
func NameScopes(prefix string) Fault { return Fault{kind: Any, scopePrefix: prefix} }

// RefuseScopes makes the token server refuse with status what isn't below prefix, and, if
// one is set, more than one scope in a request.
func RefuseScopes(status int, prefix string, one bool) Fault {
	return Fault{kind: Token, act: func(_ *Hub, w http.ResponseWriter, r *http.Request) bool {
		scopes := r.URL.Query()["scope"]
		unknown := func(s string) bool { return !strings.HasPrefix(s, "repository:"+prefix) }
		if (!one || len(scopes) < 2) && !slices.ContainsFunc(scopes, unknown) {
			return false
		}
		writeError(w, r, status, codeFor(status), "no such scope")
		return true
	}}
}

// RefusePost makes the token server answer status to the OAuth2 POST.
func RefusePost(status int) Fault {
	return Fault{kind: Token, act: func(_ *Hub, w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		writeError(w, r, status, codeFor(status), "GET only")
		return true
	}}
}

// TokenAnswer changes the token server's answers.
func TokenAnswer(edit func(map[string]any)) Fault { return Fault{kind: Token, token: edit} }

// GzipToken compresses the token server's answers, whatever was asked for.
func GzipToken() Fault { return Fault{kind: Token, gzip: true} }

// writeToken sends a token server's answer, as the faults want it.
func writeToken(w http.ResponseWriter, answer map[string]any, met []*rule) {
	for _, f := range met {
		if f.token != nil {
			f.token(answer)
		}
	}
	b, err := json.Marshal(answer)
	if err != nil {
		panic(err)
	}
	for _, f := range met {
		if f.gzip {
			var z bytes.Buffer
			zw := gzip.NewWriter(&z)
			_, _ = zw.Write(b) // a buffer takes everything
			_ = zw.Close()
			b = z.Bytes()
			w.Header().Set("Content-Encoding", "gzip")
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b) // the client may be gone
}

// scopeName returns the name of repo in scopes.
func scopeName(met []*rule, repo string) string {
	for _, f := range met {
		if repo != "" {
			repo = f.scopePrefix + repo
		}
	}
	return repo
}

// atRegistry says whether r came to the registry, not to the CDN or the token server.
func (h *Hub) atRegistry(r *http.Request) bool {
	at, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return ok && at.String() == h.Host()
}

// lets says whether r may have what is in repo.
func (h *Hub) lets(r *http.Request, repo string) bool {
	switch h.o.Auth {
	case Open:
		return true
	case Basic:
		user, password, has := r.BasicAuth()
		h.mu.Lock()
		defer h.mu.Unlock()
		return has && h.known(user, password) && h.mayPull(user, repo)
	default:
		return h.checkToken(r.Header.Get("Authorization"), repo, false) == ""
	}
}

// Redirector starts a server on the hub's host that redirects everything to the same path
// of to; it ends with the test. It returns its URL.
func Redirector(t testing.TB, status int, to string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", to+r.URL.RequestURI())
		w.WriteHeader(status)
	}))
	t.Cleanup(s.Close)
	return s.URL
}
