package e2e

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// rehearsed is what rehearse prints as JSON.
type rehearsed struct {
	Stale, Failed int
	Images        []struct {
		Reference, Status, Digest string
		Pulls                     int
		Until                     time.Time
		Platforms                 []struct {
			Platform string
			OK       bool
		}
		Problems []string
	}
}

func TestARehearsalFindsTheImageThatWasLeftOut(t *testing.T) {
	t.Parallel()
	either(t, believing, func(t *testing.T, h *hub.Hub, p *proxy.Proxy, running bool) {
		app, out := image.Index(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
		h.Push("library/app", "1.0", app)
		h.Push("org/out", "2", out)
		operate(t, p, "warm", "app:1.0", "--platform", "linux/amd64,linux/arm64").want(t, 0)
		before := h.Counts()
		images := list(t, "images.txt", "app:1.0\norg/out:2\n")
		args := []string{"rehearse", "--file", images, "--platform", "linux/amd64,linux/arm64"}
		operate(t, p, args...).want(t, 1, "IMAGE", "linux/amd64,linux/arm64", "docker.io/org/out:2: the tag is not known here",
			"2 images: 1 would be served, and 1 would fail", "entrepot: 1 of 2 images could not be pulled")
		var r rehearsed
		operate(t, p, append(args, "--output", "json", "--verify")...).json(t, &r)
		if r.Failed != 1 || r.Images[0].Status != "ok" || r.Images[0].Digest != app.Digest.String() || len(r.Images[0].Platforms) != 2 || r.Images[1].Status != "failed" {
			t.Errorf("got %+v", r)
		}
		operate(t, p, "rehearse", "app:1.0", "--platform", "linux/arm/v7").want(t, 1, "linux/arm/v7: manifest "+app.Platforms["linux/arm/v7"].String()+" is not cached", "linux/arm/v7 (partial)")
		operate(t, p, "rehearse", "app:1.0", "--with-referrers").want(t, 1, "the list of what refers to "+app.Digest.String()+" is not cached")
		wantUnmoved(t, before, h.Counts())

		// What is damaged on disk: by its size, and by its bytes.
		layer := app.Layers("linux/arm64")[0].Digest
		file := filepath.Join(p.Dir, "blobs", "sha256", layer.Encoded()[:2], layer.Encoded())
		right, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, right[1:], 0o600); err != nil {
			t.Fatal(err)
		}
		operate(t, p, "rehearse", "app:1.0", "--platform", "linux/arm64").want(t, 1, "linux/arm64: layer "+layer.String()+" is damaged: it has")
		right[0]++
		if err := os.WriteFile(file, right, 0o600); err != nil {
			t.Fatal(err)
		}
		operate(t, p, "rehearse", "app:1.0", "--platform", "linux/arm64").want(t, 0)
		operate(t, p, "rehearse", "app:1.0", "--platform", "linux/arm64", "--verify").want(t, 1, "linux/arm64: layer "+layer.String()+" is damaged")

		operate(t, p, "rehearse", "No Such Name").want(t, 2, "is no reference of an image")
		operate(t, p, "rehearse", "app", "--last", "7d").want(t, 2, "--last is for what clients have pulled")
		operate(t, p, "rehearse", "--last", "soon").want(t, 2, "--last", "is no time")
		operate(t, p, "rehearse", "app", "--platform", "amd64").want(t, 2, "is no platform")
		operate(t, p, "rehearse", "--file", "/none").want(t, 1, "open /none")
		operate(t, p, "rehearse", "--file", os.DevNull).want(t, 1, "no image is named")
		operate(t, p, "rehearse", "quay.example.test/x:1").want(t, 1, "is not configured here")
	})
}

// Clients pull, the uplink is cut, and what the rehearsal has said is what they get.
func TestARehearsalOfWhatWasPulledForetellsTheCut(t *testing.T) {
	t.Parallel()
	either(t, `upstreams: {docker.io: {tags: [{match: "library/short:*", ttl: 0s, stale_if_error: 1ms}, {match: "*", ttl: 0s}]}}`, func(t *testing.T, h *hub.Hub, p *proxy.Proxy, running bool) {
		whole, part, short := image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2}), image.New(image.Options{Seed: 3})
		h.Push("library/whole", "1", whole)
		h.Push("library/part", "1", part)
		h.Push("library/short", "1", short)
		if !running {
			p.Restart(t)
		}
		for _, repo := range []string{"whole", "whole", "part", "short"} {
			get(t, p, "/v2/library/"+repo+"/manifests/1", "Accept", anything)
		}
		pullRaw(t, p, "library/whole", whole)
		pullRaw(t, p, "library/short", short)
		p.WaitIdle(t)
		h.Down()
		if !running {
			p.Stop(t)
		}
		var r rehearsed
		said := operate(t, p, "rehearse", "--last", "1d", "-o", "json")
		said.want(t, 1)
		said.json(t, &r)
		got := map[string]string{}
		for _, i := range r.Images {
			got[i.Reference] = i.Status
		}
		if len(got) != 3 || got["docker.io/library/whole:1"] != "stale" || got["docker.io/library/part:1"] != "failed" || got["docker.io/library/short:1"] != "failed" || r.Stale != 1 {
			t.Errorf("got %+v", r)
		}
		operate(t, p, "rehearse").want(t, 1, "docker.io/library/short:1: the tag was served without its upstream until 20", "docker.io/library/part:1: layer "+part.Layers("")[0].Digest.String()+" is not cached", "PULLS")
		offline := operate(t, p, "rehearse", "--offline", "-o", "json")
		offline.json(t, &r)
		for _, i := range r.Images {
			if i.Reference == "docker.io/library/short:1" && i.Status != "stale" {
				t.Errorf("offline it is %s: %q", i.Status, i.Problems)
			}
		}
		if !running {
			p.Restart(t)
		}
		get(t, p, "/v2/library/whole/manifests/1", "Accept", anything)
		if a := ask(t, p, "GET", "/v2/library/short/manifests/1", "Accept", anything); a.status == 200 {
			t.Errorf("it was said to fail, and gives %s", a)
		}
	})
}
