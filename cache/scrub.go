package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/fill"
	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// scrubEvery is how long after its beginning a pass is followed by the next
	// where nothing else is configured.
	scrubEvery = 168 * time.Hour
	// scrubSettle is how long after the start the background pass begins.
	scrubSettle = time.Minute
	// scrubNote is how often it is noted how far a pass has come.
	scrubNote = 30 * time.Second
	// maxHolders bounds the repositories that are asked for what is damaged.
	maxHolders = 8
)

// errScrubbing says that a pass runs already.
var errScrubbing = errors.New("a scrub runs already: wait for it to end")

// pace keeps reading to a rate. It is for one goroutine at a time.
type pace struct {
	rate int64 // bytes a second; zero is no limit
	due  time.Time
}

// wait sleeps after n bytes were read for as long as the rate wants.
func (p *pace) wait(ctx context.Context, n int) error {
	if p.rate <= 0 {
		return nil
	}
	now := time.Now()
	if p.due.Before(now) {
		p.due = now
	}
	p.due = p.due.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	select {
	case <-time.After(p.due.Sub(now)):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Scrub verifies all that is stored, at rate bytes a second (zero: as fast as it
// can), sets aside what is damaged and fetches that again. progress, where it is
// not nil, is told now and then how far it has come, and what it gives ends the
// pass, as ctx does. There is one such pass at a time.
func (c *Cache) Scrub(ctx context.Context, rate int64, progress func(index.Scrub) error) (index.Scrub, error) {
	select {
	case c.scrubbing <- struct{}{}:
		defer func() { <-c.scrubbing }()
	default:
		return index.Scrub{}, errScrubbing
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(c.ctx, func() { cancel(errClosing) })()
	s := index.Scrub{Started: time.Now()}
	told := time.Now()
	err := c.scrub(ctx, &s, &pace{rate: rate}, func() error {
		if progress == nil || time.Since(told) < time.Second {
			return nil
		}
		told = time.Now()
		return progress(s)
	})
	if err == nil {
		c.note(&s)
	}
	return s, err
}

// scrubBehind runs a pass once in every so long, as the settings want it, and goes on
// with one that an earlier process did not finish. The cache owns it.
func (c *Cache) scrubBehind() {
	next := time.Now().Add(scrubSettle)
	for {
		var due <-chan time.Time
		if c.settings().ScrubRate > 0 {
			due = time.After(time.Until(next))
		}
		select {
		case <-due:
		case <-c.rescrub:
			next = time.Now().Add(scrubSettle)
			continue
		case <-c.ctx.Done():
			return
		}
		every := c.settings().ReverifyAfter
		if every == 0 {
			every = scrubEvery
		}
		s := c.index.Scrub()
		if due := s.Started.Add(every); !s.Finished.IsZero() && time.Now().Before(due) {
			next = due
			continue
		}
		if !s.Finished.IsZero() || s.Started.IsZero() {
			s = index.Scrub{Started: time.Now()}
		}
		c.scrubOnce(&s)
		next = time.Now().Add(scrubSettle)
	}
}

// errScrubOff ends a pass that the settings do not want any more.
var errScrubOff = errors.New("cache.scrub_rate is 0")

// scrubOnce runs the background pass from where s says, unless another runs.
func (c *Cache) scrubOnce(s *index.Scrub) {
	select {
	case c.scrubbing <- struct{}{}:
		defer func() { <-c.scrubbing }()
	default:
		return
	}
	noted := time.Now()
	p := &pace{rate: c.settings().ScrubRate}
	err := c.scrub(c.ctx, s, p, func() error {
		if p.rate = c.settings().ScrubRate; p.rate == 0 {
			return errScrubOff
		}
		if time.Since(noted) < scrubNote {
			return nil
		}
		noted = time.Now()
		return c.index.PutScrub(*s)
	})
	switch {
	case err == nil:
		c.note(s)
	case c.ctx.Err() != nil, errors.Is(err, errScrubOff):
		_ = c.index.PutScrub(*s) // else the next process reads a little more
	default:
		c.log.Warn("the pass over what is stored was broken off and goes on later", zap.Error(err))
	}
}

// note remembers and tells that a pass has been finished.
func (c *Cache) note(s *index.Scrub) {
	s.Finished, s.After = time.Now(), ""
	c.metrics.ScrubFinished.Set(float64(s.Finished.Unix()))
	if err := c.index.PutScrub(*s); err != nil {
		c.disk.failed("write the index", err, 0)
	}
	c.log.Info("all that is stored has been verified", zap.Int64("blobs", s.Blobs), zap.Int64("bytes", s.Bytes),
		zap.Int("damaged", s.Damaged), zap.Int("healed", s.Healed), zap.Duration("took", s.Finished.Sub(s.Started)))
}

// scrub goes on with s to the end of what is stored, in the order of digests.
// each is called after each blob, and what it gives ends the pass.
func (c *Cache) scrub(ctx context.Context, s *index.Scrub, p *pace, each func() error) error {
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512} {
		for prefix := range 256 {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if from := digest.NewDigestFromEncoded(alg, fmt.Sprintf("%02x~", prefix)); from < s.After {
				continue
			}
			stored, err := c.store.List(alg, byte(prefix))
			if err != nil {
				return fmt.Errorf("scrub: %w", err)
			}
			slices.Sort(stored)
			for _, d := range stored {
				if d <= s.After {
					continue
				}
				if err := c.scrubBlob(ctx, s, d, p); err != nil {
					return err
				}
				s.After = d
				if err := each(); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// scrubBlob verifies d's content, and fetches it again where it is damaged. Its
// error ends the pass.
func (c *Cache) scrubBlob(ctx context.Context, s *index.Scrub, d digest.Digest, p *pace) error {
	if denied := c.store.Denial(d); denied != nil {
		if s.Denied++; s.Denied == 1 {
			s.DeniedFile = denied.Error()
		}
		c.log.Warn("scrub may not read a stored file", zap.Stringer("digest", d), zap.Error(denied))
		return nil
	}
	v := c.verifyingAt(d, foundByScrub, p.wait)
	err := v.wait(ctx)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, fs.ErrNotExist):
		return nil // removed meanwhile
	case err != nil && !errors.Is(err, errDamaged) && !fill.IsDiskError(err):
		return err
	}
	s.Blobs++
	s.Bytes += v.stamp.Size
	c.metrics.Scrubbed.Add(float64(v.stamp.Size))
	if err == nil {
		return nil
	}
	s.Damaged++
	if err := c.heal(ctx, d); err != nil {
		c.log.Warn("damaged content could not be fetched again", zap.Stringer("digest", d), zap.Error(err))
		return ctx.Err()
	}
	s.Healed++
	c.metrics.Healed.Inc()
	return nil
}

// errNoHolder says that no repository is known to have a digest.
var errNoHolder = errors.New("no repository is known that has it")

// heal fetches d's content from a repository that may serve it.
func (c *Cache) heal(ctx context.Context, d digest.Digest) error {
	err := errNoHolder
	for _, h := range c.index.Holders(d, maxHolders) {
		up, ok := c.settings().upstreams[h.Upstream]
		if !ok {
			continue
		}
		t := oci.Target{Upstream: h.Upstream, Repository: h.Repository, Digest: d}
		if err = c.healFrom(ctx, up, t, h.Link); err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
	}
	return err
}

func (c *Cache) healFrom(ctx context.Context, up *upstream, t oci.Target, l index.Link) error {
	if l.Manifest {
		if _, err := c.fetchManifest(ctx, up, t, c.known()); err != nil {
			return err
		}
	} else {
		f, _, err := c.join(up, t, wanted{proved: true, joins: c.mayJoin(t, l, true), size: l.Size})
		if err != nil {
			return err
		}
		if f != nil {
			select {
			case <-f.gone:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if err := f.Failure(); err != nil {
				return err
			}
		}
	}
	if !c.holds(t.Digest) {
		return errors.New("it was fetched and could not be kept")
	}
	return nil
}
