package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// lazyImage is an image whose one layer has a table of contents.
type lazyImage struct {
	*image.Image
	layer    v1.Descriptor
	content  []byte
	from, to int64 // where the table of contents is
	path     string
}

// pushLazy pushes an image of about 2 MiB, as library/lazy:1.0, whose layer is eStargz or
// zstd:chunked, with a table of contents of about 130 KB.
func pushLazy(h *hub.Hub, chunked bool) lazyImage {
	files := image.New(image.Options{Seed: 31, Layers: []image.Layer{{Size: 2 << 20}}})
	config := []byte("{}")
	layer := files.Layers("")[0]
	i := lazyImage{Image: files, content: bytes.Clone(files.Blobs[layer.Digest])}
	i.from = int64(len(i.content))
	plain := []byte(hex.EncodeToString([]byte(strings.Repeat(string(i.content[100_000:165_000]), 2))))
	if chunked {
		i.content = append(i.content, plain[:130_000]...)
		i.to = int64(len(i.content))
		i.content = append(i.content, i.content[:64]...)
		layer.MediaType = v1.MediaTypeImageLayerZstd
		layer.Annotations = map[string]string{
			"io.github.containers.zstd-chunked.manifest-checksum": digest.FromBytes(plain[:130_000]).String(),
			"io.github.containers.zstd-chunked.manifest-position": fmt.Sprintf("%d:%d:%d:1", i.from, i.to-i.from, 400_000),
		}
	} else {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		t := tar.NewWriter(z)
		_ = t.WriteHeader(&tar.Header{Name: "stargz.index.json", Size: int64(len(plain)), Typeflag: tar.TypeReg})
		_, _ = t.Write(plain)
		_ = t.Close()
		_ = z.Close()
		i.content = append(i.content, b.Bytes()...)
		i.to = int64(len(i.content))
		i.content = append(i.content, "\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff\x1a\x00SG\x16\x00"+fmt.Sprintf("%016xSTARGZ", i.from)+
			"\x01\x00\x00\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00"...)
		layer.Annotations = map[string]string{"containerd.io/snapshot/stargz/toc.digest": digest.FromBytes(plain).String()}
	}
	layer.Digest, layer.Size = digest.FromBytes(i.content), int64(len(i.content))
	m, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Layers: []v1.Descriptor{layer},
		Config: v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
	})
	if err != nil {
		panic(err)
	}
	i.Digest = digest.FromBytes(m)
	i.Manifests = map[digest.Digest]image.Manifest{i.Digest: {MediaType: v1.MediaTypeImageManifest, Bytes: m}}
	i.Blobs = map[digest.Digest][]byte{layer.Digest: i.content, digest.FromBytes(config): config}
	i.layer, i.path = layer, "/v2/library/lazy/blobs/"+layer.Digest.String()
	h.Push("library/lazy", "1.0", i.Image)
	return i
}

// footer and toc are the ranges of what lazy pullers read first.
func (i lazyImage) footer() string { return "bytes=-51" }
func (i lazyImage) toc() string    { return fmt.Sprintf("bytes=%d-%d", i.from, i.to-1) }

// wantLazy reads the layer as a lazy puller does.
func (i lazyImage) wantLazy(t *testing.T, p *proxy.Proxy) {
	t.Helper()
	wantBytes(t, "the footer", i.content[len(i.content)-51:], piece(t, p, i.path, i.footer()))
	wantBytes(t, "the table of contents", i.content[i.from:i.to], piece(t, p, i.path, i.toc()))
	wantBytes(t, "a file", i.content[500_000:600_000], piece(t, p, i.path, "bytes=500000-599999"))
}

