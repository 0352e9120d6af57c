package cache

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/image-spec/specs-go/v1"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// wantServed checks what GET and HEAD of a tag give, and what they say of it.
func wantServed(t *testing.T, c *Cache, target oci.Target, want v1.Descriptor, says string) {
	t.Helper()
	head, headOut, err := c.Describe(t.Context(), target, rewrite.Accept{})
	if err != nil {
		t.Fatalf("HEAD %v: %v", target, err)
	}
	get, getOut, err := c.Manifest(t.Context(), target, rewrite.Accept{})
	if err != nil {
		t.Fatalf("GET %v: %v", target, err)
	}
	if get.Digest != want.Digest || int64(len(get.Bytes)) != want.Size || get.MediaType != want.MediaType {
		t.Errorf("GET %v: %s, want %s", target, get.Digest, want.Digest)
	}
	if head.Digest != want.Digest || head.Size != want.Size || head.MediaType != want.MediaType {
		t.Errorf("HEAD %v: %+v, want %s", target, head, want.Digest)
	}
	for _, out := range []Outcome{headOut, getOut} {
		if says == "" && out.Reason != "" || !strings.Contains(out.Reason, says) {
			t.Errorf("%v: reason %q, want %q", target, out.Reason, says)
		}
	}
}

// mover is a hub with the images of a tag that moves.
type mover struct {
	hub    *registry
	images []v1.Descriptor
}

func newMover() mover {
	m := mover{hub: newRegistry()}
	for i := range uint64(3) {
		m.images = append(m.images, m.hub.addImage("app", content(70+i, 100)))
	}
	m.to(0)
	return m
}

func (m mover) to(i int) { m.hub.tag("app", "1", m.images[i]) }

func TestMovedTagIsHeldUntilItIsOldEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMover()
		o := Options{Dir: t.TempDir(), MemoryBytes: mib}
		rule := TagRule{Match: "*", TTL: time.Minute, StaleIfError: 100 * time.Hour, Hold: 24 * time.Hour}
		c := open(t, o, map[string]*registry{"docker.io": m.hub}, rule)
		target := tagged("app", "1")
		wantServed(t, c, target, m.images[0], "")
		time.Sleep(time.Hour)
		m.to(1)
		wantServed(t, c, target, m.images[0], "held as it was: it has moved to "+m.images[1].Digest.String())
		time.Sleep(time.Hour)
		// Also when the upstream fails, and after a restart.
		m.hub.set(errDown, 0)
		wantServed(t, c, target, m.images[0], "held")
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.hub.set(nil, 0)
		c = open(t, o, map[string]*registry{"docker.io": m.hub}, rule)
		time.Sleep(time.Hour)
		wantServed(t, c, target, m.images[0], "held")
		e, err := c.Explain(t.Context(), target)
		if err != nil || e.Digest != m.images[0].Digest || e.Move == nil || e.Move.To != m.images[1].Digest || !strings.Contains(e.Reason, "held") ||
			e.Move.Until.Sub(e.Move.Seen) != rule.Hold {
			t.Errorf("explained: %+v, %v", e, err)
		}
		// It moves again: what was withdrawn is never served, and the hold begins anew.
		m.to(2)
		time.Sleep(time.Hour)
		wantServed(t, c, target, m.images[0], m.images[2].Digest.String())
		time.Sleep(23 * time.Hour)
		wantServed(t, c, target, m.images[0], "held")
		time.Sleep(2 * time.Hour)
		wantServed(t, c, target, m.images[2], "")
		if e, err := c.Explain(t.Context(), target); err != nil || e.Move != nil {
			t.Errorf("explained: %+v, %v", e, err)
		}
		// The next move is held at what was served last.
		m.to(1)
		time.Sleep(time.Hour)
		wantServed(t, c, target, m.images[2], "held")
		m.to(2)
		time.Sleep(time.Hour)
		wantServed(t, c, target, m.images[2], "")
	})
}

func TestHeldTagWithoutItsOldContentIsServedAsItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMover()
		c := open(t, Options{}, map[string]*registry{"docker.io": m.hub}, TagRule{Match: "*", TTL: time.Minute, Hold: 24 * time.Hour})
		wantServed(t, c, tagged("app", "1"), m.images[0], "")
		time.Sleep(time.Hour)
		m.to(1)
		wantServed(t, c, tagged("app", "1"), m.images[0], "held")
		if err := c.store.Remove(m.images[0].Digest); err != nil {
			t.Fatal(err)
		}
		wantServed(t, c, tagged("app", "1"), m.images[1], "")
	})
}

func TestTagThatIsDeletedAndPushedAnewHasMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMover()
		c := open(t, Options{}, map[string]*registry{"docker.io": m.hub}, TagRule{Match: "*", TTL: time.Minute, OnMove: HoldOnMove})
		target := tagged("app", "1")
		wantServed(t, c, target, m.images[0], "")
		m.hub.mu.Lock()
		delete(m.hub.tags["app"], "1")
		m.hub.mu.Unlock()
		time.Sleep(time.Hour)
		if _, _, err := c.Manifest(t.Context(), target, rewrite.Accept{}); !oci.IsAbsent(err) {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		m.to(1)
		wantServed(t, c, target, m.images[0], "until that is accepted")
	})
}

