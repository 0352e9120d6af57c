// Package cache is the pull-through cache: it decides what is fresh, fetches
// what is missing, once, verifies it, keeps it on disk with memory in front,
// and serves it, also while the upstream can not be asked.
//
// It promises that nothing is kept or served to its last byte whose digest has
// not been verified, and that a repository serves only what was reached through
// it. It knows neither HTTP nor how an upstream is asked: it fetches through
// Origin.
package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"github.com/entrepot-dev/entrepot/cache/fill"
	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/memory"
	"github.com/entrepot-dev/entrepot/cache/records"
	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// DefaultPlatform is what a client that takes no index is given.
	DefaultPlatform = "linux/amd64"
	// DefaultNegativeTTL is for how long an upstream's "not found" is believed at most;
	// at first it is believed for a second or so.
	DefaultNegativeTTL = 10 * time.Second
	// DefaultRevalidateTimeout is how long a client waits for the upstream to
	// confirm a tag that is past its TTL.
	DefaultRevalidateTimeout = 2 * time.Second
	// failurePause is for how long a tag is served stale without asking again
	// after its upstream could not be asked.
	failurePause = 10 * time.Second
)

// Options say what a Cache is made of.
type Options struct {
	// Settings are those at first; see Reconfigure.
	Settings
	// Dir is the cache directory; it is made if it is not there, and held
	// against other processes until Close.
	Dir string
	// MemoryBytes is the size of the memory tier; zero is none.
	MemoryBytes int64
	// NegativeTTL and RevalidateTimeout default to the constants above.
	NegativeTTL       time.Duration
	RevalidateTimeout time.Duration
	// MaxFills bounds the blobs that are fetched at a time; more wait for a
	// moment and are then refused. Zero means DefaultMaxFills.
	MaxFills int
	// ManifestMemory bounds what manifests take up while they are read from
	// disk, in bytes; more wait. Zero means DefaultManifestMemory, and less than
	// one manifest may have means that.
	ManifestMemory int64
	Log            *zap.Logger
	Metrics        *metrics.Metrics

	// files is the file system; a test's may fail.
	files store.Files
}

// Upstream is a registry that the cache stands in front of.
type Upstream struct {
	Origin Origin
	// Tags are the rules of freshness; the first that matches a tag holds,
	// the defaults where none does.
	Tags []TagRule
	// Uniform says that everyone who may use the cache may have everything of this
	// upstream: it is asked with the proxy's own credentials, and no access rule
	// concerns it. Otherwise content is served to a repository's readers only
	// once the upstream has sent or confirmed it for that repository.
	Uniform bool
	// Prefetch is how many layers of images that clients have begun to pull
	// are fetched ahead of them at a time; large ones count fourfold. Zero is
	// none.
	Prefetch int
	// Complete is when blobs are completed of which clients have asked for pieces.
	Complete Completion
}

