package cache

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

func TestExplainSaysWhatARequestWouldMeet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		layer := content(1, 1000)
		image := hub.addImage("app", layer)
		hub.tag("app", "latest", image)
		c := open(t, Options{}, map[string]*registry{"docker.io": hub},
			TagRule{Match: "app:v*", Immutable: true}, TagRule{Match: "*", TTL: time.Minute, StaleIfError: time.Hour})
		latest := tagged("app", "latest")
		explain := func(target oci.Target, want Status) *Explanation {
			t.Helper()
			asked := hub.count()["resolve"]
			e, err := c.Explain(t.Context(), target)
			if err != nil || e.Status != want {
				t.Fatalf("%v: %+v, %v; want %s", target, e, err, want)
			}
			if hub.count()["resolve"] != asked {
				t.Error("explaining asked the upstream")
			}
			return e
		}
		explain(latest, Miss)
		wantManifest(t, c, latest, image, Miss)
		checked := time.Now()
		time.Sleep(30 * time.Second)
		e := explain(latest, Hit)
		if e.Digest != image.Digest || checked.Sub(e.Checked) > time.Second || e.NextCheck.Sub(e.Checked) != time.Minute ||
			e.StaleUntil.Sub(e.NextCheck) != time.Hour || e.Rule != "*" || e.Size != image.Size {
			t.Errorf("%+v", e)
		}
		if len(e.Manifests) != 1 || len(e.Manifests[0].Blobs) != 2 || e.Manifests[0].Blobs[1].Stored {
			t.Errorf("%+v", e.Manifests)
		}
		wantBlob(t, c, digested("app", e.Manifests[0].Blobs[1].Digest), layer, Miss)
		synctest.Wait()
		if e := explain(latest, Hit); e.Size != image.Size+1000 || !e.Manifests[0].Blobs[1].Stored {
			t.Errorf("%+v", e)
		}
		time.Sleep(time.Minute)
		explain(latest, Revalidated)
		hub.set(errDown, 0)
		wantManifest(t, c, latest, image, Stale)
		if e := explain(latest, Stale); e.Reason != reason(errDown) {
			t.Errorf("reason %q", e.Reason)
		}
		hub.set(nil, 0)
		if _, _, err := c.Manifest(t.Context(), tagged("app", "v1"), rewrite.Accept{}); !oci.IsAbsent(err) {
			t.Fatal(err)
		}
		if e := explain(tagged("app", "v1"), Negative); e.Rule != "app:v*" || e.Reason == "" {
			t.Errorf("%+v", e)
		}
		online := c.settings()
		offline := *online
		offline.Offline = true
		c.current.Store(&offline)
		if e := explain(latest, Stale); !e.Offline || !e.NextCheck.IsZero() || !e.StaleUntil.IsZero() {
			t.Errorf("offline: %+v", e)
		}
		c.current.Store(online)
		explain(digested("app", image.Digest), Hit)
		explain(digested("other", image.Digest), Miss)
	})
}
