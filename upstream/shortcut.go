package upstream

import (
	"context"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// shortcutTime is how long a redirect's target is used without asking the registry. The
	// URLs of stores are signed for several minutes; one that has expired costs a request.
	shortcutTime = time.Minute
	// maxShortcuts and maxShortcutURL bound what is remembered for one upstream.
	maxShortcuts   = 256
	maxShortcutURL = 8 << 10
)

// shortcutKey names what a redirect was for: a blob of one repository at one endpoint, asked
// for with one account's login.
type shortcutKey struct {
	ep         *endpoint
	repo, path string
	who        account
}

func (a *answer) shortcut() shortcutKey { return shortcutKey{a.ep, a.ask.repo, a.ask.path, a.who} }

// shortcuts remembers for a short while where small pieces of blobs came from, so that the
// next piece of the same blob takes one round trip and not two, as clients that pull lazily
// do it. Its zero value is ready. It is safe for concurrent use.
type shortcuts struct {
	mu sync.Mutex
	of map[shortcutKey]target
}

// target is the URL to which a registry redirected, and until when it is used.
type target struct {
	url   *url.URL
	until time.Time
}

// remember notes where res, an answer to the request for a small piece, came from. It does
// so only if a redirect led to a store that wants no login.
func (s *shortcuts) remember(res *answer) {
	if !res.ask.isPiece() || !res.away || res.StatusCode != http.StatusPartialContent || abroadKey(res.at) != "" || len(res.at.String()) > maxShortcutURL {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := res.shortcut()
	if _, known := s.of[key]; known && res.direct {
		return // the registry has not been asked again: the time goes on
	}
	if s.of == nil || len(s.of) >= maxShortcuts {
		s.of = map[shortcutKey]target{} // each is asked for anew
	}
	s.of[key] = target{res.at, time.Now().Add(shortcutTime)}
}

// get returns the URL that is known for key; nil if there is none.
func (s *shortcuts) get(key shortcutKey) *url.URL {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.of[key]
	if ok && !time.Now().Before(t.until) {
		delete(s.of, key)
		return nil
	}
	return t.url
}

func (s *shortcuts) forget(key shortcutKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.of, key)
}

// short asks for a small piece of a blob where the registry sent the last such request, with
// the same account who. It returns nil if no such place is known, or if the piece does not
// come from there, for whatever reason: then the registry is to be asked, and tells.
func (r *Registry) short(ctx context.Context, ep *endpoint, a *ask, who account) *answer {
	if !a.isPiece() {
		return nil
	}
	key := shortcutKey{ep, a.repo, a.path, who}
	at := r.shortcuts.get(key)
	if at == nil {
		return nil
	}
	direct := *a
	direct.page = at
	res, f := r.exchange(ctx, ep, &direct, "")
	if f == nil {
		if res.StatusCode == http.StatusPartialContent && r.unfitPart(res, *a.span) == nil {
			res.ask, res.who, res.direct = a, who, true
			return res
		}
		_ = res.body.Close()
	}
	r.shortcuts.forget(key)
	return nil
}

// isPiece says whether a is the request for a small piece of a blob.
func (a *ask) isPiece() bool {
	return a.span != nil && a.header.Get("Range") != "" && a.span.To != oci.Open && a.span.To-a.span.From <= smallPiece
}