// Cache is an open cache directory and the fetches that run for it. All methods
// are safe for concurrent use.
type Cache struct {
	negativeTTL       time.Duration
	revalidateTimeout time.Duration
	// current is what holds for requests that come now.
	current       atomic.Pointer[settings]
	reconfiguring sync.Mutex
	newPlaces     func() places
	log           *zap.Logger
	metrics       *metrics.Metrics

	store *store.Store
	index *index.Index
	// records is what is known of tags, links and lists, and memory the part of the same
	// tier that has content.
	records  *records.Records
	memory   contentMemory
	disk     *disk
	verifier *verifier
	// passages bounds what is passed on without being kept.
	passages chan struct{}
	// scrubbing has room for the one pass over all that is stored.
	scrubbing chan struct{}
	// cleaning has room for the one purge or gc.
	cleaning chan struct{}
	// walking has room for the one walk over many images, see bigWalk.
	walking chan struct{}
	// rescrub holds one token where the background pass has new settings.
	rescrub chan struct{}

	uses    *uses
	asked   *asked
	missing *missing
	evictor *evictor
	// reconciled is closed when the index agrees with the tree, or that was
	// given up.
	reconciled chan struct{}
	// losses counts how often the index was found damaged and begun anew.
	losses atomic.Uint64
	// unrestored is set while a lost index could not be restored and that is to be tried again.
	unrestored atomic.Bool
	// trimWarned is when the log last said that the ledger of tags is full.
	trimWarned time.Time

	// flights makes one fetch of what several ask for at a time. They run on
	// ctx, so that a client that goes away does not end what others wait for.
	flights singleflight.Group
	joins   sync.Map // of flights: key to *oci.Joins
	// negative remembers that something is not there, or not to be had.
	negative negative
	// paused remembers why a tag's upstream could not be asked just now.
	paused recent[error]
	// planned remembers what clients may ask for next, by each blob of it.
	planned recent[*plan]
	// tocs remembers what manifests say about the TOC of each blob of them.
	tocs recent[[]fill.TOC]
	// unfit remembers digests whose stored file must not be served, though it
	// is there.
	unfit recent[struct{}]
	// denied remembers digests of which this process may not read the stored file.
	denied recent[error]
	// lost remembers digests of which the stored content was damaged.
	lost recent[struct{}]

	// flying are the blobs that are being fetched, and limit is how many bytes the cache
	// may have, as the evictor last found; zero is no limit.
	flying inFlight
	limit  atomic.Int64

	// manifests is the room for those that are being read from disk.
	manifests *semaphore.Weighted
	choices   choices
	// readingLists has a token for each list that is being read from the index.
	readingLists chan struct{}

	ctx    context.Context // ends fetches at Close
	cancel context.CancelCauseFunc
	work   sync.WaitGroup // all goroutines of this Cache

	mu     sync.Mutex
	closed bool
	fills  map[fillKey]*blobFill
	claims map[digest.Digest]chan struct{} // closed when given up, see claim
	// importing is the import that runs; nil where none does.
	importing *Import

	// moves counts the tags that have moved.
	moves atomic.Uint64

	completing platformFetches
}

type upstream struct {
	name   string
	origin Origin
	// metered is origin, where its pulls are counted; else nil.
	metered Metered
	// saved counts the manifests that clients were given without a pull.
	saved interface{ Inc() }
	rules freshness
	// uniform is Upstream.Uniform.
	uniform bool
	// slow is set while the upstream has let a client wait for as long as any
	// does, and has said nothing since: nobody else waits.
	slow atomic.Bool
	// ahead bounds what is fetched before clients ask, by weight, of which
	// there is aheadMax; nil where nothing is.
	ahead    *semaphore.Weighted
	aheadMax int64
	places   places
	parked   *parked
	complete Completion
}

// errReserve says that a pull was not spent on what is here already.
var errReserve = errors.New("what is left of the upstream's pull quota is kept for what is not here")

// sparePull tells why no pull is to be spent on what is here already; nil where
// one may be.
func (u *upstream) sparePull(ctx context.Context) error {
	if u.metered == nil {
		return nil
	}
	if err := u.metered.SparePull(ctx); err != nil {
		return fmt.Errorf("%w: %w", errReserve, err)
	}
	return nil
}

// heard notes an answer of the upstream: it does not hang.
func (u *upstream) heard(err error) {
	if err == nil || oci.IsAbsent(err) || oci.IsRefused(err) {
		u.slow.Store(false)
	}
}

// countSaved counts the answer to a client's GET of a manifest, if it was come
// by without one of its own.
func (u *upstream) countSaved(s Status) {
	if s != Miss {
		u.saved.Inc()
	}
}

// errClosing ends the fetches of a cache that is being closed.
var errClosing = errors.New("the proxy is shutting down")

