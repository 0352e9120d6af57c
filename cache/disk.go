package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/metrics"
)

// probeEvery is how often a disk that has failed is tried again.
const probeEvery = 5 * time.Second

// cause is why the cache's disk fails; a label of the metrics.
type cause string

const (
	causeNone     cause = ""
	causeFull     cause = "full"
	causeReadOnly cause = "read-only"
	causeIO       cause = "io"
	causeFiles    cause = "files"
	causeDenied   cause = "permission"
	causeMissing  cause = "missing"
	causeOther    cause = "other"
)

var causes = []cause{causeFull, causeReadOnly, causeIO, causeFiles, causeDenied, causeMissing, causeOther}

// sentence says the cause to people.
func (c cause) sentence() string {
	switch c {
	case causeFull:
		return "the cache's disk is full"
	case causeReadOnly:
		return "the cache's file system is read-only"
	case causeIO:
		return "the cache's disk has read or write errors"
	case causeFiles:
		return "the process has too many files open"
	case causeDenied:
		return "files of the cache belong to another user"
	case causeMissing:
		return "the cache's blobs directory is missing or empty"
	default:
		return "the cache's disk fails"
	}
}

func causeOf(err error) cause {
	switch {
	case err == nil:
		return causeNone
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return causeFull
	case errors.Is(err, syscall.EROFS):
		return causeReadOnly
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return causeFiles
	case errors.Is(err, syscall.EIO):
		return causeIO
	case errors.Is(err, fs.ErrPermission):
		return causeDenied
	case errors.As(err, new(*store.BlobsMissingError)):
		return causeMissing
	}
	return causeOther
}

// disk knows whether the cache's directory can be written. It is told of each
// failure, says the first once, and tries now and then whether it is over; what
// fails meanwhile is not said again. Nothing depends on it: each fetch finds out
// for itself. All methods are safe for concurrent use.
type disk struct {
	log     *zap.Logger
	metrics *metrics.Metrics
	// check writes a few bytes, and looks whether what is stored can be read.
	check func() error
	// room gives the bytes that are free and that there are.
	room func() (free, total int64, err error)
	// full, where it is not nil, is called when the disk has no room left.
	full func()
	// trouble wakes watch; it has room for one.
	trouble chan struct{}

	mu    sync.Mutex
	cause cause
	err   error
	since time.Time
	need  int64
}

func newDisk(check func() error, room func() (free, total int64, err error), log *zap.Logger, m *metrics.Metrics) *disk {
	for _, c := range causes {
		m.DiskDegraded.WithLabelValues(string(c)).Set(0)
	}
	return &disk{check: check, room: room, log: log, metrics: m, trouble: make(chan struct{}, 1)}
}

// failed notes that the disk did not do what was asked of it. need is how many
// bytes were to be written, where that is known.
func (k *disk) failed(what string, err error, need int64) {
	if causeOf(err) == causeFull && k.full != nil {
		k.full()
	}
	k.mu.Lock()
	first := k.cause == causeNone
	if first {
		k.cause, k.err, k.since, k.need = causeOf(err), fmt.Errorf("%s: %w", what, err), time.Now(), 0
	}
	k.need = max(k.need, need)
	now := k.cause
	k.mu.Unlock()
	if !first {
		return
	}
	k.metrics.DiskDegraded.WithLabelValues(string(now)).Set(1)
	k.log.Error(now.sentence()+": what is cached is served, what is not is passed on without being kept",
		zap.String("cause", string(now)), zap.String("while", what), zap.Error(err))
	select {
	case k.trouble <- struct{}{}:
	default:
	}
}

// watch tries a disk that has failed until it works again. It ends with ctx.
func (k *disk) watch(ctx context.Context) {
	for {
		select {
		case <-k.trouble:
		case <-ctx.Done():
			return
		}
		for k.isDegraded() {
			select {
			case <-time.After(probeEvery):
				k.probe()
			case <-ctx.Done():
				return
			}
		}
	}
}

// probe finds out how the disk does.
func (k *disk) probe() {
	if err := k.check(); err != nil {
		k.failed("use the cache directory", err, 0)
		return
	}
	k.mu.Lock()
	was, since, need := k.cause, k.since, k.need
	denied := (*store.DeniedError)(nil)
	errors.As(k.err, &denied)
	k.mu.Unlock()
	if was == causeNone || was == causeDenied && denied != nil && denied.StillDenied() {
		return
	}
	if was == causeFull {
		// Room for a few bytes is none for a layer. But one giant that will
		// never fit is no reason to call a disk full for ever.
		if free, total, err := k.room(); err == nil && free < min(need, total/20) {
			return
		}
	}
	k.mu.Lock()
	k.cause, k.err, k.need = causeNone, nil, 0
	k.mu.Unlock()
	k.metrics.DiskDegraded.WithLabelValues(string(was)).Set(0)
	k.log.Info("the cache's disk works again", zap.String("cause", string(was)), zap.Duration("after", time.Since(since)))
}

func (k *disk) isDegraded() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cause != causeNone
}

// degraded says in a sentence what is wrong; empty where nothing is.
func (k *disk) degraded() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cause == causeNone {
		return ""
	}
	return fmt.Sprintf("%s since %s, and what is not cached is passed on without being kept (%v)",
		k.cause.sentence(), k.since.UTC().Format(time.RFC3339), k.err)
}
