package cache

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// Names of which nothing is stored don't push out those of images that are, however
// lately somebody asked for them.
func TestMadeUpNamesDoNotPushOutThoseOfCachedImages(t *testing.T) {
	hub := newRegistry()
	c := open(t, Options{MemoryBytes: mib}, map[string]*registry{"docker.io": hub, "reg.test": newRegistry()})
	layer := content(1, 100<<10)
	img := hub.addImage("library/app", layer)
	hub.tag("library/app", "1.0", img)
	other := content(2, 100<<10)
	byDigest := hub.addImage("library/other", other).Digest
	for _, pull := range []oci.Target{{Upstream: "docker.io", Repository: "library/app", Tag: "1.0"}, digested("library/other", byDigest)} {
		if _, _, err := c.Manifest(t.Context(), pull, rewrite.Accept{}); err != nil {
			t.Fatal(err)
		}
	}
	wantBlob(t, c, digested("library/app", digest.FromBytes(layer)), layer, Miss)
	wantBlob(t, c, digested("library/other", digest.FromBytes(other)), other, Miss)
	c.flushAsked()

	var changes []index.Change
	for i := range 4000 {
		changes = append(changes, index.Change{Upstream: "reg.test", Repository: strings.Repeat("n", 100) + fmt.Sprint(i), Tag: "1", How: index.SeenHead,
			Record: index.Tag{Digest: digest.FromString("made up"), Checked: time.Now()}})
	}
	if err := c.index.Put(changes...); err != nil {
		t.Fatal(err)
	}
	c.index.SetShare(512<<10, func() {})
	if !c.index.IsOverShare() {
		t.Fatal("the names fit")
	}
	c.dropNames()
	left := 0
	if err := c.index.Records("reg.test", "", func(string, string, string, index.Tag) bool { left++; return true }); err != nil {
		t.Fatal(err)
	}
	if left == 4000 {
		t.Error("no name was dropped")
	}
	if _, ok := c.index.Tag("docker.io", "library/app", "1.0"); !ok {
		t.Error("the tag of a cached image was dropped")
	}
	for _, name := range []oci.Target{digested("library/app", digest.FromBytes(layer)), digested("library/other", byDigest), digested("library/other", digest.FromBytes(other))} {
		if _, ok := c.index.Link(name.Upstream, name.Repository, name.Digest); !ok {
			t.Errorf("the link to %s was dropped", name)
		}
	}
}