// Open opens the cache directory. It touches no network, and its time does not
// grow with what is cached. Its errors are sentences for the person who starts
// the program. The caller calls Close.
func Open(o Options) (*Cache, error) {
	c := &Cache{
		negativeTTL:       o.NegativeTTL,
		revalidateTimeout: o.RevalidateTimeout,
		verifier:          newVerifier(),
		passages:          make(chan struct{}, maxPassages),
		scrubbing:         make(chan struct{}, 1),
		cleaning:          make(chan struct{}, 1),
		walking:           make(chan struct{}, 1),
		rescrub:           make(chan struct{}, 1),
		log:               o.Log,
		metrics:           o.Metrics,
		fills:             map[fillKey]*blobFill{},
		claims:            map[digest.Digest]chan struct{}{},
		uses:              newUses(),
		asked:             newAsked(),
		reconciled:        make(chan struct{}),
	}
	if c.negativeTTL == 0 {
		c.negativeTTL = DefaultNegativeTTL
	}
	if c.revalidateTimeout == 0 {
		c.revalidateTimeout = DefaultRevalidateTimeout
	}
	if c.log == nil {
		c.log = zap.NewNop()
	}
	if c.metrics == nil {
		c.metrics = metrics.Discard()
	}
	if o.MaxFills == 0 {
		o.MaxFills = DefaultMaxFills
	}
	if o.ManifestMemory == 0 {
		o.ManifestMemory = DefaultManifestMemory
	}
	c.manifests = semaphore.NewWeighted(max(o.ManifestMemory, oci.MaxManifestSize))
	c.readingLists = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))
	c.newPlaces = newPlaces(o.MaxFills)
	set, err := c.compile(o.Settings)
	if err != nil {
		return nil, err
	}
	c.current.Store(set)

	tier, err := memory.New(o.MemoryBytes, c.metrics)
	if err != nil {
		return nil, err
	}
	c.memory = contentMemory{tier}
	adopter := store.AdopterFor(o.Dir)
	if o.files == nil {
		o.files = store.OS{Adopter: adopter}
	}
	c.missing = readMissing(o.Dir, adopter)
	if c.store, err = store.OpenOn(o.files, o.Dir); err != nil {
		c.memory.Close()
		return nil, err
	}
	c.store.Foreign(func(path string) {
		c.log.Warn("something that is no file of the cache was moved to the directory of damaged content", zap.String("path", path))
	})
	for _, name := range []string{"index.db", "index.backup"} {
		c.store.KeepOwn(name)
	}
	var aside string
	if c.index, aside, err = index.OpenWith(filepath.Join(o.Dir, "index.db"), index.Options{Adopt: adopter.File, ReadOnly: c.store.ReadOnly()}); err != nil {
		c.memory.Close()
		err = store.Denied(o.Dir, filepath.Join(o.Dir, "index.db"), err)
		return nil, errors.Join(err, c.store.Close())
	}
	c.records = records.New(c.index, tier)
	if aside != "" {
		c.log.Warn("index damaged; quarantined, restoring from its backup and from the cached content",
			zap.String("quarantined", aside))
	}
	// An index without its content would forget all of it, and a disk that is mounted later
	// would hide what was stored meanwhile.
	if missing := (*store.BlobsMissingError)(nil); errors.As(c.checkReadable(), &missing) {
		c.memory.Close()
		return nil, errors.Join(missing, c.index.Close(), c.store.Close())
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	c.disk = newDisk(c.checkDisk, c.store.Room, c.log, c.metrics)
	c.evictor = newEvictor(c)
	c.disk.full = c.evictor.soon
	c.work.Go(func() { c.disk.watch(c.ctx) })
	c.countStored()
	c.work.Go(c.writeAsked)
	c.index.Lost(c.indexLost)
	c.index.Trimmed(c.ledgerTrimmed)
	if c.store.ReadOnly() { // nothing can be evicted, mended or noted
		c.disk.failed("open the cache directory", c.store.Check(), 0)
		c.unrestored.Store(!c.index.Whole())
		close(c.reconciled)
		return c, nil
	}
	c.work.Go(c.evictor.run)
	c.work.Go(c.scrubBehind)
	c.work.Go(func() {
		defer close(c.reconciled)
		c.lookForStrangers(os.Geteuid())
		c.reconcile()
	})
	return c, nil
}

// Close ends all fetches, keeps what they have got for the next start, and
// gives the directory up. Bodies that are being read are cut short, so the
// server is shut down first. When ctx ends before that is done, Close gives
// ctx's error and the directory stays held until the process ends.
func (c *Cache) Close(ctx context.Context) error {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	c.mu.Unlock()
	if closed {
		return nil
	}
	c.cancel(errClosing)
	done := make(chan struct{})
	go func() {
		c.work.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("close the cache: fetches do not end: %w", ctx.Err())
	}
	c.memory.Close()
	return errors.Join(c.index.Close(), c.store.Close())
}

