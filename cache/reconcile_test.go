package cache

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/cache/records"
	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

func TestLostIndexIsMadeAgainAndServedFromMeanwhile(t *testing.T) {
	for name, lose := range map[string]func(path string) error{
		"missing": os.Remove,
		"damaged": func(path string) error { return os.WriteFile(path, []byte("this is no index"), 0o600) },
		"cut short": func(path string) error {
			st, err := os.Stat(path)
			if err != nil {
				return err
			}
			return os.Truncate(path, st.Size()/2)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := newRegistry()
				o := Options{Dir: t.TempDir(), MemoryBytes: mib, Settings: Settings{MaxSize: Room{Bytes: 1 << 40}, ReverifyAfter: time.Hour}}
				c := open(t, o, map[string]*registry{"docker.io": hub})
				layers := several(3, mib)
				image := hub.addImage("library/app", layers...)
				hub.tag("library/app", "1", image)
				wantManifest(t, c, tagged("library/app", "1"), image, Miss)
				for _, l := range layers {
					wantBlob(t, c, digested("library/app", digest.FromBytes(l)), l, Miss)
				}
				settle()
				blobs, size := c.index.Totals()
				if err := c.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := lose(filepath.Join(o.Dir, "index.db")); err != nil {
					t.Fatal(err)
				}

				c = open(t, o, map[string]*registry{"docker.io": hub})
				// Whatever is known by now, it is answered.
				if got, _, err := readBlob(t, c, digested("library/app", digest.FromBytes(layers[0]))); err != nil || len(got) != mib {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				<-c.reconciled
				before := hub.count()
				hub.set(errDown, 0)
				wantManifest(t, c, tagged("library/app", "1"), image, Hit)
				for _, l := range layers {
					d := digest.FromBytes(l)
					wantBlob(t, c, digested("library/app", d), l, Hit)
				}
				if after := hub.count(); !maps.Equal(before, after) {
					t.Errorf("the upstream was asked: %v, %v before", after, before)
				}
				if b, n := c.index.Totals(); b != blobs || n != size {
					t.Errorf("%d blobs of %d bytes are counted, want %d of %d", b, n, blobs, size)
				}
				wantTotals(t, c)
			})
		})
	}
}

func TestStartMakesTheIndexAgreeWithTheTree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		o := Options{Dir: t.TempDir(), Settings: Settings{MaxSize: Room{Bytes: 1 << 40}}}
		c := open(t, o, map[string]*registry{"docker.io": hub})
		layers := several(6, mib/4)
		pullLayers(t, c, hub, layers)
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		// Somebody has taken one out, put another one in, and put in one whose
		// bytes are not the digest's, and what is no content.
		file := func(d digest.Digest) string {
			path := filepath.Join(o.Dir, "blobs", "sha256", d.Encoded()[:2], d.Encoded())
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			return path
		}
		gone, put, wrong := digest.FromBytes(layers[0]), content(77, mib), digest.FromString("something else")
		hub.addBlob("library/app", put)
		for _, err := range []error{
			os.Remove(file(gone)),
			os.WriteFile(file(digest.FromBytes(put)), put, 0o600),
			os.WriteFile(file(wrong), content(78, mib), 0o600),
			os.WriteFile(filepath.Join(o.Dir, "blobs", "sha256", "README"), nil, 0o600),
			os.WriteFile(file(wrong)+"x", nil, 0o600),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		c = open(t, o, map[string]*registry{"docker.io": hub})
		<-c.reconciled
		wantTotals(t, c)
		if _, ok := c.index.Blob(gone); ok {
			t.Error("what is gone has a record")
		}
		for _, d := range []digest.Digest{digest.FromBytes(put), wrong} {
			if b, ok := c.index.Blob(d); !ok || !b.Verified.IsZero() || b.Stamp.Size != mib || b.Uses != 1 {
				t.Errorf("%s: %+v, %v; want a record that says that it is not verified", d, b, ok)
			}
		}
		if b, ok := c.index.Blob(digest.FromBytes(layers[1])); !ok || b.Verified.IsZero() {
			t.Errorf("what was there has %+v, %v", b, ok)
		}
		// What was taken out is fetched again.
		wantBlob(t, c, digested("library/app", gone), layers[0], Miss)
		settle()
		wantTotals(t, c)
	})
}

