package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// DefaultWarmJobs and MaxWarmJobs are how many images, and how many blobs, Warm
	// fetches at a time where nothing is said, and at most.
	DefaultWarmJobs = 8
	MaxWarmJobs     = 64
	// tellEvery is how often Warm tells how far it has come.
	tellEvery = 500 * time.Millisecond
	// maxWarmProblems is how many problems of one image are told.
	maxWarmProblems = 4
)

// AllPlatforms stands for all platforms that an index has.
const AllPlatforms = "all"

// WarmImage is an image that Warm fetches.
type WarmImage struct {
	// Name is the reference as it was given, for what is told where Err is set.
	Name string
	// Target is what is fetched, unless Err says why it can not be.
	Target oci.Target
	Err    error
	// Platforms are those to fetch of it; none is those of the WarmOptions.
	Platforms []string
}

// WarmOptions say how Warm fetches.
type WarmOptions struct {
	// Platforms are those that are fetched of an index, "linux/arm/v7", or
	// AllPlatforms; none is those that the cache is configured for.
	Platforms []string
	// Referrers has what refers to the images fetched too, and what refers to that:
	// signatures, SBOMs.
	Referrers bool
	// DryRun fetches no configs and layers, and changes no tag. Manifests that are not
	// here are fetched, for without them nothing can be said, and are kept.
	DryRun bool
	// Jobs is how many images and blobs are fetched at a time, at most MaxWarmJobs.
	// Zero is DefaultWarmJobs.
	Jobs int
	// WaitForQuota waits where an upstream grants no more pulls than are kept for
	// clients. Else what needs one fails.
	WaitForQuota bool
	// Tell is told how far it has come, by one goroutine at a time; nil tells nobody.
	// Its error ends the run.
	Tell func(WarmState) error
}

// WarmState is how far Warm has come.
type WarmState struct {
	// Done of Total images are done, for better or worse.
	Done, Total int
	// Bytes of TotalBytes that are to be fetched have come, as far as is known by now.
	Bytes, TotalBytes int64
	// Current are the images that are being fetched, in order.
	Current []WarmTransfer
	// Waiting says what is waited for; empty where nothing is.
	Waiting string
}

// WarmTransfer is an image on its way.
type WarmTransfer struct {
	Name              string
	Bytes, TotalBytes int64
}

// Warmed is what Warm has done.
type Warmed struct {
	DryRun bool          `json:"dryRun"`
	Images []WarmedImage `json:"images"`
	// Failed is how many of the images have an error, and Partial how many lack some of the
	// platforms and have no error.
	Failed  int `json:"failed"`
	Partial int `json:"partial"`
	// Each content counts once, for the first image that has it.
	BytesFetched int64 `json:"bytesFetched"`
	BytesHere    int64 `json:"bytesHere"`
	BytesToFetch int64 `json:"bytesToFetch"`
	// Pulls are the manifests that were asked for, of each upstream that was: Docker Hub
	// counts them.
	Pulls []WarmPulls `json:"pulls"`
}

// WarmPulls are the pulls from one upstream.
type WarmPulls struct {
	Upstream string `json:"upstream"`
	Pulls    int    `json:"pulls"`
}

// WarmedImage is what became of one image.
type WarmedImage struct {
	Reference string        `json:"reference"`
	Digest    digest.Digest `json:"digest,omitempty"`
	// Platforms are those of which all is here, or would be; empty where the manifest
	// says none.
	Platforms []string `json:"platforms"`
	// Layers and Referrers are counted once each.
	Layers    int `json:"layers"`
	Referrers int `json:"referrers"`
	// BytesFetched have come, BytesHere were here before, or came for another image of
	// the same run, and BytesToFetch are what a dry run has left out.
	BytesFetched int64 `json:"bytesFetched"`
	BytesHere    int64 `json:"bytesHere"`
	BytesToFetch int64 `json:"bytesToFetch"`
	// Pulls are the manifests that were asked for.
	Pulls int `json:"pulls"`
	// MissingPlatforms are those of the platforms that the image does not have.
	MissingPlatforms []string `json:"missingPlatforms,omitempty"`
	// Stale is set if the tag could not be confirmed: the image is here as it was.
	Stale bool `json:"stale,omitempty"`
	// Note says what is not as it should be, though all is here that there is: the tag
	// could not be confirmed, or one of the platforms is not there.
	Note string `json:"note,omitempty"`
	// Error says what is not here, and why; empty where all is.
	Error string `json:"error,omitempty"`
}

