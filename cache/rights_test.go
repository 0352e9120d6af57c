package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// openMixed opens a cache in front of registries; those that uniform names have
// readers who may all have the same.
func openMixed(t *testing.T, dir string, registries map[string]Origin, uniform ...string) *Cache {
	t.Helper()
	o := Options{Dir: dir, MemoryBytes: 8 << 20}
	o.Upstreams = map[string]Upstream{}
	for name, r := range registries {
		o.Upstreams[name] = Upstream{Origin: r, Tags: []TagRule{{Match: "*", TTL: time.Hour}}, Uniform: strings.Contains(strings.Join(uniform, " "), name)}
	}
	c, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

func at(upstream, repo string, d digest.Digest) oci.Target {
	return oci.Target{Upstream: upstream, Repository: repo, Digest: d}
}

// naming are documents that name content, as a registry that doesn't check may have
// them.
func namings(d v1.Descriptor) map[string]oci.Manifest {
	desc := fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, d.MediaType, d.Digest, d.Size)
	made := map[string]oci.Manifest{}
	for name, doc := range map[string][2]string{
		"layers":      {v1.MediaTypeImageManifest, `{"layers":[` + desc + `]}`},
		"config":      {v1.MediaTypeImageManifest, `{"config":` + desc + `,"layers":[]}`},
		"other case":  {v1.MediaTypeImageManifest, `{"LAYERS":[` + desc + `]}`},
		"twice":       {v1.MediaTypeImageManifest, `{"layers":[],"layers":[` + desc + `]}`},
		"first":       {v1.MediaTypeImageManifest, `{"layers":[` + desc + `],"layers":[]}`},
		"blobs":       {v1.MediaTypeImageManifest, `{"config":{},"layers":[],"blobs":[` + desc + `]}`},
		"artifact":    {oci.MediaTypeOCIArtifactManifest, `{"blobs":[` + desc + `]}`},
		"index":       {v1.MediaTypeImageIndex, `{"manifests":[` + desc + `]}`},
		"docker list": {oci.MediaTypeDockerManifestList, `{"manifests":[` + desc + `]}`},
		"subject":     {v1.MediaTypeImageManifest, `{"layers":[],"subject":` + desc + `}`},
	} {
		b := []byte(`{"schemaVersion":2,"mediaType":"` + doc[0] + `",` + doc[1][1:])
		made[name] = oci.Manifest{Digest: digest.FromBytes(b), MediaType: doc[0], Bytes: b}
	}
	return made
}

// wantNothing asks for d under repo in every way and checks that the client gets
// nothing of it.
func wantNothing(t *testing.T, c *Cache, what string, target oci.Target) {
	t.Helper()
	if b, out, err := c.Blob(t.Context(), target, oci.Span{From: 5, To: 9}); err == nil {
		var got bytes.Buffer
		n, _ := b.Send(&got, oci.Span{From: 5, To: 9})
		b.Close()
		t.Errorf("%s: a range: %d bytes (%+v)", what, n, out)
	} else if !oci.IsAbsent(err) {
		t.Errorf("%s: a range: %v; want the upstream's 404", what, err)
	}
	if _, out, err := readBlob(t, c, target); !oci.IsAbsent(err) {
		t.Errorf("%s: as a blob: %+v, %v; want the upstream's 404", what, out, err)
	}
	if size, out, err := c.Stat(t.Context(), target); !oci.IsAbsent(err) {
		t.Errorf("%s: HEAD of the blob: %d, %+v, %v; want the upstream's 404", what, size, out, err)
	}
	if m, out, err := c.Manifest(t.Context(), target, rewrite.Accept{}); !oci.IsAbsent(err) {
		t.Errorf("%s: as a manifest: %+v, %+v, %v; want the upstream's 404", what, m, out, err)
	}
	if m, out, err := c.Describe(t.Context(), target, rewrite.Accept{}); !oci.IsAbsent(err) {
		t.Errorf("%s: HEAD of the manifest: %+v, %+v, %v; want the upstream's 404", what, m, out, err)
	}
	if size, _, ok := c.Stored(target); ok {
		t.Errorf("%s: it counts as stored there, with %d bytes", what, size)
	}
}

