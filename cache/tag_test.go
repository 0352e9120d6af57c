package cache

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// sluggish is a registry whose answer to a HEAD is of the time when it was asked,
// and takes a while to arrive.
type sluggish struct {
	*registry
	takes time.Duration
	mute  bool // HEAD is not known here
}

func (s *sluggish) Resolve(ctx context.Context, repo, ref string) (v1.Descriptor, error) {
	if s.mute {
		return v1.Descriptor{Size: -1}, nil
	}
	d, err := s.registry.Resolve(ctx, repo, ref)
	time.Sleep(s.takes)
	return d, err
}

func TestLateAnswerMovesNoTagBack(t *testing.T) {
	for name, known := range map[string]bool{"a tag that is new here": false, "a tag that is known": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := newRegistry()
				c := open(t, Options{}, map[string]*registry{"docker.io": hub})
				slow := &sluggish{registry: hub, takes: 5 * time.Second}
				c.settings().upstreams["docker.io"].origin = slow
				older, newer := hub.addImage("app", content(60, 100)), hub.addImage("app", content(61, 100))
				target := tagged("app", "1")
				hub.tag("app", "1", older)
				if known {
					wantManifest(t, c, target, older, Miss)
					time.Sleep(time.Hour)
				}
				head := make(chan struct{})
				go func() {
					defer close(head)
					_, _, _ = c.Describe(t.Context(), target, rewrite.Accept{})
				}()
				synctest.Wait()
				time.Sleep(time.Second)
				hub.tag("app", "1", newer)
				if _, err := c.fetchTag(t.Context(), c.settings().upstreams["docker.io"], target, c.known()); err != nil {
					t.Fatal(err)
				}
				<-head
				time.Sleep(5 * time.Second)
				wantManifest(t, c, target, newer, Hit)
			})
		})
	}
}

func TestLateAbsenceDropsNoTagThatWasFetchedSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{}, map[string]*registry{"docker.io": hub})
		c.settings().upstreams["docker.io"].origin = &sluggish{registry: hub, takes: 5 * time.Second}
		target := tagged("app", "1")
		head := make(chan struct{})
		go func() {
			defer close(head)
			if _, _, err := c.Describe(t.Context(), target, rewrite.Accept{}); !oci.IsAbsent(err) {
				t.Errorf("HEAD before the push: %v; want that it is absent", err)
			}
		}()
		synctest.Wait()
		time.Sleep(time.Second)
		image := hub.addImage("app", content(62, 100))
		hub.tag("app", "1", image)
		wantManifest(t, c, target, image, Miss)
		<-head
		wantManifest(t, c, target, image, Hit)
	})
}

func TestDeletedTagIsKeptAlsoWhereHeadIsNotKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		c := open(t, Options{}, map[string]*registry{"docker.io": hub},
			TagRule{Match: "*", TTL: time.Minute, StaleIfError: time.Hour, KeepDeleted: true})
		c.settings().upstreams["docker.io"].origin = &sluggish{registry: hub, mute: true}
		image := hub.addImage("app", content(63, 100))
		hub.tag("app", "1", image)
		wantManifest(t, c, tagged("app", "1"), image, Miss)
		hub.mu.Lock()
		delete(hub.tags["app"], "1")
		hub.mu.Unlock()
		for range 3 {
			time.Sleep(time.Hour)
			wantManifest(t, c, tagged("app", "1"), image, Stale)
		}
	})
}
