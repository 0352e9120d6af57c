package cache

import (
	"context"
	"errors"
	"time"

	"github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
)

// Tags lists all tags of t's repository, sorted. The cache keeps the list briefly, and
// serves it stale while the upstream cannot be asked. Offline, it lists the tags that it
// knows, if the list was never fetched; so it does as of a date. The slice must not
// be changed: all who ask at the same time may share it.
func (c *Cache) Tags(ctx context.Context, t oci.Target) ([]string, Outcome, error) {
	t = owned(t)
	k := listKey(index.Tags, t)
	if known := c.known(); !known.whole && (c.settings().Offline || !t.AsOf.IsZero()) {
		// A list of the tags that are known by now would lack some.
		if again, err := c.doubtful(ctx, known, errIndexRestoring); !again {
			return nil, Outcome{}, err
		}
	}
	if !t.AsOf.IsZero() {
		f, err := share(ctx, c, key("as of", k, t.AsOf.String()), func(ctx context.Context) ([]string, error) {
			return readingList(ctx, c, func() ([]string, error) { return c.tagsAsOf(t) })
		})
		return f.value, asOfOutcome(t, Hit), err
	}
	if c.settings().Offline {
		if _, listed, err := c.keptList(ctx, k, t, index.Tags); err != nil {
			return nil, Outcome{}, err
		} else if !listed {
			known, err := share(ctx, c, key("names", k), func(ctx context.Context) ([]string, error) {
				return readingList(ctx, c, func() ([]string, error) { return c.index.TagNames(t.Upstream, t.Repository) })
			})
			if err != nil || len(known.value) > 0 {
				return known.value, Outcome{Status: Stale, Reason: "the proxy is offline, and these are the tags that it has"}, err
			}
		}
	}
	l, out, err := c.list(ctx, t, index.Tags, func(ctx context.Context, o Origin) (index.List, error) {
		tags, err := o.Tags(ctx, t.Repository)
		return index.List{Tags: tags}, err
	})
	return l.Tags, out, err
}

// Referrers lists the manifests whose subject is t's digest. It is kept and
// served as Tags is. The slice must not be changed.
func (c *Cache) Referrers(ctx context.Context, t oci.Target) ([]v1.Descriptor, Outcome, error) {
	t = owned(t)
	list, out, err := c.referrers(ctx, t)
	// Digests that a stranger has made up leave nothing behind.
	if err == nil && (len(list) > 0 || c.isCachedManifest(t)) {
		c.asked.noteReferrers(t)
	}
	return list, out, err
}

// referrers is Referrers for whoever asks.
func (c *Cache) referrers(ctx context.Context, t oci.Target) ([]v1.Descriptor, Outcome, error) {
	l, out, err := c.list(ctx, t, index.Referrers, func(ctx context.Context, o Origin) (index.List, error) {
		found, err := o.Referrers(ctx, t.Repository, t.Digest)
		return index.List{Referrers: found}, err
	})
	return l.Referrers, out, err
}

// list gives a list of a kind from the cache while it is fresh, else from the
// upstream, else as it was last known. Lists change as tags do, so the rule is
// that of the repository's tags.
func (c *Cache) list(ctx context.Context, t oci.Target, kind string, fetch func(context.Context, Origin) (index.List, error)) (index.List, Outcome, error) {
	k := c.known()
	l, out, err := c.listNow(ctx, t, kind, fetch, k)
	if err != nil {
		return judgeAnew(ctx, c, k, l, out, err, func() (index.List, Outcome, error) { return c.listNow(ctx, t, kind, fetch, c.known()) })
	}
	return l, out, nil
}