// TestRecordsAndTreeAgreeHoweverTheyComeAndGo has content come and go while the
// index is being mended.
func TestRecordsAndTreeAgreeHoweverTheyComeAndGo(t *testing.T) {
	hub := newRegistry()
	c := open(t, Options{Settings: Settings{MaxSize: Room{Bytes: 1 << 40}}}, map[string]*registry{"docker.io": hub})
	<-c.reconciled
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			for prefix := range 256 {
				stored, err := c.store.List(digest.SHA256, byte(prefix))
				if err == nil && len(stored) > 0 {
					_, _, err = c.index.Mend(digest.SHA256, byte(prefix), stored, c.found)
				}
				if err != nil {
					t.Error(err)
				}
			}
		}
	}()
	for i := range 150 {
		l := content(uint64(i%5+1), 80<<10)
		hub.addBlob("library/app", l)
		if got, _, err := readBlob(t, c, digested("library/app", digest.FromBytes(l))); err != nil || len(got) != len(l) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		c.dropBatch(&evicted{}, []digest.Digest{digest.FromBytes(content(uint64(i*3%5+1), 80<<10))}, nil)
	}
	close(stop)
	<-stopped
	fillsEnd(t, c)
	wantTotals(t, c)
	c.index.Blobs(func(d digest.Digest, b index.Blob) bool {
		if stamp, err := c.store.Stamp(d); err != nil || stamp != b.Stamp && b.Stamp != (store.Stamp{}) {
			t.Errorf("%s: the record has %+v, the file %+v, %v", d, b.Stamp, stamp, err)
		}
		return true
	})
}

// TestNothingCachedIsDeniedWhileTheIndexIsLost damages the index in use, while the upstream
// has nothing of what is cached any more.
func TestNothingCachedIsDeniedWhileTheIndexIsLost(t *testing.T) {
	for name, gone := range map[string]error{
		"not found": oci.Errorf(oci.CodeManifestUnknown, "no such image"),
		"denied":    oci.Errorf(oci.CodeDenied, "not for you"),
		"down":      errDown,
	} {
		t.Run(name, func(t *testing.T) {
			hub := newRegistry()
			o := Options{Dir: t.TempDir(), Settings: Settings{MaxSize: Room{Bytes: 1 << 40}}}
			c := open(t, o, map[string]*registry{"docker.io": hub})
			<-c.reconciled
			layers := several(3, mib/4)
			image := hub.addImage("library/app", layers...)
			hub.tag("library/app", "1", image)
			wantManifest(t, c, tagged("library/app", "1"), image, Miss)
			for _, l := range layers {
				wantBlob(t, c, digested("library/app", digest.FromBytes(l)), l, Miss)
			}
			// The end writes the backup.
			if err := c.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			c = open(t, o, map[string]*registry{"docker.io": hub})
			<-c.reconciled
			hub.set(gone, 0)
			for round := range 3 {
				if err := os.Truncate(filepath.Join(o.Dir, "index.db"), 8192+int64(round)*4096); err != nil {
					t.Fatal(err)
				}
				for _, l := range layers {
					d := digest.FromBytes(l)
					if got, _, err := readBlob(t, c, digested("library/app", d)); err != nil || digest.FromBytes(got) != d {
						t.Errorf("round %d: a layer: %d bytes, %v", round, len(got), err)
					}
				}
				m, _, err := c.Manifest(t.Context(), digested("library/app", image.Digest), rewrite.Accept{})
				if err != nil || m.Digest != image.Digest {
					t.Errorf("round %d: the manifest: %v", round, err)
				}
				if m, _, err := c.Manifest(t.Context(), tagged("library/app", "1"), rewrite.Accept{}); err != nil || m.Digest != image.Digest {
					t.Errorf("round %d: the tag: %v", round, err)
				}
			}
		})
	}
}

// TestWhatAnIndexThatIsNotRestoredLacksIsNotDenied asks for what isn't cached while the index
// isn't restored: the answer is to come back, and not that it doesn't exist.
func TestWhatAnIndexThatIsNotRestoredLacksIsNotDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, Options{}, map[string]*registry{"docker.io": newRegistry()})
		<-c.reconciled
		settle()
		dir := t.TempDir()
		backup := filepath.Join(dir, "index.backup") // there is something to restore
		if err := os.WriteFile(backup, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		lost, _, err := index.Open(filepath.Join(dir, "index.db"))
		if err == nil {
			err = os.Remove(backup)
		}
		if err != nil {
			t.Fatal(err)
		}
		was := c.index
		c.index = lost
		c.records = records.New(lost, c.memory.Tier)
		defer func() {
			synctest.Wait() // what was verified for a request is recorded behind it
			c.index = was
			c.records = records.New(was, c.memory.Tier)
			if err := lost.Close(); err != nil {
				t.Error(err)
			}
		}()
		d := digest.FromString("a layer")
		for name, ask := range map[string]func() error{
			"manifest": func() error {
				_, _, err := c.Manifest(t.Context(), tagged("library/app", "1"), rewrite.Accept{})
				return err
			},
			"describe": func() error {
				_, _, err := c.Describe(t.Context(), digested("library/app", d), rewrite.Accept{})
				return err
			},
			"blob": func() error { _, _, err := c.Blob(t.Context(), digested("library/app", d), oci.Whole); return err },
			"stat": func() error { _, _, err := c.Stat(t.Context(), digested("library/app", d)); return err },
		} {
			var e *oci.Error
			if err := ask(); !errors.As(err, &e) || e.HTTPStatus() != 503 || e.RetryAfter <= 0 {
				t.Errorf("%s: want a 503 with Retry-After, got %v", name, err)
			}
		}
		if !c.Restoring() {
			t.Error("the cache doesn't say that its index is being restored")
		}
		if _, err := lost.Restore(); err != nil {
			t.Fatal(err)
		}
		if c.Restoring() {
			t.Error("the cache says that its index is being restored after it was")
		}
	})
}