// Warm fetches images through the cache's own path: what is here is not fetched, what
// is on its way for a client is shared, and what breaks off is resumed by the next run.
// A tag stands for what it has moved to once all of that is here. The images keep their
// order. An error says that it did not come to its end.
func (c *Cache) Warm(ctx context.Context, images []WarmImage, o WarmOptions) (*Warmed, error) {
	if o.Jobs == 0 {
		o.Jobs = DefaultWarmJobs
	}
	o.Jobs = min(max(o.Jobs, 1), MaxWarmJobs)
	platforms, err := c.warmedPlatforms(o.Platforms)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &warming{
		cache: c, WarmOptions: o, ctx: ctx, platforms: platforms, slots: semaphore.NewWeighted(int64(o.Jobs)),
		gates: map[string]*pullGate{}, claimed: map[digest.Digest]*warmClaim{}, pulls: map[string]int{},
		state: WarmState{Total: len(images)},
	}
	done := make([]*warmingImage, len(images))
	stop := w.tellBehind(cancel)
	var g errgroup.Group
	g.SetLimit(o.Jobs)
	for i, img := range images {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			done[i] = w.image(img)
			return nil
		})
	}
	_ = g.Wait() // none fails: each image has its error
	stop()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return w.result(done), nil
}

// warmedPlatforms is warmPlatforms, where none are those that the cache is configured for.
func (c *Cache) warmedPlatforms(platforms []string) ([]string, error) {
	if len(platforms) == 0 {
		platforms = c.Platforms()
	}
	return warmPlatforms(platforms)
}

// warmPlatforms checks and normalises platforms; none, and AllPlatforms, is nil, for all.
func warmPlatforms(platforms []string) ([]string, error) {
	var list []string
	for _, s := range platforms {
		if s == AllPlatforms {
			return nil, nil
		}
		p, err := oci.ParsePlatform(s)
		if err != nil {
			return nil, err
		}
		if name := oci.PlatformName(&p); !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list, nil
}

// warming is one run of Warm.
type warming struct {
	WarmOptions
	cache     *Cache
	ctx       context.Context
	platforms []string            // nil is all
	slots     *semaphore.Weighted // of requests for manifests and blobs

	mu      sync.Mutex
	gates   map[string]*pullGate
	claimed map[digest.Digest]*warmClaim
	pulls   map[string]int
	state   WarmState // without Current
	current []*warmingImage
}

// warmClaim is content that an image sees to; done is closed when it has, and then err is set.
type warmClaim struct {
	done chan struct{}
	err  error
}

// tellBehind tells now and then how far w has come, until stop is called.
func (w *warming) tellBehind(cancel context.CancelCauseFunc) (stop func()) {
	if w.Tell == nil {
		return func() {}
	}
	ended := make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		tick := time.NewTicker(tellEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if err := w.Tell(w.now()); err != nil {
					cancel(err)
					return
				}
			case <-ended:
				return
			}
		}
	})
	return func() {
		close(ended)
		telling.Wait()
	}
}

// now gives how far w has come.
func (w *warming) now() WarmState {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.state
	for _, img := range w.current {
		have := img.progress()
		s.Bytes += have
		s.TotalBytes += img.total
		s.Current = append(s.Current, WarmTransfer{Name: img.Reference, Bytes: have, TotalBytes: img.total})
	}
	for _, g := range w.gates {
		if s.Waiting = g.waiting; s.Waiting != "" {
			break
		}
	}
	return s
}

