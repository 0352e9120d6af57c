package upstream

import (
	"container/list"
	"time"
)

const (
	// maxToken is the longest token that is taken, in bytes. Registries' tokens have
	// up to some 4 KiB; much longer ones fit into no request's header.
	maxToken = 32 << 10
	// maxTokens and maxTokenBytes bound the tokens that are kept for one upstream.
	maxTokens     = 10_000
	maxTokenBytes = 16 << 20
	// tokenOverhead is what one more token costs beside its strings, roughly.
	tokenOverhead = 400
)

// heldTokens are the tokens of one upstream, in order of use. They are bounded in
// number and bytes; the least recently used ones go first. The zero value is ready for
// use. It is not safe for concurrent use.
type heldTokens struct {
	of    map[tokenKey]*list.Element
	order list.List // of *heldToken, most recently used first
	bytes int
}

type heldToken struct {
	key   tokenKey
	token *token
}

func (h *heldToken) size() int {
	n := tokenOverhead + len(h.key.realm) + len(h.key.service) + len(h.key.scope) + len(h.token.value) + len(h.token.spare)
	for _, s := range h.token.scopes {
		n += len(s)
	}
	if h.token.refused != nil {
		n += len(h.token.refused.Message)
	}
	return n
}

// get returns the token of key, which may have expired, or nil.
func (t *heldTokens) get(key tokenKey) *token {
	e := t.of[key]
	if e == nil {
		return nil
	}
	t.order.MoveToFront(e)
	return e.Value.(*heldToken).token
}

// put keeps the token of key, and drops others while there are too many.
func (t *heldTokens) put(key tokenKey, got *token, now time.Time) {
	if t.of == nil {
		t.of = map[tokenKey]*list.Element{}
	}
	if e := t.of[key]; e != nil {
		t.drop(e)
	}
	h := &heldToken{key, got}
	t.of[key] = t.order.PushFront(h)
	t.bytes += h.size()
	if !t.full() {
		return
	}
	t.dropIf(func(h *heldToken) bool { return !now.Before(h.token.until) })
	for t.full() && t.order.Len() > 1 {
		t.drop(t.order.Back())
	}
}

func (t *heldTokens) full() bool { return t.order.Len() > maxTokens || t.bytes > maxTokenBytes }

// dropIf drops the tokens for which goes is true.
func (t *heldTokens) dropIf(goes func(*heldToken) bool) {
	for e := t.order.Front(); e != nil; {
		next := e.Next()
		if goes(e.Value.(*heldToken)) {
			t.drop(e)
		}
		e = next
	}
}

func (t *heldTokens) drop(e *list.Element) {
	h := t.order.Remove(e).(*heldToken)
	delete(t.of, h.key)
	t.bytes -= h.size()
}