// TestDenialThatIsLateForALostIndexChangesNothing asks for cached content while the index
// isn't restored. The upstream, which has nothing any more, answers once the index is
// restored: those who asked get what is cached, and so does everybody after them.
func TestDenialThatIsLateForALostIndexChangesNothing(t *testing.T) {
	for name, gone := range map[string]error{
		"not found": oci.Errorf(oci.CodeManifestUnknown, "no such image"),
		"denied":    oci.Errorf(oci.CodeDenied, "not for you"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := newRegistry()
				o := Options{Dir: t.TempDir(), Settings: Settings{MaxSize: Room{Bytes: 1 << 40}}}
				c := open(t, o, map[string]*registry{"docker.io": hub})
				layer := content(1, mib/4)
				image := hub.addImage("library/app", layer)
				hub.tag("library/app", "1", image)
				wantManifest(t, c, tagged("library/app", "1"), image, Miss)
				d := digest.FromBytes(layer)
				wantBlob(t, c, digested("library/app", d), layer, Miss)
				settle()
				if err := c.Close(t.Context()); err != nil { // this writes the backup
					t.Fatal(err)
				}

				c = open(t, o, map[string]*registry{"docker.io": hub})
				<-c.reconciled
				settle()
				lost := lostIndex(t, filepath.Join(o.Dir, "index.backup"))
				was := c.index
				c.index = lost
				c.records = records.New(lost, c.memory.Tier)
				defer func() {
					synctest.Wait() // what was verified for a request is recorded behind it
					c.index = was
					c.records = records.New(was, c.memory.Tier)
					if err := lost.Close(); err != nil {
						t.Error(err)
					}
				}()
				requests := map[string]func() error{
					"manifest by tag": func() error {
						_, _, err := c.Manifest(t.Context(), tagged("library/app", "1"), rewrite.Accept{})
						return err
					},
					"manifest by digest": func() error {
						_, _, err := c.Manifest(t.Context(), digested("library/app", image.Digest), rewrite.Accept{})
						return err
					},
					"describe by tag": func() error {
						_, _, err := c.Describe(t.Context(), tagged("library/app", "1"), rewrite.Accept{})
						return err
					},
					"describe by digest": func() error {
						_, _, err := c.Describe(t.Context(), digested("library/app", image.Digest), rewrite.Accept{})
						return err
					},
					"blob": func() error { _, _, err := readBlob(t, c, digested("library/app", d)); return err },
					"stat": func() error { _, _, err := c.Stat(t.Context(), digested("library/app", d)); return err },
				}
				hub.set(gone, time.Second)
				before := hub.count()
				var asking sync.WaitGroup
				for name, ask := range requests {
					asking.Go(func() {
						if err := ask(); err != nil {
							t.Errorf("%s, begun before the index was restored: %v", name, err)
						}
					})
				}
				synctest.Wait() // the upstream has all questions, and answers none yet
				if maps.Equal(before, hub.count()) {
					t.Fatal("the upstream was not asked")
				}
				if _, err := lost.Restore(); err != nil {
					t.Fatal(err)
				}
				asking.Wait()
				for name, ask := range requests {
					if err := ask(); err != nil {
						t.Errorf("%s, begun after the index was restored: %v", name, err)
					}
				}
				if _, ok := lost.Tag("docker.io", "library/app", "1"); !ok {
					t.Error("the tag is not known any more")
				}
				for _, k := range []string{
					tagKey(tagged("library/app", "1")), digestKey("manifest:", digested("library/app", image.Digest)),
					digestKey("describe:", digested("library/app", image.Digest)), digestKey("blob:", digested("library/app", d)),
				} {
					if err, ok := c.negative.get(k); ok {
						t.Errorf("%q is remembered as denied: %v", k, err)
					}
				}
			})
		})
	}
}

// lostIndex opens an index that was begun anew and is not restored from backup yet.
func lostIndex(t *testing.T, backup string) *index.Index {
	t.Helper()
	dir := t.TempDir()
	b, err := os.ReadFile(backup)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "index.backup"), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	lost, _, err := index.Open(filepath.Join(dir, "index.db"))
	if err != nil {
		t.Fatal(err)
	}
	return lost
}
