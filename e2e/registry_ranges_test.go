package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// rangeQuirks are what registries and CDNs do to requests for ranges, while they send
// whole blobs as they should.
func rangeQuirks() map[string][]hub.Fault {
	quirks := map[string][]hub.Fault{
		"ignored":                     {hub.IgnoreRange()},
		"without Content-Range":       {hub.MislabelRange("")},
		"another syntax":              {hub.MislabelRange("bytes=0-9/10")},
		"all, whatever is asked":      {hub.MislabelRange("bytes 0-%d/*")},
		"the first bytes":             {hub.ShiftRange(1 << 40)},
		"one byte late":               {hub.ShiftRange(1)},
		"one byte early":              {hub.ShiftRange(-1)},
		"closed":                      {hub.CloseOnRange()},
		"with an end refused":         {hub.RefuseRangeWithEnd(400)},
		"first cut, then refused":     {hub.CutAfter(1 << 20).Times(1), hub.RefuseRange(403)},
		"first cut, then cut or lies": {hub.CutAfter(1 << 20).Times(2), hub.ShiftRange(1 << 40)},
		"the end is missing":          {hub.NoEnd(), hub.RefuseRange(416)},
	}
	for _, status := range []int{400, 403, 404, 405, 416, 500, 501, 502, 503} {
		quirks[fmt.Sprint("refused with ", status)] = []hub.Fault{hub.RefuseRange(status)}
	}
	return quirks
}

// However ranges are met, clients that ask for whole blobs get them, with a manifest
// first or without, while nobody else is refused anything.
func TestBlobsComeWhateverUpstreamsDoToRanges(t *testing.T) {
	t.Parallel()
	content := randomBytes("ranges", 20<<20)
	d := digest.FromBytes(content)
	for _, direct := range []bool{false, true} {
		t.Run(fmt.Sprintf("without a CDN %v", direct), func(t *testing.T) {
			hubs := map[string]*hub.Hub{}
			quirks := rangeQuirks()
			names := map[string]string{}
			for quirk, faults := range quirks {
				h := hub.New(t, hub.Options{NoCDN: direct})
				h.PushBlob("app", d, content)
				h.Inject(hub.Slow(30e6)) // more than one connection is worth while
				for _, f := range faults {
					h.Inject(f)
				}
				names[quirk] = fmt.Sprintf("reg%d.test", len(hubs))
				hubs[names[quirk]] = h
			}
			p := proxy.Start(t, proxy.Options{Upstreams: hubs})
			for quirk, name := range names {
				a := ask(t, p, http.MethodGet, "/v2/"+name+"/app/blobs/"+d.String())
				if a.status != http.StatusOK || a.err != nil || digest.FromBytes(a.body) != d {
					a.body = a.body[:min(len(a.body), 300)]
					t.Errorf("%s: want 200 and the blob, got %s", quirk, a)
				}
				if open := p.Metrics(t).Sum("entrepot_upstream_endpoint_state", "upstream", name); open != 0 {
					t.Errorf("%s: the upstream's breaker is open", quirk)
				}
			}
		})
	}
}

// Bytes of a part that are wrong in the middle are found at the end: the client that was
// given them is cut off, and the next one gets the blob.
func TestWrongBytesInARangeCutOneClientOffAtMost(t *testing.T) {
	t.Parallel()
	content := randomBytes("damaged", 20<<20)
	d := digest.FromBytes(content)
	h := hub.New(t, hub.Options{})
	h.PushBlob("library/app", d, content)
	h.Inject(hub.Slow(10e6))
	h.Inject(hub.DamageRange())
	p := proxy.New(t, h)
	path := "/v2/docker.io/library/app/blobs/" + d.String()
	if a := ask(t, p, http.MethodGet, path); a.err == nil && digest.FromBytes(a.body) != d {
		t.Errorf("want the blob, or an answer that is cut off; got %d bytes with status %d", len(a.body), a.status)
	}
	p.WaitIdle(t)
	if a := get(t, p, path); digest.FromBytes(a.body) != d {
		t.Error("the next client gets other bytes")
	}
}

