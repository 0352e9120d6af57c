package cache

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// A large index is read once for all clients that take none, whether it has their
// platform or not, with a memory tier or without: each child that is read costs several
// allocations.
func TestLargeIndexIsReadOnceForClientsThatTakeNone(t *testing.T) {
	const children, most = 5000, 500
	hub := newRegistry()
	amd := hub.addImage("app", []byte("amd64"))
	var list []v1.Descriptor
	for n := range children {
		d := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromString(fmt.Sprint(n)), Size: 7}
		list = append(list, withPlatform(d, "linux", fmt.Sprint("s390x", n), ""))
	}
	without := hub.addDocument("app", v1.MediaTypeImageIndex, v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: list})
	with := hub.addDocument("app", v1.MediaTypeImageIndex, v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex,
		Manifests: append(list, withPlatform(amd, "linux", "amd64", ""))})
	hub.tag("app", "with", with)
	hub.tag("app", "without", without)
	only := rewrite.AcceptOf(v1.MediaTypeImageManifest)
	for name, memory := range map[string]int64{"memory": 32 << 20, "no memory": 0} {
		t.Run(name, func(t *testing.T) {
			c := open(t, Options{MemoryBytes: memory}, map[string]*registry{"docker.io": hub})
			get := map[string]func(){
				"with": func() {
					m, _, err := c.Manifest(t.Context(), tagged("app", "with"), only)
					if err != nil || m.Digest != amd.Digest || !m.Negotiated || digest.FromBytes(m.Bytes) != amd.Digest {
						t.Errorf("%+v, %v", m, err)
					}
				},
				"with, HEAD": func() {
					m, _, err := c.Describe(t.Context(), tagged("app", "with"), only)
					if err != nil || m.Digest != amd.Digest || !m.Negotiated || m.Bytes != nil {
						t.Errorf("%+v, %v", m, err)
					}
				},
				"without": func() {
					if _, _, err := c.Manifest(t.Context(), tagged("app", "without"), only); !oci.IsAbsent(err) || !strings.Contains(err.Error(), "no manifest for linux/amd64") {
						t.Errorf("%v", err)
					}
				},
				"without, HEAD": func() {
					if _, _, err := c.Describe(t.Context(), tagged("app", "without"), only); !oci.IsAbsent(err) {
						t.Errorf("%v", err)
					}
				},
			}
			for name, get := range get {
				get()
				until(t, "the memory tier to be filled", func() bool { return testing.AllocsPerRun(1, get) < most || memory == 0 })
				if n := testing.AllocsPerRun(3, get); n > most {
					t.Errorf("%s: %v allocations: the index was read again", name, n)
				}
			}
			// The other clients get what they take.
			wantManifest(t, c, tagged("app", "with"), with, Hit)
			wantManifest(t, c, tagged("app", "without"), without, Hit)
		})
	}
}

func TestChoicesAreBounded(t *testing.T) {
	var l choices
	var all sync.WaitGroup
	for worker := range 4 {
		all.Go(func() {
			for n := range maxChoices {
				k := choiceKey{index: digest.FromString(fmt.Sprint(worker, n))}
				l.put(k, choice{digest: k.index})
				if got, ok := l.get(k); ok && got.digest != k.index {
					t.Errorf("%s chosen for %s", got.digest, k.index)
				}
			}
		})
	}
	all.Wait()
	if len(l.of) != maxChoices {
		t.Errorf("%d choices are remembered, want %d", len(l.of), maxChoices)
	}
	long := shortened(oci.Errorf(oci.CodeManifestUnknown, "%s", strings.Repeat("é", 1<<20)))
	if n := len(long.Error()); n > 2*maxChoiceText || !oci.IsAbsent(long) {
		t.Errorf("an error of %d bytes is remembered", n)
	}
}