func TestMovesAreToldOf(t *testing.T) {
	for word, level := range map[OnMove]string{"": "info", FollowMove: "info", WarnOfMove: "warn", HoldOnMove: "warn", BlockOnMove: "warn"} {
		t.Run(string(word), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMover()
				core, logs := observer.New(zap.InfoLevel)
				counters := metrics.Discard()
				c := open(t, Options{Log: zap.New(core), Metrics: counters}, map[string]*registry{"docker.io": m.hub}, TagRule{Match: "*", TTL: time.Minute, OnMove: word})
				target := tagged("app", "1")
				wantServed(t, c, target, m.images[0], "")
				for range 3 {
					time.Sleep(time.Hour)
					_, _, _ = c.Describe(t.Context(), target, rewrite.Accept{})
				}
				m.to(1)
				for range 3 {
					time.Sleep(time.Hour)
					_, _, _ = c.Describe(t.Context(), target, rewrite.Accept{})
				}
				told := logs.FilterMessage("a tag has moved").All()
				if len(told) != 1 || told[0].Level.String() != level {
					t.Fatalf("the log says %+v, want it once at level %s", told, level)
				}
				says := told[0].ContextMap()
				if says["reference"] != "docker.io/app:1" || says["from"] != m.images[0].Digest.String() || says["to"] != m.images[1].Digest.String() {
					t.Errorf("the log says %v", says)
				}
				label := string(word)
				if label == "" {
					label = "follow"
				}
				var counted dto.Metric
				if err := counters.TagMoves.WithLabelValues("docker.io", label).Write(&counted); err != nil || counted.Counter.GetValue() != 1 {
					t.Errorf("%v moves are counted, %v; want 1", counted.Counter.GetValue(), err)
				}
			})
		})
	}
}

func TestBlockedTagIsRefusedUntilItsMoveIsAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMover()
		o := Options{Dir: t.TempDir(), MemoryBytes: mib}
		rule := TagRule{Match: "*", TTL: time.Minute, OnMove: BlockOnMove, StaleIfError: 100 * time.Hour}
		c := open(t, o, map[string]*registry{"docker.io": m.hub}, rule)
		target := tagged("app", "1")
		if _, err := c.Accept(t.Context(), target); !oci.IsAbsent(err) {
			t.Errorf("accept what is not known: %v", err)
		}
		wantServed(t, c, target, m.images[0], "")
		if a, err := c.Accept(t.Context(), target); err != nil || a.From != "" || a.To != m.images[0].Digest {
			t.Errorf("accept what has not moved: %+v, %v", a, err)
		}
		m.to(1)
		time.Sleep(time.Hour)
		refused := func() {
			t.Helper()
			for name, ask := range map[string]func(context.Context, oci.Target, rewrite.Accept) (*Manifest, Outcome, error){"GET": c.Manifest, "HEAD": c.Describe} {
				_, _, err := ask(t.Context(), target, rewrite.Accept{})
				var e *oci.Error
				if !errors.As(err, &e) || e.Code != oci.CodeDenied || e.HTTPStatus() != 403 || !strings.Contains(e.Message, "entrepot accept docker.io/app:1") ||
					!strings.Contains(e.Message, m.images[0].Digest.String()) {
					t.Errorf("%s: %v; want DENIED and what to do", name, err)
				}
			}
		}
		refused()
		if e, err := c.Explain(t.Context(), target); err != nil || e.Status != Blocked || e.Move == nil || e.Move.From != m.images[0].Digest {
			t.Errorf("explained: %+v, %v", e, err)
		}
		// By digest either can be had, and as of a date what it was.
		wantManifest(t, c, digested("app", m.images[0].Digest), m.images[0], Hit)
		wantManifest(t, c, digested("app", m.images[1].Digest), m.images[1], Miss)
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		c = open(t, o, map[string]*registry{"docker.io": m.hub}, rule)
		refused()
		m.hub.set(errDown, 0)
		time.Sleep(time.Hour)
		refused()
		a, err := c.Accept(t.Context(), target)
		if err != nil || a.From != m.images[0].Digest || a.To != m.images[1].Digest || a.Reference != "docker.io/app:1" {
			t.Errorf("accept: %+v, %v", a, err)
		}
		m.hub.set(nil, 0)
		for range 2 {
			time.Sleep(time.Hour)
			wantServed(t, c, target, m.images[1], "")
		}
		m.to(2)
		time.Sleep(time.Hour)
		refused2 := func() (err error) {
			_, _, err = c.Manifest(t.Context(), target, rewrite.Accept{})
			return err
		}
		if err := refused2(); !oci.IsRefused(err) {
			t.Errorf("the next move: %v; want it refused", err)
		}
		// It is back at what was accepted.
		m.to(1)
		time.Sleep(time.Hour)
		wantServed(t, c, target, m.images[1], "")
	})
}

func TestMoveThatIsAcceptedWhileItIsAskedForStaysAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMover()
		c := open(t, Options{}, map[string]*registry{"docker.io": m.hub}, TagRule{Match: "*", TTL: time.Minute, OnMove: HoldOnMove})
		slow := &sluggish{registry: m.hub, takes: time.Second}
		c.settings().upstreams["docker.io"].origin = slow
		target := tagged("app", "1")
		wantServed(t, c, target, m.images[0], "")
		time.Sleep(time.Hour)
		m.to(1)
		wantServed(t, c, target, m.images[0], "held")
		time.Sleep(time.Hour)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _, _ = c.Describe(t.Context(), target, rewrite.Accept{})
		}()
		synctest.Wait()
		if a, err := c.Accept(t.Context(), target); err != nil || a.From != m.images[0].Digest {
			t.Fatalf("%+v, %v", a, err)
		}
		<-done
		wantServed(t, c, target, m.images[1], "")
	})
}
