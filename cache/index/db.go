package index

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
)

// db is one open index file. bbolt panics when its pages aren't what it wrote, reads
// outside its mapping, and may keep its locks after either. So a db
//   - runs every read and every write under guarded, the writes in one goroutine of its own;
//   - checks the pages of each path before bbolt follows it (see tx.checkPath);
//   - dies at the first damage: from then on every call returns errDamaged at once, whoever
//     waits is released, and the bbolt.DB is abandoned, because its locks may be held forever.
//
// All methods are safe for concurrent use.
type db struct {
	bolt *bbolt.DB
	// sealed is set if values carry a checksum. Files of older versions don't.
	sealed bool
	// last is the id of the last transaction that was committed: a later one that begins
	// from an older state has lost a meta page.
	last atomic.Int64

	// beginning is held while a reader begins, the only time when a reader's panic leaves
	// bbolt's locks held: nobody else waits for those locks, but for this one.
	beginning sync.Mutex

	// whole is set once all is here that the backup and the damaged file before held.
	whole    atomic.Bool
	restored chan struct{} // closed when whole is set
	marking  sync.Once

	queue   chan *write
	closing chan struct{} // closed to end the writer
	done    chan struct{} // closed when the writer has ended

	dying sync.Once
	dead  chan struct{} // closed at the first damage
	cause error         // why; set before dead is closed

	// unchecked is set until the free list was compared with the tree. It is the writer's.
	unchecked bool
	// changed collects the keys that are written, while the file is copied; nil else. It is
	// the writer's.
	changed map[changedKey]struct{}
	// retired is set once another file has taken this one's place. It is the writer's.
	retired bool
}

// changedKey names an entry that was written.
type changedKey struct{ bucket, key string }

// write is a function that waits for its transaction.
type write struct {
	fn func(*tx) error
	// alone is set for what must not run twice, nor share a transaction.
	alone bool
	err   chan error // has room for the result
}

// maxBatch bounds the writes that share a transaction.
const maxBatch = 1000

// start begins a db on an open file, with its writer. close ends it.
func start(bolt *bbolt.DB, sealed bool, last int64) *db {
	d := &db{bolt: bolt, sealed: sealed, unchecked: true,
		restored: make(chan struct{}), queue: make(chan *write), closing: make(chan struct{}), done: make(chan struct{}), dead: make(chan struct{})}
	d.last.Store(last)
	go d.run()
	return d
}

// close ends the writer and closes the file. It waits for the writes and reads that run,
// except on a file that is damaged.
func (d *db) close() error {
	close(d.closing)
	select {
	case <-d.done:
	case <-d.dead:
		return nil // bbolt's locks may be held forever
	case <-time.After(abandonAfter):
		return fmt.Errorf("a write to the index has not ended for %s", abandonAfter)
	}
	return guarded(d.bolt.Close)
}

// markWhole notes that all is here.
func (d *db) markWhole() {
	d.marking.Do(func() {
		d.whole.Store(true)
		close(d.restored)
	})
}

// die marks the file as damaged and returns err.
func (d *db) die(err error) error {
	d.dying.Do(func() {
		d.cause = err
		close(d.dead)
	})
	return err
}

// settle waits until the writer of a dead db has ended, so that no function runs twice at a
// time, nor counts in after its successor has begun. A writer that is stuck, in a lock of
// bbolt's, runs no function any more.
func (d *db) settle() {
	select {
	case <-d.done:
	case <-time.After(settleFor):
	}
}

// settleFor bounds how long settle waits.
const settleFor = time.Second

// guard runs do. If do finds damage the db dies.
func (d *db) guard(do func() error) error {
	err := guarded(do)
	if errors.Is(err, errDamaged) {
		return d.die(err)
	}
	return err
}

