package main

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/entrepot-dev/entrepot/e2e/hub"
)

// kind is a way in which an upstream fails, for a while.
type kind struct {
	name  string
	begin func(h *hub.Hub, rnd *rand.Rand) (end func())
}

func fault(name string, f func(rnd *rand.Rand) hub.Fault) kind {
	return kind{name, func(h *hub.Hub, rnd *rand.Rand) func() { return h.Inject(f(rnd)) }}
}

func always(name string, f hub.Fault) kind {
	return fault(name, func(*rand.Rand) hub.Fault { return f })
}

// up ends what is not a hub.Fault. That a port is taken by another process
// meanwhile shows as an upstream that is never mended.
func up(h *hub.Hub) func() { return func() { _ = h.Up() } }

func offset(rnd *rand.Rand) int64 { return rnd.Int64N(1 << uint(10+rnd.IntN(16))) }

// kinds are all troubles. None of them says that a thing does not exist, or who
// may have it: so no client may ever be told so.
var kinds = []kind{
	fault("closes connections", func(r *rand.Rand) hub.Fault { return hub.CutAfter(offset(r)) }),
	fault("resets connections", func(r *rand.Rand) hub.Fault { return hub.ResetAfter(offset(r)) }),
	fault("stalls", func(r *rand.Rand) hub.Fault { return hub.StallAfter(offset(r), nil).Times(1 + r.IntN(3)) }),
	fault("sends too little", func(r *rand.Rand) hub.Fault { return hub.TruncateAfter(offset(r)) }),
	fault("flips a bit", func(r *rand.Rand) hub.Fault { return hub.Flip(offset(r)).Times(1 + r.IntN(3)) }),
	fault("flips a manifest's bit", func(r *rand.Rand) hub.Fault {
		return hub.Flip(r.Int64N(400)).Of(hub.ManifestGet).Times(1 + r.IntN(3))
	}),
	fault("is slow", func(r *rand.Rand) hub.Fault { return hub.Slow(1 << uint(17+r.IntN(6))) }),
	fault("answers late", func(r *rand.Rand) hub.Fault { return hub.Delay(hub.Any, time.Duration(r.IntN(2500))*time.Millisecond) }),
	always("sends too much", hub.Append(3000).Times(3)),
	always("promises too much", hub.WrongLength(1000).Times(3)),
	always("promises too little", hub.WrongLength(-1000).Times(3)),
	always("tells no lengths", hub.NoLength()),
	always("tells no digests", hub.NoDigest().Of(hub.ManifestHead)),
	always("names wrong digests", hub.WrongDigest().Of(hub.ManifestGet).Times(3)),
	always("answers 200 to a Range", hub.IgnoreRange()),
	always("has expired URLs", hub.ExpireURL()),
	always("limits by 429", hub.Answer(hub.Any, 429).With("Retry-After", "1")),
	always("limits by plain 429", hub.TooManyRequests(hub.Any)),
	always("has a registry that answers 500", hub.Answer(hub.Any, 500)),
	always("has a CDN that answers 403", hub.Answer(hub.CDNGet, 403)),
	always("has a CDN that answers 503", hub.Answer(hub.CDNGet, 503)),
	always("has a token server that answers 503", hub.Answer(hub.Token, 503)),
	{"forgets its tokens and URLs", func(h *hub.Hub, _ *rand.Rand) func() {
		// Not those that are on their way: a registry that refuses a token at
		// once says that a thing may not be had, and the client is told so.
		h.ExpireOldTokens(3 * time.Second)
		h.ExpireURLs()
		return func() {}
	}},
	{"refuses connections", func(h *hub.Hub, _ *rand.Rand) func() { h.Down(); return up(h) }},
	{"has a CDN that refuses connections", func(h *hub.Hub, _ *rand.Rand) func() { h.Down(hub.CDN); return up(h) }},
	{"never answers", func(h *hub.Hub, _ *rand.Rand) func() { h.BlackHole(); return up(h) }},
	{"breaks TLS", func(h *hub.Hub, _ *rand.Rand) func() { h.BreakTLS(); return up(h) }},
}

// stir lets the hubs fail at random until ctx ends: one trouble or two at a time
// for each, and a rest in between. It mends all at the end.
func (w *world) stir(ctx context.Context, h *hub.Hub, rnd *rand.Rand) {
	for ctx.Err() == nil {
		var ends []func()
		for range 1 + rnd.IntN(2) {
			k := kinds[rnd.IntN(len(kinds))]
			w.note(func(r *report) { r.troubles[k.name]++ })
			ends = append(ends, k.begin(h, rnd))
		}
		sleep(ctx, w.o.some(rnd, 4*time.Second))
		for _, end := range ends {
			end()
		}
		sleep(ctx, w.o.some(rnd, 3*time.Second))
	}
	h.Mend()
	_ = h.Up() // see up
}

// some gives a time between nothing and most; in a short run less.
func (o options) some(rnd *rand.Rand, most time.Duration) time.Duration {
	if o.length < time.Minute {
		most /= 3
	}
	return time.Duration(rnd.Int64N(int64(most)))
}

// sleep waits, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// moveTags lets a tag stand for another image from time to time.
func (w *world) moveTags(ctx context.Context, rnd *rand.Rand) {
	for ctx.Err() == nil {
		e := w.corpus.choose(rnd)
		w.corpus.move(e, w.corpus.choose(rnd).image)
		sleep(ctx, w.o.some(rnd, 2*time.Second))
	}
}