// Whoever names a digest in a manifest has not shown that they may have it.
func TestNamingADigestIsNoProofWhereRightsDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		image := hub.addImage("acme/secret", content(60, 200_000), content(61, 900))
		hub.tag("acme/secret", "1", image)
		c := openMixed(t, t.TempDir(), map[string]Origin{"docker.io": hub})
		wantManifest(t, c, tagged("acme/secret", "1"), image, Miss)
		secrets := map[string]v1.Descriptor{"manifest": image}
		for i, d := range hub.children(t, image) {
			b := hub.blobs["acme/secret"][d]
			wantBlob(t, c, at("docker.io", "acme/secret", d), b, Miss)
			secrets[fmt.Sprintf("blob %d", i)] = v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: d, Size: int64(len(b))}
		}
		time.Sleep(time.Second) // what was fetched is recorded behind
		for kind, secret := range secrets {
			for name, m := range namings(secret) {
				what := kind + " in " + name
				repo := "b/" + strings.ReplaceAll(name+kind, " ", "")
				hub.mu.Lock()
				put(hub.manifests, repo, m.Digest, &m)
				hub.mu.Unlock()
				if _, _, err := c.Manifest(t.Context(), at("docker.io", repo, m.Digest), rewrite.Accept{}); err != nil {
					t.Errorf("%s: the manifest that names it: %v", what, err)
				}
				wantNothing(t, c, what, at("docker.io", repo, secret.Digest))
			}
		}
		time.Sleep(time.Minute)
		// What the upstream confirms is served, and asked for once.
		for _, d := range hub.children(t, image) {
			hub.mu.Lock()
			put(hub.blobs, "b/has", d, hub.blobs["acme/secret"][d])
			hub.mu.Unlock()
			before := hub.count()
			wantBlob(t, c, at("docker.io", "b/has", d), hub.blobs["acme/secret"][d], Revalidated)
			wantBlob(t, c, at("docker.io", "b/has", d), hub.blobs["acme/secret"][d], Hit)
			if now := hub.count(); now["blob"] != before["blob"] || now["stat"] != before["stat"]+1 {
				t.Errorf("%d HEADs and %d GETs for a blob that the upstream confirms, want one HEAD", now["stat"]-before["stat"], now["blob"]-before["blob"])
			}
		}
		wantBlob(t, c, at("docker.io", "acme/secret", hub.children(t, image)[0]), hub.blobs["acme/secret"][hub.children(t, image)[0]], Hit)
	})
}

// A running fill, and a part of one that broke off, are as private as what is stored.
func TestARunningFillIsJoinedOnlyWithProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		secret := content(62, 4<<20)
		hub := &slowBlob{registry: newRegistry(), s: &source{content: secret, chunk: 1 << 16, pace: 10 * time.Millisecond}}
		layer := hub.addBlob("acme/secret", secret)
		c := openMixed(t, t.TempDir(), map[string]Origin{"docker.io": slowFor{hub, "acme/secret"}})
		m := namings(layer)["layers"]
		put(hub.manifests, "b/x", m.Digest, &m)
		if _, _, err := c.Manifest(t.Context(), at("docker.io", "b/x", m.Digest), rewrite.Accept{}); err != nil {
			t.Fatal(err)
		}
		alice := make(chan struct{})
		go func() {
			defer close(alice)
			wantBlob(t, c, at("docker.io", "acme/secret", layer.Digest), secret, Miss)
		}()
		time.Sleep(200 * time.Millisecond)
		wantNothing(t, c, "while it is fetched", at("docker.io", "b/x", layer.Digest))
		<-alice
	})
}

// slowFor is a registry in which one repository has slow blobs, and others those of
// the maps.
type slowFor struct {
	*slowBlob
	repo string
}

func (s slowFor) Blob(ctx context.Context, repo string, d digest.Digest, span oci.Span) (*oci.Body, error) {
	if repo != s.repo {
		return s.registry.Blob(ctx, repo, d, span)
	}
	return s.slowBlob.Blob(ctx, repo, d, span)
}