// Ending has another process that wants the directory told that this one is ending: before
// running transfers are waited for, and then Close is called.
func (c *Cache) Ending() { c.store.Ending() }

// checkReadable returns why stored content cannot be read, as store.Readable does.
func (c *Cache) checkReadable() error {
	blobs, _ := c.index.Totals()
	return c.store.Readable(blobs > 0)
}

// checkDisk returns why content cannot be stored now, or stored content cannot be read.
func (c *Cache) checkDisk() error {
	if err := c.checkReadable(); err != nil {
		return err
	}
	return c.store.Check()
}

// Degraded tries to write to the cache's disk and to read the directories of the content, and
// returns a sentence about what is wrong; empty if nothing is. The cache serves all the same:
// it passes on what it cannot store.
func (c *Cache) Degraded() string {
	c.disk.probe()
	return c.disk.degraded()
}

// Size gives how many blobs and manifests are stored whole, and their bytes.
func (c *Cache) Size() (count, bytes int64) { return c.index.Totals() }

// Repositories lists up to n repositories of which something is cached, as
// "docker.io/library/nginx", sorted: the first that sort behind after. It lists those of
// one upstream only, if upstream is not empty. It gives fewer than n only at the end of
// the list. The error is of the index.
func (c *Cache) Repositories(_ context.Context, upstream, after string, n int) ([]string, error) {
	names, err := c.index.RepositoriesAfter(upstream, after, n)
	if err != nil {
		return nil, fmt.Errorf("list the cached repositories: %w", err)
	}
	return names, nil
}

func (c *Cache) upstream(name string) (*upstream, error) {
	u, ok := c.settings().upstreams[name]
	if !ok {
		return nil, oci.Errorf(oci.CodeNameUnknown, "upstream %s is not configured", name)
	}
	return u, nil
}

// flight is what a shared fetch gives to one of those who wait for it.
type flight[V any] struct {
	value V
	// mine is set for the one whose call began the fetch.
	mine bool
}

// share runs fetch, once for all who ask for key at a time, and waits for it
// until ctx ends. The fetch runs on the cache's own context.
func share[V any](ctx context.Context, c *Cache, key string, fetch func(context.Context) (V, error)) (flight[V], error) {
	var f flight[V]
	select {
	case r := <-begin(c, key, &f.mine, fetch):
		if r.Err != nil {
			return f, r.Err
		}
		f.value = r.Val.(V)
		return f, nil
	case <-ctx.Done():
		return flight[V]{}, context.Cause(ctx)
	}
}

// begin runs fetch as share does and does not wait. It sets mine, before the
// channel delivers, where this call began the fetch.
func begin[V any](c *Cache, key string, mine *bool, fetch func(context.Context) (V, error)) <-chan singleflight.Result {
	if j, ok := c.joins.Load(key); ok {
		j.(*oci.Joins).Note()
	}
	return c.flights.DoChan(key, func() (any, error) {
		*mine = true
		joins := &oci.Joins{}
		c.joins.Store(key, joins)
		defer c.joins.Delete(key)
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return nil, closing()
		}
		c.work.Add(1)
		c.mu.Unlock()
		defer c.work.Done()
		return fetch(oci.WithJoins(c.ctx, joins))
	})
}

func closing() *oci.Error {
	return &oci.Error{Code: oci.CodeUnavailable, Message: errClosing.Error(), Err: errClosing}
}

// key makes one string of the parts of a name; no part can hold its separator.
func key(parts ...string) string {
	n := len(parts)
	for _, p := range parts {
		n += len(p)
	}
	b := make([]byte, 0, n)
	for i, p := range parts {
		if i > 0 {
			b = append(b, 0)
		}
		b = append(b, p...)
	}
	return string(b)
}

// status is Miss for the one who began a fetch and Collapsed for who joined it.
func status(mine bool) Status {
	if mine {
		return Miss
	}
	return Collapsed
}
