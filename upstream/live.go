package upstream

import (
	"context"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
)

// Live is an upstream whose Registry can be exchanged for another while it is asked:
// what was asked of the old one is answered by it. Its methods are those of Registry,
// and safe for concurrent use. Close it when it is no longer used.
type Live struct {
	mu      sync.Mutex
	now     *used
	retired sync.WaitGroup // the goroutines that close what was exchanged
}

// used is a Registry, and those who wait for its answer just now.
type used struct {
	*Registry
	asking sync.WaitGroup
}

// NewLive makes a Live of r, which it closes.
func NewLive(r *Registry) *Live { return &Live{now: &used{Registry: r}} }

// Exchange has r asked from now on, which it closes. The one before is closed once
// nobody waits for an answer of it; bodies that it gave go on.
func (l *Live) Exchange(r *Registry) {
	l.mu.Lock()
	old := l.now
	l.now = &used{Registry: r}
	l.mu.Unlock()
	l.retired.Go(func() {
		old.asking.Wait()
		old.Close()
	})
}

// Close closes the Registry, and waits for those that were exchanged before.
func (l *Live) Close() {
	l.mu.Lock()
	now := l.now
	l.mu.Unlock()
	now.Close()
	l.retired.Wait()
}

// ask gives the Registry of this moment, which stays open until done is called.
func (l *Live) ask() (r *Registry, done func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now.asking.Add(1)
	return l.now.Registry, l.now.asking.Done
}

// Resolve is Registry.Resolve.
func (l *Live) Resolve(ctx context.Context, repo, ref string) (v1.Descriptor, error) {
	r, done := l.ask()
	defer done()
	return r.Resolve(ctx, repo, ref)
}

// Manifest is Registry.Manifest.
func (l *Live) Manifest(ctx context.Context, repo, ref string) (*oci.Manifest, error) {
	r, done := l.ask()
	defer done()
	return r.Manifest(ctx, repo, ref)
}

// Stat is Registry.Stat.
func (l *Live) Stat(ctx context.Context, repo string, d digest.Digest) (v1.Descriptor, error) {
	r, done := l.ask()
	defer done()
	return r.Stat(ctx, repo, d)
}

// Blob is Registry.Blob.
func (l *Live) Blob(ctx context.Context, repo string, d digest.Digest, span oci.Span) (*oci.Body, error) {
	r, done := l.ask()
	defer done()
	return r.Blob(ctx, repo, d, span)
}

// Tags is Registry.Tags.
func (l *Live) Tags(ctx context.Context, repo string) ([]string, error) {
	r, done := l.ask()
	defer done()
	return r.Tags(ctx, repo)
}

// Referrers is Registry.Referrers.
func (l *Live) Referrers(ctx context.Context, repo string, d digest.Digest) ([]v1.Descriptor, error) {
	r, done := l.ask()
	defer done()
	return r.Referrers(ctx, repo, d)
}

// SparePull is Registry.SparePull.
func (l *Live) SparePull(ctx context.Context) error {
	r, done := l.ask()
	defer done()
	return r.SparePull(ctx)
}

// SparePulls is Registry.SparePulls.
func (l *Live) SparePulls(ctx context.Context, n int) (again time.Duration, err error) {
	r, done := l.ask()
	defer done()
	return r.SparePulls(ctx, n)
}