// liar is a registry that claims to have everything, and has what is in the map; of
// other blobs it sends some first bytes, which may be right.
type liar struct {
	*registry
	size  int64
	first []byte
}

func (l liar) Stat(_ context.Context, _ string, d digest.Digest) (v1.Descriptor, error) {
	return v1.Descriptor{Digest: d, Size: l.size, MediaType: oci.MediaTypeOctetStream}, nil
}

func (l liar) Resolve(_ context.Context, repo, ref string) (v1.Descriptor, error) {
	if m, err := l.find(repo, ref); err == nil {
		return m.Descriptor(), nil
	}
	return v1.Descriptor{Digest: digest.Digest(ref), Size: l.size, MediaType: v1.MediaTypeImageManifest}, nil
}

func (l liar) Blob(ctx context.Context, repo string, d digest.Digest, span oci.Span) (*oci.Body, error) {
	if b, err := l.registry.Blob(ctx, repo, d, span); err == nil {
		return b, nil
	}
	if l.first == nil || span.From >= int64(len(l.first)) {
		return nil, oci.Errorf(oci.CodeBlobUnknown, "there is no %s", d)
	}
	return &oci.Body{
		ReadCloser: io.NopCloser(bytes.NewReader(l.first[span.From:])), Span: oci.Span{From: span.From, To: l.size}, Size: l.size,
	}, nil
}

// Another upstream has to send the bytes before it counts as having them.
func TestOnlyBytesAreProofBetweenUpstreams(t *testing.T) {
	secret := content(63, 300_000)
	wrong := append(bytes.Clone(secret[:1000]), 'x')
	for name, first := range map[string][]byte{"a HEAD": nil, "one byte": secret[:1], "all but the last byte": secret[:len(secret)-1], "a wrong byte": wrong} {
		for _, uniform := range []string{"", "evil.test", "docker.io"} {
			t.Run(name+" uniform:"+uniform, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					hub, evil := newRegistry(), newRegistry()
					image := hub.addImage("acme/secret", secret)
					layer := v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: digest.FromBytes(secret), Size: int64(len(secret))}
					c := openMixed(t, t.TempDir(), map[string]Origin{"docker.io": hub, "evil.test": liar{evil, layer.Size, first}}, uniform)
					wantManifest(t, c, at("docker.io", "acme/secret", image.Digest), image, Miss)
					wantBlob(t, c, at("docker.io", "acme/secret", layer.Digest), secret, Miss)
					m := namings(layer)["layers"]
					put(evil.manifests, "b/x", m.Digest, &m)
					if _, _, err := c.Manifest(t.Context(), at("evil.test", "b/x", m.Digest), rewrite.Accept{}); err != nil {
						t.Fatal(err)
					}
					for _, repo := range []string{"b/x", "any/thing", "b/x", "another/thing"} {
						target := at("evil.test", repo, layer.Digest)
						for range 3 {
							if size, _, err := c.Stat(t.Context(), target); err == nil && size != layer.Size {
								t.Errorf("%s: HEAD says %d", repo, size)
							}
							got, _, err := readBlob(t, c, target)
							if err == nil || len(got) > len(first) {
								t.Errorf("%s: %d bytes, %v; want no more than the %d that the upstream has", repo, len(got), err, len(first))
							}
							time.Sleep(time.Minute)
						}
						if m, _, err := c.Manifest(t.Context(), at("evil.test", repo, image.Digest), rewrite.Accept{}); err == nil {
							t.Errorf("%s: the manifest: %s", repo, m.Bytes)
						}
					}
					// Nobody else is the worse for it.
					wantBlob(t, c, at("docker.io", "acme/secret", layer.Digest), secret, Hit)
				})
			})
		}
	}
}

