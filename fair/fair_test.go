package fair

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func addr(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}) }

func TestAnotherAddressOrNameWaitsForOneTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(1, 1000)
		release, err := q.Take(t.Context(), addr(1), "a")
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var order []string
		var all sync.WaitGroup
		wait := func(from int, name string) {
			all.Go(func() {
				release, err := q.Take(t.Context(), addr(from), name)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				order = append(order, fmt.Sprint(from, name))
				mu.Unlock()
				release()
			})
			synctest.Wait()
		}
		for range 100 {
			wait(1, "a")
		}
		wait(1, "b")
		wait(2, "a")
		release()
		all.Wait()
		if len(order) != 102 {
			t.Fatalf("%d were served, want 102", len(order))
		}
		for who, most := range map[string]int{"1b": 4, "2a": 3} {
			for i, got := range order {
				if got == who && i >= most {
					t.Errorf("%s was served as number %d behind a hundred others, want %d at most: %v", who, i+1, most, order[:10])
				}
			}
		}
		if q.free != 1 || q.waiting != 0 || len(q.of) != 0 || q.turns.Len() != 0 {
			t.Errorf("the queue is not empty: %+v", q)
		}
	})
}

func TestAFullQueueDropsTheLongestLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(0, 10)
		ctx, cancel := context.WithCancel(t.Context())
		errs := make(chan error, 100)
		wait := func(from int, name string) {
			go func() { _, err := q.Take(ctx, addr(from), name); errs <- err }()
			synctest.Wait()
		}
		for range 10 {
			wait(1, "a")
		}
		wait(1, "a") // its line is the longest
		wait(2, "a") // takes the place of one
		wait(1, "b") // and again
		for range 2 {
			wait(2, "a")
		}
		if full := len(errs); full != 5 || q.Waiting() != 10 {
			t.Errorf("%d were refused and %d wait, want 5 and 10", full, q.Waiting())
		}
		if n := q.of[addr(2)].Value.(*address).waiting; n != 3 {
			t.Errorf("%d wait from the second address, want all 3", n)
		}
		for len(errs) > 0 {
			if err := <-errs; !errors.Is(err, ErrFull) {
				t.Errorf("want ErrFull, got %v", err)
			}
		}
		cancel()
		synctest.Wait()
		if q.Waiting() != 0 || len(q.of) != 0 {
			t.Errorf("%d wait for nothing", q.Waiting())
		}
	})
}

func TestNoPlaceIsLost(t *testing.T) {
	q := New(3, 50)
	var inside, most atomic.Int64
	var all sync.WaitGroup
	for n := range 60 {
		all.Go(func() {
			for i := range 200 {
				ctx, cancel := context.WithCancel(t.Context())
				if i%3 == 0 {
					go cancel()
				}
				release, err := q.Take(ctx, addr(n%4), fmt.Sprint(n%3))
				if err == nil {
					if now := inside.Add(1); now > most.Load() {
						most.Store(now)
					}
					inside.Add(-1)
					release()
				}
				cancel()
			}
		})
	}
	all.Wait()
	if q.free != 3 || q.waiting != 0 || len(q.of) != 0 || most.Load() > 3 {
		t.Errorf("want 3 places free again and never more taken, got %d, %d wait, %d were taken", q.free, q.waiting, most.Load())
	}
}

func TestOriginIsThe64OfIPv6(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "2001:db8::1": "2001:db8::", "2001:db8:0:0:1::": "2001:db8::", "2001:db8:0:1::": "2001:db8:0:1::", "fe80::1%eth0": "fe80::",
	} {
		if got := Origin(netip.MustParseAddr(in)); got.String() != want {
			t.Errorf("%s: want %s, got %s", in, want, got)
		}
	}
	if Origin(netip.Addr{}).IsValid() {
		t.Error("no address has become one")
	}
}
