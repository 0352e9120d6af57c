package fill

import (
	"bufio"
	"context"
	"io"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// rescueAfter is how long a transfer may bring less than leastProgress bytes
	// before its upstream is asked for the same bytes once more. Both double, up to
	// maxRescueAfter, each time that this brings no more.
	rescueAfter    = 5 * time.Second
	maxRescueAfter = time.Minute
	leastProgress  = 16 << 10
)

// rescue watches over w's transfer, which began to send and runs on a context that abandon
// ends. When it makes next to no progress, rescue asks for the rest of w's claim on a second
// connection. If the transfer is of a part of the blob, and that does not help or the next
// one stands still too, rescue asks for the whole blob: the upstream may answer requests
// for parts and not send them. Once the second body has brought more than the first one
// did, rescue leaves it with w and abandons the first. The caller calls stop, which waits
// until all of this has ended.
func (f *Fill) rescue(ctx context.Context, w *writer, part bool, abandon func()) (stop func()) {
	watch, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		at := func() int64 {
			f.mu.Lock()
			defer f.mu.Unlock()
			return w.at
		}
		for patience, before := rescueAfter, at(); ; {
			timer := time.NewTimer(patience)
			select {
			case <-timer.C:
			case <-watch.Done():
				timer.Stop()
				return
			}
			now := at()
			slow := now-before < leastProgress*int64(patience/rescueAfter)
			before = now
			if !slow {
				patience = rescueAfter
				continue
			}
			var body *oci.Body
			if !part || !w.stalled {
				body = f.secondBody(ctx, watch, w, patience, false)
			}
			if body == nil && part {
				body = f.secondBody(ctx, watch, w, patience, true)
			}
			w.stalled = w.stalled || part
			if body != nil {
				f.mu.Lock()
				w.spare = body
				f.mu.Unlock()
				abandon()
				return
			}
			patience = min(2*patience, maxRescueAfter)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// secondBody asks for the rest of w's claim, or for the whole blob, on another connection.
// It returns the body from w's claim on once leastProgress bytes of that are there; nil if
// they don't come before watch ends or the body brings nothing for patience. The body lives
// as long as ctx. If the whole has come, the upstream is taken for one without ranges, and
// w takes all that it can.
func (f *Fill) secondBody(ctx, watch context.Context, w *writer, patience time.Duration, whole bool) *oci.Body {
	f.mu.Lock()
	ask, least := f.ask(w), min(w.end-w.at, leastProgress)
	f.mu.Unlock()
	if least <= 0 {
		return nil
	}
	from := ask.From
	if whole {
		ask = oci.Whole
	}
	ctx, cancel := context.WithCancel(ctx)
	unwatch := context.AfterFunc(watch, cancel)
	timer := time.AfterFunc(patience, cancel)
	body, err := f.task.Open(ctx, ask)
	if err != nil {
		timer.Stop()
		unwatch()
		cancel()
		return nil // the first one may still come
	}
	r := bufio.NewReaderSize(body, leastProgress)
	fits := body.Span.From <= from
	if fits {
		// The whole begins with what is here.
		for at := body.Span.From; err == nil && at < from; at += leastProgress {
			timer.Reset(patience)
			_, err = io.CopyN(io.Discard, r, min(leastProgress, from-at))
		}
		if err == nil {
			_, err = r.Peek(int(least))
		}
	}
	if inTime, watched := timer.Stop(), unwatch(); err != nil || !fits || !inTime || !watched || ctx.Err() != nil {
		cancel()
		_ = body.Close() // nothing of it was used
		return nil
	}
	if whole {
		if body.NoRanges != nil {
			body.NoRanges()
		}
		f.mu.Lock()
		if f.whole = true; f.size >= 0 {
			w.end = f.freeUpTo(w)
		}
		f.mu.Unlock()
	}
	second := *body
	second.Span.From = from
	second.ReadCloser = &rescued{Reader: r, body: body, cancel: cancel}
	return &second
}

// rescued is the body of a second connection.
type rescued struct {
	io.Reader
	body   io.Closer
	cancel func()
	end    func() bool // stops what ends it; may be nil
}

func (r *rescued) Close() error {
	defer r.cancel()
	if r.end != nil {
		r.end()
	}
	return r.body.Close()
}

// takeSpare returns the body that rescue has left with w, which begins at the byte where w
// is or before it; nil if there is none. Its reads end with ctx. The caller closes it.
func (f *Fill) takeSpare(ctx context.Context, w *writer) (*oci.Body, error) {
	f.mu.Lock()
	body := w.spare
	w.spare = nil
	f.mu.Unlock()
	if body == nil {
		return nil, nil
	}
	r := body.ReadCloser.(*rescued)
	r.end = context.AfterFunc(ctx, r.cancel)
	return body, nil
}

func (f *Fill) hasSpare(w *writer) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return w.spare != nil
}

// dropSpare closes the body that rescue has left with w, if there is one.
func (f *Fill) dropSpare(w *writer) {
	f.mu.Lock()
	body := w.spare
	w.spare = nil
	f.mu.Unlock()
	if body != nil {
		_ = body.Close() // nothing of it was used
	}
}