// An upstream that sends wrong bytes has what is stored verified now and then, and not for
// each request.
func TestWrongBytesOfAnotherUpstreamKeepNoDiskBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, secret := newRegistry(), content(64, 300_000)
		image := hub.addImage("acme/secret", secret)
		wrong := append(bytes.Clone(secret[:1000]), 'x')
		c := openMixed(t, t.TempDir(), map[string]Origin{"docker.io": hub, "evil.test": liar{newRegistry(), int64(len(secret)), wrong}})
		d := digest.FromBytes(secret)
		wantManifest(t, c, at("docker.io", "acme/secret", image.Digest), image, Miss)
		wantBlob(t, c, at("docker.io", "acme/secret", d), secret, Miss)
		settle()
		verified := func() time.Time {
			synctest.Wait()
			_, _, known := c.memory.blob(d)
			if known == nil {
				t.Fatal("it isn't known when the content was verified")
			}
			return known.at
		}
		stored := verified()
		for minute := 1; minute <= 15; minute++ {
			time.Sleep(time.Minute)
			if _, _, err := readBlob(t, c, at("evil.test", "any/thing", d)); err == nil {
				t.Fatal("wrong bytes were taken")
			}
			switch at := verified(); {
			case minute < 9 && !at.Equal(stored):
				t.Fatalf("after %d minutes the content was verified again", minute)
			case minute > 10 && at.Equal(stored):
				t.Fatalf("after %d minutes the content was not verified again", minute)
			}
		}
		wantBlob(t, c, at("docker.io", "acme/secret", d), secret, Hit)
	})
}

// An upstream that does have the content is fetched from once, compared, and then
// served from what is stored.
func TestContentOfTwoUpstreamsIsKeptOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, other := newRegistry(), newRegistry()
		layer := content(64, 3<<20)
		d := hub.addBlob("acme/secret", layer).Digest
		other.addBlob("any/thing", layer)
		c := openMixed(t, t.TempDir(), map[string]Origin{"docker.io": hub, "other.test": other})
		wantBlob(t, c, at("docker.io", "acme/secret", d), layer, Miss)
		wantBlob(t, c, at("other.test", "any/thing", d), layer, Miss)
		wantBlob(t, c, at("other.test", "any/thing", d), layer, Hit)
		wantBlob(t, c, at("docker.io", "acme/secret", d), layer, Hit)
		time.Sleep(time.Second) // what was fetched is recorded behind
		if n := other.count()["blob"]; n != 1 {
			t.Errorf("the second upstream was asked %d times, want once", n)
		}
		if count, size := c.Size(); count != 1 || size != int64(len(layer)) {
			t.Errorf("%d blobs of %d bytes are stored, want one", count, size)
		}
		other.addBlob("a/second", layer)
		wantBlob(t, c, at("other.test", "a/second", d), layer, Revalidated) // it has sent the bytes once
	})
}

// A manifest that an upstream only claims a tag stands for is not served when the tag
// moves on and the upstream fails.
func TestATagsPastIsNoKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, evil := newRegistry(), newRegistry()
		image := hub.addImage("acme/secret", content(65, 1000))
		next := evil.addImage("b/x", content(66, 1000))
		c := openMixed(t, t.TempDir(), map[string]Origin{"docker.io": hub, "evil.test": evil}, "evil.test")
		wantManifest(t, c, at("docker.io", "acme/secret", image.Digest), image, Miss)
		tag := oci.Target{Upstream: "evil.test", Repository: "b/x", Tag: "1"}
		evil.tag("b/x", "1", next)
		evil.lie = image.Digest
		_, _, _ = c.Describe(t.Context(), tag, rewrite.Accept{})
		time.Sleep(2 * time.Hour)
		evil.lie = digest.FromString("something new")
		for range 3 {
			_, _, _ = c.Describe(t.Context(), tag, rewrite.Accept{})
			if m, out, err := c.Manifest(t.Context(), tag, rewrite.Accept{}); err == nil {
				t.Errorf("got %s, %+v", m.Bytes, out)
			}
			evil.set(errDown, 0)
			time.Sleep(2 * time.Hour)
		}
	})
}