// result makes the answer of what became of each image.
func (w *warming) result(images []*warmingImage) *Warmed {
	r := &Warmed{DryRun: w.DryRun, Images: []WarmedImage{}, Pulls: []WarmPulls{}}
	for _, img := range images {
		if !w.DryRun && len(img.problems) == 0 {
			img.check(w.cache)
		}
		img.Error = strings.Join(img.problems[:min(len(img.problems), maxWarmProblems)], "; ")
		if more := len(img.problems) - maxWarmProblems; more > 0 {
			img.Error += fmt.Sprintf("; and %d more problems", more)
		}
		switch {
		case img.Error != "":
			r.Failed++
		case len(img.MissingPlatforms) > 0:
			r.Partial++
		}
		r.Images = append(r.Images, img.WarmedImage)
		r.BytesFetched += img.BytesFetched
		r.BytesToFetch += img.BytesToFetch
		r.BytesHere += img.first
	}
	for name, n := range w.pulls {
		r.Pulls = append(r.Pulls, WarmPulls{Upstream: name, Pulls: n})
	}
	slices.SortFunc(r.Pulls, func(a, b WarmPulls) int { return strings.Compare(a.Upstream, b.Upstream) })
	return r
}

// pullGate lets pulls from one upstream pass as long as it grants more than is kept for
// clients. It is guarded by warming.mu.
type pullGate struct {
	inFlight int
	left     chan struct{} // closed and replaced when one ends
	waiting  string        // what is waited for
}

// quotaCheck is how often is looked whether an upstream grants pulls again.
const quotaCheck = 30 * time.Second

// gate gives that of up. w.mu is held.
func (w *warming) gate(up *upstream) *pullGate {
	g := w.gates[up.name]
	if g == nil {
		g = &pullGate{left: make(chan struct{})}
		w.gates[up.name] = g
	}
	return g
}

// awaitLimit waits a while after up has refused a request for its limit, by limited:
// which need not be one of its pulls. The error is that w has ended.
func (w *warming) awaitLimit(up *upstream, limited error) error {
	var e *oci.Error
	var again time.Duration
	if errors.As(limited, &e) {
		again = e.RetryAfter
	}
	wait := quotaCheck
	if again > 0 {
		wait = min(wait, again)
	}
	w.mu.Lock()
	g := w.gate(up)
	g.waiting = quotaError(limited, again).Error()
	w.mu.Unlock()
	timer := time.NewTimer(max(wait, time.Second))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-w.ctx.Done():
		return context.Cause(w.ctx)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	g.waiting = ""
	return nil
}

// pull waits until a pull from up may be made. The caller calls end after it.
func (w *warming) pull(up *upstream) (end func(), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.gate(up)
	for {
		again, err := up.sparePulls(w.ctx, g.inFlight+1)
		if err == nil {
			g.waiting = ""
			g.inFlight++
			w.pulls[up.name]++
			return func() {
				w.mu.Lock()
				defer w.mu.Unlock()
				g.inFlight--
				close(g.left)
				g.left = make(chan struct{})
			}, nil
		}
		left, wait := g.left, quotaCheck
		switch {
		case g.inFlight > 0: // what is under way is not counted for certain
		case !w.WaitForQuota:
			return nil, quotaError(err, again)
		default:
			g.waiting = quotaError(err, again).Error()
			if again > 0 {
				wait = min(wait, again)
			}
		}
		w.mu.Unlock()
		timer := time.NewTimer(max(wait, time.Second))
		select {
		case <-left:
		case <-timer.C:
		case <-w.ctx.Done():
		}
		timer.Stop()
		w.mu.Lock()
		if w.ctx.Err() != nil {
			return nil, context.Cause(w.ctx)
		}
	}
}

// quotaError says when there are pulls again.
func quotaError(err error, again time.Duration) error {
	text := err.Error()
	if e := (*oci.Error)(nil); errors.As(err, &e) {
		text = e.Message
	}
	if again > 0 {
		text += "; it grants more at " + second(time.Now().Add(again))
	}
	return errors.New(text)
}

// sparePulls tells why n more pulls are not to be made for what no client waits for.
func (u *upstream) sparePulls(ctx context.Context, n int) (again time.Duration, err error) {
	if u.metered == nil {
		return 0, nil
	}
	return u.metered.SparePulls(ctx, n)
}