// begin begins a transaction, which sees no older state than was committed. The caller
// ends it.
func (d *db) begin(writable bool) (t *tx, err error) {
	if !writable { // bbolt unlocks what a writer has locked here, but for what only writers wait for
		d.beginning.Lock()
		defer d.beginning.Unlock()
	}
	select {
	case <-d.dead:
		return nil, d.cause
	default:
	}
	// The db has died, if it does, before the next may begin.
	err = d.guard(func() error {
		want := d.last.Load()
		b, err := d.bolt.Begin(writable)
		if err != nil {
			return err
		}
		t = newTx(d, b, writable)
		if writable {
			want++
		}
		if id := int64(t.id); id < want || writable && id != want {
			return damage("transaction %d began where %d was expected", id, want)
		}
		return nil
	})
	if err != nil {
		if t != nil {
			t.end()
		}
		return nil, err
	}
	return t, nil
}

// view runs fn on the state that was committed last.
func (d *db) view(fn func(*tx) error) error {
	t, err := d.begin(false)
	if err != nil {
		return err
	}
	defer t.end()
	return d.guard(func() error { return fn(t) })
}

// write runs fn in a transaction and waits until it is on the disk. fn shares the
// transaction with others and may run more than once, unless alone is set.
func (d *db) write(fn func(*tx) error, alone bool) error {
	w := &write{fn: fn, alone: alone, err: make(chan error, 1)}
	select {
	case d.queue <- w:
	case <-d.dead:
		return d.cause
	case <-d.done:
		select {
		case <-d.dead:
			return d.cause
		default:
			return errClosed
		}
	}
	select {
	case err := <-w.err:
		return err
	case <-d.dead:
	}
	select {
	case err := <-w.err: // it was in time
		return err
	default:
		return d.cause
	}
}

// errClosed is the error of a write after close.
var errClosed = errors.New("the index is closed")

// run is the writer: what comes while a transaction is on its way to the disk shares the
// next.
func (d *db) run() {
	defer close(d.done)
	var next *write // came first after a full batch, or is alone
	for {
		batch := make([]*write, 0, 8)
		if next != nil {
			batch, next = append(batch, next), nil
		} else {
			select {
			case w := <-d.queue:
				batch = append(batch, w)
			case <-d.closing:
				return
			case <-d.dead:
				return
			}
		}
		for more := !batch[0].alone; more && len(batch) < maxBatch; {
			select {
			case w := <-d.queue:
				if w.alone {
					next, more = w, false
				} else {
					batch = append(batch, w)
				}
			default:
				more = false
			}
		}
		d.commit(batch)
		select {
		case <-d.dead:
			return
		default:
		}
	}
}

// commit writes a batch in one transaction. A function that fails gets its error, and the
// others a new transaction.
func (d *db) commit(batch []*write) {
	for len(batch) > 0 {
		failed := -1
		err := d.transact(func(t *tx) error {
			for i, w := range batch {
				if err := w.fn(t); err != nil {
					failed = i
					return err
				}
			}
			return nil
		})
		if failed >= 0 && !errors.Is(err, errDamaged) {
			batch[failed].err <- err
			batch = append(batch[:failed:failed], batch[failed+1:]...)
			continue
		}
		for _, w := range batch {
			w.err <- err
		}
		return
	}
}

// transact runs fn in a transaction of its own. Only the writer calls it.
func (d *db) transact(fn func(*tx) error) error {
	if d.retired {
		return errClosed
	}
	t, err := d.begin(true)
	if err != nil {
		return err
	}
	err = d.guard(func() error {
		if d.unchecked {
			if err := t.checkTree(); err != nil {
				return err
			}
			d.unchecked = false
		}
		if err := fn(t); err != nil {
			if undone := t.b.Rollback(); undone != nil {
				return errors.Join(err, undone)
			}
			return err
		}
		t.checkFreeList()
		if err := t.b.Commit(); err != nil {
			// bbolt has read the list of free pages from the file again.
			d.unchecked = true
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.last.Store(int64(t.id))
	for key := range t.changed {
		d.changed[key] = struct{}{}
	}
	for _, fn := range t.committed {
		fn()
	}
	return nil
}

// abandonAfter bounds how long a file that is to be closed waits for a write that doesn't
// end: a disk that hangs must not keep the process from ending.
const abandonAfter = 20 * time.Second