// Base layers stay one fetch: within an upstream that all may read a manifest that
// names them is enough, between such upstreams a HEAD of each.
func TestSharedBaseLayersCostNoBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, other := newRegistry(), newRegistry()
		layers := [][]byte{content(67, 200_000), content(68, 300_000), content(69, 900)}
		images := map[string]v1.Descriptor{}
		images["docker.io/a"] = hub.addImage("a", layers...)
		images["docker.io/b"] = hub.addImage("b", append(layers, content(70, 10))...)
		images["other.test/c"] = other.addImage("c", layers...)
		c := openMixed(t, t.TempDir(), map[string]Origin{"docker.io": hub, "other.test": other}, "docker.io", "other.test")
		pull := func(up, repo string, r *registry) {
			image := images[up+"/"+repo]
			wantManifest(t, c, at(up, repo, image.Digest), image, Miss)
			for _, d := range r.children(t, image) {
				if got, _, err := readBlob(t, c, at(up, repo, d)); err != nil || !bytes.Equal(got, r.blobs[repo][d]) {
					t.Errorf("%s/%s: %d bytes, %v", up, repo, len(got), err)
				}
			}
		}
		pull("docker.io", "a", hub)
		time.Sleep(time.Second) // what was fetched is recorded behind
		before := hub.count()
		pull("docker.io", "b", hub)
		if now := hub.count(); now["blob"] != before["blob"]+1 || now["stat"] != before["stat"] {
			t.Errorf("the second image cost %d GETs and %d HEADs of blobs, want one GET of its own layer", now["blob"]-before["blob"], now["stat"]-before["stat"])
		}
		pull("other.test", "c", other)
		if now := other.count(); now["blob"] != 0 || now["stat"] != len(layers)+1 {
			t.Errorf("the image of another upstream cost %d GETs and %d HEADs of blobs, want a HEAD of each", now["blob"], now["stat"])
		}
		// It is served while that upstream fails, also what was not asked for before.
		images["other.test/d"] = other.addImage("d", layers...)
		wantManifest(t, c, at("other.test", "d", images["other.test/d"].Digest), images["other.test/d"], Miss)
		other.set(errDown, 0)
		for _, d := range other.children(t, images["other.test/d"]) {
			if got, _, err := readBlob(t, c, at("other.test", "d", d)); err != nil || !bytes.Equal(got, other.blobs["d"][d]) {
				t.Errorf("while the upstream fails: %d bytes, %v", len(got), err)
			}
		}
	})
}

// A rule that is added takes effect for what was served before without proof.
func TestRightsAreJudgedAnewWhenSettingsChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := newRegistry()
		secret := content(71, 100_000)
		layer := hub.addBlob("acme/secret", secret)
		c := openMixed(t, t.TempDir(), map[string]Origin{"docker.io": hub}, "docker.io")
		wantBlob(t, c, at("docker.io", "acme/secret", layer.Digest), secret, Miss)
		m := namings(layer)["layers"]
		put(hub.manifests, "b/x", m.Digest, &m)
		if _, _, err := c.Manifest(t.Context(), at("docker.io", "b/x", m.Digest), rewrite.Accept{}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			wantBlob(t, c, at("docker.io", "b/x", layer.Digest), secret, Hit)
		}
		s := c.settings().Settings
		s.Upstreams = map[string]Upstream{"docker.io": {Origin: hub}}
		if err := c.Reconfigure(s); err != nil {
			t.Fatal(err)
		}
		wantNothing(t, c, "after a rule came", at("docker.io", "b/x", layer.Digest))
		wantBlob(t, c, at("docker.io", "acme/secret", layer.Digest), secret, Hit)
	})
}