// The table of contents of a layer that is pulled lazily is verified before a client gets
// it. A right one costs no more than its bytes, and is served after a restart without the
// upstream.
func TestTheTOCOfALazilyPulledLayerIsServedOnceItIsVerified(t *testing.T) {
	for _, chunked := range []bool{false, true} {
		t.Run(fmt.Sprintf("chunked %v", chunked), func(t *testing.T) {
			h, p := start(t, `upstreams: {docker.io: {complete: never}}`)
			i := pushLazy(h, chunked)
			get(t, p, "/v2/library/lazy/manifests/1.0", "Accept", v1.MediaTypeImageManifest)
			i.wantLazy(t, p)
			if sent, most := h.Sent(i.layer.Digest), i.to-i.from+100_000+2*64<<10+4*4<<10; sent > most {
				t.Errorf("the upstream sent %d bytes, want %d at most", sent, most)
			}
			p.WaitIdle(t)
			h.Down()
			for _, end := range []func(testing.TB){p.Stop, p.Kill} {
				end(t)
				p.Restart(t)
				i.wantLazy(t, p)
			}
			if isHere(p, i.layer.Digest) {
				t.Error("the layer counts as complete")
			}
		})
	}
}

// A client gets no byte of a wrong table of contents: neither before a restart, after which
// what the manifest says is read from disk, nor after it. A piece of the files comes, since the
// client verifies it by the table of contents.
func TestALyingUpstreamsTOCReachesNobody(t *testing.T) {
	for _, chunked := range []bool{false, true} {
		for _, restarted := range []bool{false, true} {
			t.Run(fmt.Sprintf("chunked %v, restarted %v", chunked, restarted), func(t *testing.T) {
				h, p := start(t, `upstreams: {docker.io: {complete: never}}`)
				i := pushLazy(h, chunked)
				get(t, p, "/v2/library/lazy/manifests/1.0", "Accept", v1.MediaTypeImageManifest)
				undo := h.Inject(hub.Flip(i.to - 1000).On(i.layer.Digest))
				if restarted {
					wantBytes(t, "a file", i.content[500_000:600_000], piece(t, p, i.path, "bytes=500000-599999"))
					p.Stop(t)
					p.Restart(t)
				}
				for _, rng := range []string{i.toc(), fmt.Sprintf("bytes=%d-", i.from), fmt.Sprintf("bytes=%d-%d", i.to-2000, i.to-1), i.footer()} {
					if chunked && rng == i.footer() {
						continue // the manifest says where the table is
					}
					if a := ask(t, p, http.MethodGet, i.path, "Range", rng); a.status != http.StatusBadGateway {
						t.Errorf("%s: want 502, got %s", rng, a)
					}
				}
				if n := p.Metrics(t).Sum("entrepot_digest_mismatches_total"); n < 1 {
					t.Errorf("%v mismatches are counted", n)
				}
				undo()
				i.wantLazy(t, p)
			})
		}
	}
}

// What an upstream sends wrongly as ranges only, or sends only as a whole, or what another
// endpoint has, is no trouble to a client.
func TestATOCComesFromWhoHasTheRightOne(t *testing.T) {
	h, p := start(t, "")
	i := pushLazy(h, false)
	get(t, p, "/v2/library/lazy/manifests/1.0", "Accept", v1.MediaTypeImageManifest)
	h.Inject(hub.DamageRange())
	i.wantLazy(t, p)

	h, p = start(t, "")
	i = pushLazy(h, false)
	get(t, p, "/v2/library/lazy/manifests/1.0", "Accept", v1.MediaTypeImageManifest)
	h.Inject(hub.IgnoreRange())
	i.wantLazy(t, p)
	if sent := h.Sent(i.layer.Digest); sent > i.layer.Size {
		t.Errorf("the upstream sent %d bytes of %d", sent, i.layer.Size)
	}

	first, second, p := startTwo(t, hub.Options{})
	i = pushLazy(first, false)
	pushLazy(second, false)
	get(t, p, "/v2/library/lazy/manifests/1.0", "Accept", v1.MediaTypeImageManifest)
	first.Inject(hub.Flip(i.to - 1000).On(i.layer.Digest))
	i.wantLazy(t, p)
	if second.Sent(i.layer.Digest) == 0 {
		t.Error("the second endpoint should have been asked")
	}
}
