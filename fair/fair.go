// Package fair shares a few places among many who want one.
//
// A Queue serves addresses in turn, and the names at one address in turn, so that
// however many wait from one address or under one name, another waits for one of them
// at most. It knows nothing of what the places are for.
package fair

import (
	"container/list"
	"context"
	"errors"
	"net/netip"
	"sync"
)

// Origin returns the address by which a client is counted: an IPv6 client has a whole
// /64 to itself, an IPv4 client one address. The zero Addr stays as it is.
func Origin(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if !a.Is6() {
		return a
	}
	p, err := a.Prefix(64)
	if err != nil {
		return a // no address has fewer than 64 bits here
	}
	return p.Addr()
}

// ErrFull says that too many wait, and that none of them has less right to.
var ErrFull = errors.New("too many wait")

// Queue has a number of places. All methods are safe for concurrent use.
type Queue struct {
	most int

	mu      sync.Mutex
	free    int
	waiting int
	// turns are the addresses that wait, *address, the next one first; of finds them.
	turns list.List
	of    map[netip.Addr]*list.Element
}

// address are the waiters from one address.
type address struct {
	from    netip.Addr
	waiting int
	// turns are its names, *line, the next one first; of finds them.
	turns list.List
	of    map[string]*list.Element
}

// line are the waiters of one name at one address, *waiter, the first one first.
type line struct {
	name    string
	waiters list.List
}

// waiter is one who waits. err is set before done is closed; nil is a place.
type waiter struct {
	at   *address
	line *line
	self *list.Element // nil once it waits no more
	done chan struct{}
	err  error
}

// New makes a queue with places for that many, in which at most most wait.
func New(places, most int) *Queue {
	return &Queue{free: places, most: most, of: map[netip.Addr]*list.Element{}}
}

// Take waits for a place and returns what gives it back, to be called once. It fails
// with the cause of ctx, or with ErrFull if too many wait: then the last of the longest
// line has to go, which may be this one or one who waits already.
func (q *Queue) Take(ctx context.Context, from netip.Addr, name string) (release func(), err error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	q.mu.Lock()
	if q.free > 0 {
		q.free--
		q.mu.Unlock()
		return q.release, nil
	}
	w, err := q.enter(Origin(from), name)
	q.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case <-w.done:
	case <-ctx.Done():
		q.mu.Lock()
		if w.self != nil {
			q.remove(w)
			q.mu.Unlock()
			return nil, context.Cause(ctx)
		}
		q.mu.Unlock() // the place came in the same moment
	}
	if w.err != nil {
		return nil, w.err
	}
	return q.release, nil
}

// Waiting returns how many wait.
func (q *Queue) Waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waiting
}

// enter puts a waiter into its line. q.mu is held.
func (q *Queue) enter(from netip.Addr, name string) (*waiter, error) {
	if q.waiting >= q.most {
		if !q.displace(from, name) {
			return nil, ErrFull
		}
	}
	e := q.of[from]
	if e == nil {
		e = q.turns.PushBack(&address{from: from, of: map[string]*list.Element{}})
		q.of[from] = e
	}
	a := e.Value.(*address)
	le := a.of[name]
	if le == nil {
		le = a.turns.PushBack(&line{name: name})
		a.of[name] = le
	}
	w := &waiter{at: a, line: le.Value.(*line), done: make(chan struct{})}
	w.self = w.line.waiters.PushBack(w)
	a.waiting++
	q.waiting++
	return w, nil
}

// displace makes the last of the longest line of the address with most waiters give up
// for a newcomer. It reports false if the newcomer's own line is that one. q.mu is held.
func (q *Queue) displace(from netip.Addr, name string) bool {
	var largest *address
	for e := q.turns.Front(); e != nil; e = e.Next() {
		if a := e.Value.(*address); largest == nil || a.waiting > largest.waiting {
			largest = a
		}
	}
	if largest == nil {
		return false
	}
	if e := q.of[from]; e != nil && e.Value.(*address).waiting >= largest.waiting {
		largest = e.Value.(*address)
	}
	var longest *line
	for e := largest.turns.Front(); e != nil; e = e.Next() {
		if l := e.Value.(*line); longest == nil || l.waiters.Len() > longest.waiters.Len() {
			longest = l
		}
	}
	if largest.from == from {
		own := 0
		if e := largest.of[name]; e != nil {
			own = e.Value.(*line).waiters.Len()
		}
		if own+1 >= longest.waiters.Len() {
			return false
		}
	}
	last := longest.waiters.Back().Value.(*waiter)
	q.remove(last)
	last.err = ErrFull
	close(last.done)
	return true
}

// remove takes a waiter out of its line. q.mu is held.
func (q *Queue) remove(w *waiter) {
	w.line.waiters.Remove(w.self)
	w.self = nil
	w.at.waiting--
	q.waiting--
	if w.line.waiters.Len() == 0 {
		w.at.turns.Remove(w.at.of[w.line.name])
		delete(w.at.of, w.line.name)
	}
	if w.at.waiting == 0 {
		q.turns.Remove(q.of[w.at.from])
		delete(q.of, w.at.from)
	}
}

// release gives the place to whose turn it is.
func (q *Queue) release() {
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.turns.Front()
	if e == nil {
		q.free++
		return
	}
	a := e.Value.(*address)
	le := a.turns.Front()
	w := le.Value.(*line).waiters.Front().Value.(*waiter)
	// The next one at this address is of another name, and at the next turn it is
	// another address, as long as there are any.
	a.turns.MoveToBack(le)
	q.turns.MoveToBack(e)
	q.remove(w)
	close(w.done)
}