// listNow is list, for what is known by now: that is knew.
func (c *Cache) listNow(ctx context.Context, t oci.Target, kind string, fetch func(context.Context, Origin) (index.List, error), knew knowledge) (index.List, Outcome, error) {
	up, err := c.upstream(t.Upstream)
	if err != nil {
		return index.List{}, Outcome{}, err
	}
	rule := up.rules.rule(t.Repository, "*")
	rule.Immutable = false // its tags do not move, but new ones come
	k := listKey(kind, t)
	l, known, err := c.keptList(ctx, k, t, kind)
	if err != nil {
		return index.List{}, Outcome{}, err
	}
	age := time.Since(l.Checked)
	if known && rule.fresh(age) {
		return l, rule.outcome(Hit, age), nil
	}
	if !known {
		if err, ok := c.negative.get(k); ok {
			return index.List{}, Outcome{Status: Negative}, err
		}
	}
	staleFor := func(why error) (index.List, Outcome, error) {
		out := rule.outcome(Stale, age)
		out.Reason = reason(why)
		return l, out, nil
	}
	mayBeStale := known && (c.settings().Offline || rule.usable(age))
	if why, ok := c.paused.get(k); ok && mayBeStale {
		return staleFor(why)
	}

	patience := ctx
	if mayBeStale {
		var cancel context.CancelFunc
		timeout := c.revalidateTimeout
		if up.slow.Load() {
			timeout = 0
		}
		patience, cancel = context.WithTimeoutCause(ctx, timeout, errSlow)
		defer cancel()
	}
	f, err := share(patience, c, k, func(ctx context.Context) (index.List, error) {
		stored := l
		l, err := fetch(ctx, up.origin)
		if errors.Is(err, oci.ErrUnconfirmed) && (len(stored.Referrers) == 0 || !mayBeStale) {
			l, err = index.List{}, nil // nothing else is known
		}
		if err != nil {
			if !oci.IsAbsent(err) {
				c.paused.put(k, err, failurePause)
			}
			return l, c.noteWord(knew, k, err)
		}
		l.Checked = time.Now()
		c.paused.drop(k)
		if kind == index.Referrers && len(l.Referrers) == 0 && !c.isCachedManifest(t) {
			c.records.RememberList(kind, t, l)
			return l, nil // anybody can make up digests without end: this is not written
		}
		if err := c.records.PutList(kind, t, l); err != nil {
			c.log.Warn("a list could not be kept", zap.Stringer("reference", t), zap.Error(err))
		}
		return l, nil
	})
	switch {
	case err == nil:
		out := rule.outcome(status(f.mine), 0)
		out.Stored = true
		return f.value, out, nil
	case ctx.Err() == nil && oci.IsTransient(err) && mayBeStale, oci.IsRefused(err) && mayBeStale:
		if patience.Err() != nil {
			c.paused.put(k, errSlow, failurePause)
		}
		return staleFor(err)
	}
	return index.List{}, Outcome{Status: status(f.mine)}, err
}

// isCachedManifest reports whether t's digest is that of a manifest that is cached
// under t's repository.
func (c *Cache) isCachedManifest(t oci.Target) bool {
	l, ok := c.records.Link(t)
	return ok && l.Manifest && c.holds(t.Digest)
}

func listKey(kind string, t oci.Target) string {
	return key("list:"+kind, t.Upstream, t.Repository, string(t.Digest))
}

// keptList gives the list of k, which is that of t's and kind's, from memory or the
// index; ok is false if neither has it. Those who ask for one list at the same time share
// what is read. The error is ctx's, or that too many lists are being read.
func (c *Cache) keptList(ctx context.Context, k string, t oci.Target, kind string) (l index.List, ok bool, err error) {
	if l, ok := c.records.ListInMemory(kind, t); ok {
		return l, true, nil
	}
	f, err := share(ctx, c, key("kept", k), func(ctx context.Context) (index.List, error) {
		return readingList(ctx, c, func() (index.List, error) {
			l, ok := c.records.List(kind, t)
			if !ok {
				return l, errNotKept
			}
			return l, nil
		})
	})
	if errors.Is(err, errNotKept) {
		return index.List{}, false, nil
	}
	return f.value, err == nil, err
}

// errNotKept says that the index has no such list.
var errNotKept = errors.New("no such list is cached")

// readingList runs read, which makes a list out of the index, when it is its turn: a
// list may have megabytes, of which the memory tier need not hold any, and a crowd may
// ask for many lists at a time. If that takes long, it refuses.
func readingList[V any](ctx context.Context, c *Cache, read func() (V, error)) (v V, err error) {
	patience := time.NewTimer(listPatience)
	defer patience.Stop()
	select {
	case c.readingLists <- struct{}{}:
		defer func() { <-c.readingLists }()
		return read()
	case <-patience.C:
		c.metrics.Refused.WithLabelValues("lists").Inc()
		return v, &oci.Error{Code: oci.CodeUnavailable, RetryAfter: 2 * time.Second, Message: "the cache reads as many lists as it may at a time; ask again"}
	case <-ctx.Done():
		return v, context.Cause(ctx)
	}
}

// listPatience is how long a request for a list waits for its turn.
const listPatience = 10 * time.Second
