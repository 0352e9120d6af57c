package cache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// maxChoices is the number of choices that are remembered, of some hundred bytes
	// each.
	maxChoices = 4096
	// maxChoiceText is the most bytes of an error's text that is remembered: an index
	// may name platforms at length.
	maxChoiceText = 1 << 10
)

// choice is the manifest that clients get which take no index, or why there is none.
type choice struct {
	digest digest.Digest
	err    error
	// nested are indexes that may have it, if digest is empty and err is nil. If they
	// have none, clients get the index as it is.
	nested []digest.Digest
}

// choiceKey says what a choice was made of. One content may have two media types.
type choiceKey struct {
	index     digest.Digest
	mediaType string
	platform  string
}

// choices remembers choices, for an index may have megabytes and tens of thousands of
// children. A choice never changes; it says nothing about who may have the manifest. All
// methods are safe for concurrent use.
type choices struct {
	mu sync.RWMutex
	of map[choiceKey]choice
}

func (l *choices) get(k choiceKey) (choice, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	ch, ok := l.of[k]
	return ch, ok
}

func (l *choices) put(k choiceKey, ch choice) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of == nil {
		l.of = map[choiceKey]choice{}
	}
	if len(l.of) >= maxChoices {
		for any := range l.of { // in no order
			delete(l.of, any)
			break
		}
	}
	l.of[k] = ch
}

// choose returns the choice of a platform's manifest in idx. Those who ask for
// the first time at the same time have idx read once. Errors are those of an index that
// makes no sense, or has no such platform; or ctx's.
func (c *Cache) choose(ctx context.Context, idx *oci.Manifest, platform string) (choice, error) {
	k := choiceKey{idx.Digest, idx.MediaType, platform}
	if ch, ok := c.choices.get(k); ok {
		return ch, ch.err
	}
	f, err := share(ctx, c, key("choose", string(k.index), k.mediaType, k.platform), func(context.Context) (choice, error) {
		if ch, ok := c.choices.get(k); ok {
			return ch, nil
		}
		ch := chooseFrom(idx, k.platform)
		c.choices.put(k, ch)
		return ch, nil
	})
	if err != nil {
		return choice{}, err
	}
	return f.value, f.value.err
}

// chooseFrom reads idx for the manifest of a platform.
func chooseFrom(idx *oci.Manifest, platform string) choice {
	p, err := oci.ParseManifest(idx.Bytes, idx.MediaType)
	if err != nil {
		return choice{err: shortened(err)}
	}
	found, err := oci.ChoosePlatform(p, platform)
	if err != nil {
		return choice{err: shortened(err)}
	}
	// The descriptors share memory with all that was read.
	ch := choice{digest: digest.Digest([]byte(found.Manifest.Digest))}
	for _, d := range found.Nested {
		ch.nested = append(ch.nested, digest.Digest([]byte(d.Digest)))
	}
	return ch
}

// shortened gives err with a text that is worth keeping.
func shortened(err error) error {
	var known *oci.Error
	if !errors.As(err, &known) {
		return errors.New(cut(err.Error()))
	}
	e := *known
	e.Message, e.Err = cut(e.Message), nil
	return &e
}

// cut gives the beginning of a text, of maxChoiceText bytes or so.
func cut(text string) string {
	if len(text) <= maxChoiceText {
		return text
	}
	return strings.ToValidUTF8(text[:maxChoiceText], "") + "…"
}

// hotChoice answers t from memory for a client that takes no index, if its tag stands
// for an index of which the choice is known; known is false if there is no such answer.
func (c *Cache) hotChoice(up *upstream, t oci.Target) (m *readyManifest, out Outcome, err error, known bool) {
	if t.Digest != "" {
		return nil, out, nil, false
	}
	idx, out := c.hotManifest(up, t, true)
	if idx == nil || !oci.IsIndex(idx.MediaType) {
		return nil, out, nil, false
	}
	ch, known := c.choices.get(choiceKey{idx.Digest, idx.MediaType, c.settings().platform})
	if !known {
		return nil, out, nil, false
	}
	if ch.err != nil {
		return nil, out, fmt.Errorf("choose from %s: %w", t, ch.err), true
	}
	if ch.digest == "" {
		return nil, out, nil, false
	}
	m, _ = c.hotManifest(up, withDigest(t, ch.digest), true)
	return m, out, nil, m != nil
}