// What a fetch that broke off has left goes with its image when that is purged, and is no
// obstacle to a process that starts later, though the upstream refuses ranges.
func TestAPartialFileIsNoObstacleAndIsPurged(t *testing.T) {
	t.Parallel()
	i := image.New(image.Options{Layers: []image.Layer{{Size: 20 << 20}}})
	layer := i.Layers("")[0].Digest
	h := hub.New(t, hub.Options{})
	h.Push("library/app", "1.0", i)
	p := proxy.New(t, h)
	path := "/v2/docker.io/library/app/blobs/" + layer.String()
	parts := func() (names []string) {
		files, err := os.ReadDir(filepath.Join(p.Dir, "ingest"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if strings.Contains(f.Name(), layer.Encoded()) {
				names = append(names, f.Name())
			}
		}
		return names
	}
	breakOff := func() {
		h.Inject(hub.CutAfter(1 << 20).On(layer).Times(1))
		h.Inject(hub.Answer(hub.CDNGet, 500).On(layer).After(1))
		if a := ask(t, p, http.MethodGet, path); a.status == http.StatusOK && a.err == nil {
			t.Fatal("the blob came")
		}
		h.Mend()
		p.WaitIdle(t)
		if len(parts()) == 0 {
			t.Fatal("nothing is left of the fetch that broke off")
		}
	}
	h.Inject(hub.Answer(hub.CDNGet, 500).On(layer)) // it is not prefetched
	get(t, p, "/v2/docker.io/library/app/manifests/1.0")
	p.WaitIdle(t)
	h.Mend()
	breakOff()
	operate(t, p, "purge", "app:1.0")
	if left := parts(); len(left) > 0 {
		t.Errorf("purge leaves %q", left)
	}
	breakOff()
	h.Inject(hub.RefuseRange(500))
	p.Stop(t)
	p.Restart(t)
	if a := get(t, p, path); digest.FromBytes(a.body) != layer {
		t.Error("the client gets other bytes")
	}
	p.WaitIdle(t)
	if left := parts(); len(left) > 0 {
		t.Errorf("%q are left though the blob is stored", left)
	}
}

// An image's manifest says that a layer is one byte longer or shorter than it is.
func TestTheDigestDecidesIfAManifestIsWrongAboutASize(t *testing.T) {
	t.Parallel()
	h, p := hub.New(t, hub.Options{}), (*proxy.Proxy)(nil)
	layers := map[string]digest.Digest{}
	for _, size := range []int{1000, 20 << 20} {
		for _, off := range []int64{-1, 1} {
			tag := fmt.Sprintf("%d.%d", size, off+1)
			i := image.New(image.Options{Seed: uint64(len(layers)), Layers: []image.Layer{{Size: size}}})
			m := i.Manifests[i.Digest]
			layer := i.Layers("")[0]
			wrong := fmt.Sprintf(`"size":%d`, layer.Size+off)
			m.Bytes = []byte(strings.Replace(string(m.Bytes), fmt.Sprintf(`"size":%d`, layer.Size), wrong, 1))
			delete(i.Manifests, i.Digest)
			i.Digest = digest.FromBytes(m.Bytes)
			i.Manifests[i.Digest] = m
			layers[tag] = layer.Digest
			h.Push("library/app", tag, i)
		}
	}
	p = proxy.New(t, h)
	for tag, layer := range layers {
		m := get(t, p, "/v2/docker.io/library/app/manifests/"+tag)
		if !strings.Contains(string(m.body), layer.String()) {
			t.Fatalf("%s: another manifest came: %s", tag, m)
		}
		for range 2 {
			if a := get(t, p, "/v2/docker.io/library/app/blobs/"+layer.String()); digest.FromBytes(a.body) != layer {
				t.Errorf("%s: other bytes came", tag)
			}
			p.WaitIdle(t)
		}
	}
}

// An upstream that is a cache itself sends nothing of a blob for longer than its header
// may take. It is waited for, and nobody else is refused anything meanwhile.
func TestABlobIsWaitedForWhileItsUpstreamAnswersOthers(t *testing.T) {
	t.Parallel()
	slow, quick := randomBytes("slow", 100_000), randomBytes("quick", 100_000)
	h := hub.New(t, hub.Options{NoCDN: true})
	h.PushBlob("library/app", digest.FromBytes(slow), slow)
	goOn := make(chan struct{})
	defer h.Inject(hub.Hold(hub.BlobGet, goOn).On(digest.FromBytes(slow)))()
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: "upstreams: {docker.io: {header_timeout: 1s}}"})
	path := "/v2/docker.io/library/app/blobs/"
	done := make(chan answer)
	go func() { done <- ask(t, p, http.MethodGet, path+digest.FromBytes(slow).String()) }()
	// The upstream is asked whether it is there each time that it has been silent.
	proxy.Until(t, "the upstream to be asked several times whether it is there", func() bool {
		return p.Metrics(t).Sum("entrepot_upstream_requests_total", "operation", "probe") >= 3
	})
	h.PushBlob("library/app", digest.FromBytes(quick), quick)
	get(t, p, path+digest.FromBytes(quick).String())
	close(goOn)
	if a := <-done; a.status != http.StatusOK || a.err != nil || digest.FromBytes(a.body) != digest.FromBytes(slow) {
		a.body = nil
		t.Errorf("want 200 and the blob, got %s", a)
	}
}

// An upstream that sends too little says by that how large the blob is. A client whose range
// lies behind that end is told of a failure, never that the blob has no such bytes.
func TestARangeBehindTheEndOfWhatCameIsNoRangeError(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{true, false} {
		t.Run(fmt.Sprintf("size known %v", known), func(t *testing.T) {
			h, p := start(t, "")
			_, content, path := blobOf(h, "library/app", 1, 600_000)
			if known {
				get(t, p, "/v2/library/app/manifests/1.0")
			}
			undo := h.Inject(hub.TruncateAfter(100_000))
			for range 4 {
				if a := ask(t, p, http.MethodGet, path, "Range", "bytes=300000-"); a.status == http.StatusRequestedRangeNotSatisfiable {
					t.Errorf("a client was told of the upstream's end: %s", a)
				}
			}
			undo()
			until(t, "the range is served", func() bool {
				a := ask(t, p, http.MethodGet, path, "Range", "bytes=300000-")
				return a.status == http.StatusPartialContent && a.err == nil && bytes.Equal(a.body, content[300_000:])
			})
		})
	}
}