// Links of an older version say nothing of proof.
func TestLinksOfAnOlderVersionAreReadCautiously(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub, evil := newRegistry(), newRegistry()
		secret, shared := content(72, 100_000), content(73, 100_000)
		d, both := hub.addBlob("acme/secret", secret).Digest, hub.addBlob("acme/secret", shared).Digest
		dir := t.TempDir()
		c := openMixed(t, dir, map[string]Origin{"docker.io": hub})
		wantBlob(t, c, at("docker.io", "acme/secret", d), secret, Miss)
		wantBlob(t, c, at("docker.io", "acme/secret", both), shared, Miss)
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		makeOld(t, dir, map[string][]digest.Digest{"acme/secret": {d, both}, "b/x": {both}})
		c = openMixed(t, dir, map[string]Origin{"docker.io": hub, "evil.test": liar{evil, 100_000, nil}})
		<-c.reconciled
		hub.set(errDown, 0)
		wantBlob(t, c, at("docker.io", "acme/secret", d), secret, Hit) // nobody else has a link to it
		if _, _, err := readBlob(t, c, at("docker.io", "acme/secret", both)); err == nil {
			t.Error("what two repositories have links to was served without asking")
		}
		hub.set(nil, 0)
		time.Sleep(time.Minute)
		wantNothing(t, c, "of another repository", at("docker.io", "b/x", both))
		wantBlob(t, c, at("docker.io", "acme/secret", both), shared, Revalidated)
		if got, _, err := readBlob(t, c, at("evil.test", "b/x", d)); err == nil {
			t.Errorf("another upstream: %d bytes", len(got))
		}
	})
}

// makeOld puts an index of an older version, with these links, in the place of the one
// in dir.
func makeOld(t *testing.T, dir string, links map[string][]digest.Digest) {
	t.Helper()
	for _, name := range []string{"index.db", "index.backup"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	db, err := bbolt.Open(filepath.Join(dir, "index.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(db.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{"tags", "links", "lists", "blobs", "meta", "asked", "ledger", "pins"} {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		meta := tx.Bucket([]byte("meta"))
		err := errors.Join(meta.Put([]byte("blobs"), make([]byte, 16)), meta.Put([]byte("whole"), []byte{1}))
		for repo, ds := range links {
			for _, d := range ds {
				key := []byte("docker.io\x00" + repo + "\x00" + d.String())
				err = errors.Join(err, tx.Bucket([]byte("links")).Put(key, []byte(`{"size":100000}`)))
			}
		}
		return err
	}), db.Close())
	if err != nil {
		t.Fatal(err)
	}
}

// A bundle that leaves content out only names it; one that carries it proves it. What
// is not proved isn't written into a bundle either.
func TestAnImportProvesWhatItCarries(t *testing.T) {
	hub, bundled := newRegistry(), newRegistry()
	secret := content(74, 100_000)
	image := hub.addImage("acme/secret", secret)
	named := bundled.addImage("b/x", secret)
	d := digest.FromBytes(secret)
	c := openMixed(t, t.TempDir(), map[string]Origin{"docker.io": hub})
	wantManifest(t, c, at("docker.io", "acme/secret", image.Digest), image, Miss)
	wantBlob(t, c, at("docker.io", "acme/secret", d), secret, Miss)
	until(t, "it to be recorded", func() bool { _, ok := c.index.Blob(d); return ok })
	for _, carries := range []bool{false, true} {
		all := carried(bundled, "b/x")
		if !carries {
			delete(all, d)
		}
		i := newImport(t, c)
		if err := takeIn(t, i, all); err != nil {
			t.Fatal(err)
		}
		if !i.Has(d, int64(len(secret))) {
			t.Fatal("the cache has it not")
		}
		if err := i.Add(tagged("b/x", "1"), named, time.Now()); err != nil {
			t.Fatal(err)
		}
		if _, err := i.Finish(); err != nil {
			t.Fatal(err)
		}
		if err := i.Close(false); err != nil {
			t.Fatal(err)
		}
		tree, err := c.Tree(t.Context(), tagged("b/x", "1"), TreeOptions{Configs: true})
		if err != nil {
			t.Fatal(err)
		}
		for n := range tree.Nodes() {
			if want := n.Digest != d || carries; n.Stored != want {
				t.Errorf("with the content in the bundle %v: %s counts as stored: %v", carries, n.Digest, n.Stored)
			}
		}
		if !carries {
			wantNothing(t, c, "named by a bundle", at("docker.io", "b/x", d))
		}
	}
	wantBlob(t, c, at("docker.io", "b/x", d), secret, Hit)
}
