package fill

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
)

// layerWithTOC is a layer that lazy pullers can read, and what its manifest says about it.
type layerWithTOC struct {
	content []byte
	said    TOC
	toc     oci.Span // where the compressed TOC is
}

// gzipped returns a gzip member that holds a tar of one file.
func gzipped(name string, content []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	t := tar.NewWriter(z)
	_ = t.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)), Typeflag: tar.TypeReg, Mode: 0o444})
	_, _ = t.Write(content)
	_ = t.Close()
	_ = z.Close()
	return b.Bytes()
}

// footer returns an empty gzip member with this extra field.
func footer(extra string) []byte {
	b := []byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, byte(len(extra)), 0}
	b = append(b, extra...)
	return append(b, 1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0)
}

// stargz returns an eStargz layer with so many bytes of files and with this TOC.
func stargz(files int, json []byte, old bool) layerWithTOC {
	b := content(71, files)
	packed := gzipped(stargzTOCName, json)
	at := fmt.Sprintf("%016xSTARGZ", len(b))
	if !old {
		at = "SG\x16\x00" + at
	}
	l := layerWithTOC{toc: oci.Span{From: int64(len(b)), To: int64(len(b) + len(packed))}, said: TOC{digest: digest.FromBytes(json)}}
	l.content = append(append(b, packed...), footer(at)...)
	return l
}

// layersWithTOC returns a layer of each kind, with 4 MiB of files and a TOC that is larger
// than what is fetched with the footer.
func layersWithTOC() map[string]layerWithTOC {
	json := []byte(hex.EncodeToString(content(72, 200_000)))
	chunked := content(73, 4<<20+300_000)
	at := oci.Span{From: 4 << 20, To: 4<<20 + 200_000}
	return map[string]layerWithTOC{
		"eStargz":           stargz(4<<20, json, false),
		"eStargz, old":      stargz(4<<20, json, true),
		"zstd:chunked":      {chunked, TOC{digest.FromBytes(chunked[at.From:at.To]), at}, at},
		"TOC in the footer": stargz(4<<20, json[:1000], false),
	}
}

// tocFill returns a fill of l from s whose first reader reads the TOC, as it runs.
func tocFill(t *testing.T, s *source, p *memoryPart, l layerWithTOC) (f *Fill, wait func() error) {
	f = newTestFill(s, p)
	f.task.Digest, f.size, f.lead, f.least = digest.FromBytes(l.content), int64(len(l.content)), leadSize, MinSegment
	f.task.Size = f.size
	f.askPiece(l.toc, false)
	f.GuardTOCs([]TOC{l.said})
	return f, start(t.Context(), f)
}

func TestTheTOCOfAPartialBlobIsVerifiedAndServed(t *testing.T) {
	for name, l := range layersWithTOC() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, s := &memoryPart{}, &source{content: l.content}
				size := int64(len(l.content))
				footer := oci.Span{From: size - 51, To: oci.Open}
				files := oci.Span{From: 1 << 20, To: 1<<20 + 1000}
				f, wait := tocFill(t, s, p, l)
				asked := readPieces(t, f, l.content, []oci.Span{footer})
				for _, span := range []oci.Span{l.toc, files} {
					asked += readPieces(t, f, l.content, []oci.Span{span})
				}
				if err := wait(); !errors.Is(err, ErrParked) || s.mismatch > 0 {
					t.Fatalf("the fill ends with %v, %d mismatches", err, s.mismatch)
				}
				if most := asked + 3*minPiece + int64(len(s.requests))*leadSize; s.sent > most || len(s.requests) > 4 {
					t.Errorf("%d bytes were read, and the upstream sent %d in %d requests, want %d in 4 at most", asked, s.sent, len(s.requests), most)
				}
				// A later process verifies what is on disk, and needs no upstream.
				before := len(s.requests)
				f, wait = tocFill(t, s, p, l)
				readPieces(t, f, l.content, []oci.Span{l.toc, files, footer})
				if err := wait(); !errors.Is(err, ErrParked) || len(s.requests) != before {
					t.Errorf("%v; the upstream was asked %d more times", err, len(s.requests)-before)
				}
				// What was damaged on disk meanwhile isn't served.
				p.content[l.toc.From+100] ^= 1
				f, wait = tocFill(t, s, p, l)
				readPieces(t, f, l.content, []oci.Span{l.toc, files, footer})
				if err := wait(); err != nil || !p.committed || s.mismatch != 1 {
					t.Errorf("%v, committed %v, %d mismatches", err, p.committed, s.mismatch)
				}
			})
		})
	}
}

// tocLies are ways to lie about a layer's TOC.
var tocLies = map[string]func(l layerWithTOC) []byte{
	"a byte of the TOC": func(l layerWithTOC) []byte { return flippedAt(l.content, (l.toc.From+l.toc.To)/2) },
	"its first byte":    func(l layerWithTOC) []byte { return flippedAt(l.content, l.toc.From) },
	"another TOC":       func(l layerWithTOC) []byte { return withTOC(l, []byte(`{"version":1}`)) },
	"the TOC elsewhere": func(l layerWithTOC) []byte { return withFooter(l, fmt.Sprintf("SG\x16\x00%016xSTARGZ", 1<<20)) },
	"a TOC behind it":   func(l layerWithTOC) []byte { return withFooter(l, "SG\x16\x00ffffffffffffffffSTARGZ") },
	"a negative offset": func(l layerWithTOC) []byte { return withFooter(l, "SG\x16\x00-000000000000001STARGZ") },
	"another footer":    func(l layerWithTOC) []byte { return withFooter(l, "SG\x16\x000000000000000000STARGO") },
	"not even a footer": func(l layerWithTOC) []byte { return flippedAt(l.content, int64(len(l.content)-stargzFooter)) },
	"a file of this kind": func(l layerWithTOC) []byte {
		packed := gzipped("a file", content(75, 1000))
		return append(append(bytes.Clone(l.content[:len(l.content)-stargzFooter-len(packed)]), packed...),
			footer(fmt.Sprintf("SG\x16\x00%016xSTARGZ", len(l.content)-stargzFooter-len(packed)))...)
	},
}

func flippedAt(b []byte, at int64) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

func withFooter(l layerWithTOC, extra string) []byte {
	return append(bytes.Clone(l.content[:len(l.content)-stargzFooter]), footer(extra)...)
}

// withTOC returns l with another TOC at the end of its own, and the right footer for it.
func withTOC(l layerWithTOC, json []byte) []byte {
	packed := gzipped(stargzTOCName, json)
	at := len(l.content) - stargzFooter - len(packed)
	return append(append(bytes.Clone(l.content[:at]), packed...), footer(fmt.Sprintf("SG\x16\x00%016xSTARGZ", at))...)
}

// An upstream may lie in everything that it sends, or in ranges only. No reader of a piece
// gets a byte of a wrong TOC, or the footer that leads to one.
func TestAWrongTOCReachesNobody(t *testing.T) {
	for kind, l := range layersWithTOC() {
		if kind == "eStargz, old" {
			continue
		}
		for name, lie := range tocLies {
			if kind == "zstd:chunked" && name != "a byte of the TOC" && name != "its first byte" {
				continue // there is no footer to lie in
			}
			for _, always := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %s, always %v", kind, name, always), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						lied := lie(l)
						s, p := &source{content: l.content}, &memoryPart{}
						blamed := new(atomic.Int32)
						if always {
							s.content = lied
						} else {
							blamed = lying(s, func(_ []byte, span oci.Span) []byte { return lied[span.From:span.To] })
						}
						f, wait := tocFill(t, s, p, l)
						size := int64(len(l.content))
						for _, span := range []oci.Span{{From: size - 51, To: oci.Open}, l.toc, {From: (l.toc.From + l.toc.To) / 2, To: oci.Open}} {
							got, err := read(t.Context(), f, span)
							want := l.content[span.From:End(span, size)]
							switch {
							case span.From >= l.toc.To && l.said.at == l.toc: // the manifest says where the TOC is
							case always && (len(got) > 0 || !errors.Is(err, ErrMismatch)):
								t.Errorf("%v: got %d bytes, %v", span, len(got), err)
							case !always && (err != nil || !bytes.Equal(got, want)):
								t.Errorf("%v: got %d bytes, %v", span, len(got), err)
							}
						}
						err := wait()
						if s.mismatch == 0 || errors.Is(err, ErrMismatch) != always || p.committed == always || p.discarded != always {
							t.Errorf("%v, %d mismatches, committed %v, discarded %v", err, s.mismatch, p.committed, p.discarded)
						}
						if !always && blamed.Load() == 0 {
							t.Error("the ranges should be blamed")
						}
					})
				})
			}
		}
	}
}

// If a manifest gives a wrong digest of the TOC, the blob is right nevertheless. It is
// served once its own digest says so, and the upstream's ranges aren't blamed. So is a TOC
// that is too large to be verified on its own.
func TestWhatAManifestSaysWronglyOfATOCKeepsNobodyFromTheBlob(t *testing.T) {
	json := []byte(hex.EncodeToString(content(74, 100_000)))
	bomb := stargz(1<<20, make([]byte, maxPlainTOC+1), false)
	wrong := stargz(4<<20, json, false)
	wrong.said.digest = digest.FromString("another")
	behind := stargz(4<<20, json, false)
	behind.said = TOC{digest.FromBytes(json), oci.Span{From: 4 << 20, To: 5 << 20}}
	none := layerWithTOC{content: content(76, 4<<20), said: wrong.said, toc: oci.Span{From: 3 << 20, To: 4 << 20}}
	empty := layerWithTOC{content: content(76, 300<<10), said: wrong.said, toc: oci.Span{From: 1, To: 20}}
	large := layerWithTOC{content: content(77, maxTOC+2<<20), toc: oci.Span{From: 1 << 19, To: maxTOC + 1<<20}}
	large.said = TOC{digest.FromString("not asked for"), large.toc}
	for name, test := range map[string]struct {
		layerWithTOC
		mismatches int
	}{
		"another digest": {wrong, 1}, "behind the end": {behind, 1}, "no TOC": {none, 1}, "a small one": {empty, 1},
		"too large": {large, 0}, "too large once unpacked": {bomb, 0},
	} {
		for _, ranges := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, ranges %v", name, ranges), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l, p := test.layerWithTOC, &memoryPart{}
					s := &source{content: l.content, noRanges: !ranges}
					blamed := lying(s, func(c []byte, span oci.Span) []byte { return c[span.From:span.To] })
					if !ranges {
						s.open = nil
					}
					f, wait := tocFill(t, s, p, l)
					readPieces(t, f, l.content, []oci.Span{l.toc, {From: int64(len(l.content)) - 51, To: oci.Open}})
					if err := wait(); err != nil || !p.committed || blamed.Load() > 0 || s.mismatch != test.mismatches {
						t.Errorf("%v, committed %v, %d mismatches, blamed %d times", err, p.committed, s.mismatch, blamed.Load())
					}
				})
			})
		}
	}
}

// A TOC that isn't in the blob is verified by whoever fetches it.
func TestALayerWhoseTOCIsElsewhereIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := append(content(78, 1<<20), footer("SG\x11\x00STARGZEXTERNALTOC")...)
		l := layerWithTOC{content: b, said: TOC{digest: digest.FromString("elsewhere")}, toc: oci.Span{From: int64(len(b) - 51), To: int64(len(b))}}
		s := &source{content: b}
		f, wait := tocFill(t, s, &memoryPart{}, l)
		readPieces(t, f, b, []oci.Span{l.toc, {From: 1000, To: 2000}})
		if err := wait(); !errors.Is(err, ErrParked) || s.mismatch > 0 {
			t.Errorf("%v, %d mismatches", err, s.mismatch)
		}
	})
}

// waits is a reader without bytes that ends once it is closed.
type waits chan struct{}

func (w waits) Read([]byte) (int, error) {
	<-w
	return 0, io.EOF
}

// A piece that can't be the TOC waits for no TOC, and neither does a reader of the whole.
func TestWhatCannotBeTheTOCDoesNotWaitForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := stargz(maxTOC+4<<20, []byte("{}"), false)
		s, p := &source{content: l.content}, &memoryPart{}
		closed := make(chan struct{})
		s.open = func(_ int, span oci.Span) (*oci.Body, error) {
			if span.From < 4<<20 {
				return nil, nil
			}
			size := int64(len(l.content))
			span.To = End(span, size)
			late := io.MultiReader(waits(closed), bytes.NewReader(l.content[span.From:span.To]))
			return &oci.Body{ReadCloser: io.NopCloser(late), Span: span, Size: size, Status: 206}, nil
		}
		f, wait := tocFill(t, s, p, l)
		f.GuardTOCs([]TOC{l.said}) // known
		if len(f.guards) != 1 {
			t.Errorf("%d guards", len(f.guards))
		}
		for _, span := range []oci.Span{{From: 1 << 20, To: 1<<20 + 1000}, {From: 3 << 20, To: 4 << 20}} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if got, err := read(ctx, f, span); err != nil || !bytes.Equal(got, l.content[span.From:span.To]) {
				t.Errorf("%v: got %d bytes, %v", span, len(got), err)
			}
			cancel()
		}
		close(closed)
		readPieces(t, f, l.content, []oci.Span{oci.Whole})
		if err := wait(); err != nil {
			t.Error(err)
		}
	})
}

func TestWhatADescriptorSaysAboutItsTOC(t *testing.T) {
	sum := digest.FromString("toc")
	for name, test := range map[string]struct {
		mediaType string
		size      int64
		said      map[string]string
		want      TOC
	}{
		"nothing":             {v1.MediaTypeImageLayerGzip, 1000, nil, TOC{}},
		"eStargz":             {v1.MediaTypeImageLayerGzip, 1000, map[string]string{StargzDigest: sum.String()}, TOC{digest: sum}},
		"eStargz, no digest":  {v1.MediaTypeImageLayerGzip, 1000, map[string]string{StargzDigest: "sha256:12"}, TOC{}},
		"eStargz, unknown":    {v1.MediaTypeImageLayerGzip, 1000, map[string]string{StargzDigest: "md5:d41d8cd98f00b204e9800998ecf8427e"}, TOC{}},
		"zstd:chunked":        {v1.MediaTypeImageLayerZstd, 1000, map[string]string{chunkedDigest: sum.String(), chunkedAt: "10:20:300:1"}, TOC{sum, oci.Span{From: 10, To: 30}}},
		"both":                {v1.MediaTypeImageLayerZstd, 1000, map[string]string{StargzDigest: "sha256:12", chunkedDigest: sum.String(), chunkedAt: "10:20:300:1"}, TOC{sum, oci.Span{From: 10, To: 30}}},
		"zstd, plain digest":  {v1.MediaTypeImageLayerZstd, 1000, map[string]string{StargzDigest: sum.String()}, TOC{}},
		"zstd, no position":   {v1.MediaTypeImageLayerZstd, 1000, map[string]string{chunkedDigest: sum.String()}, TOC{}},
		"zstd, odd position":  {v1.MediaTypeImageLayerZstd, 1000, map[string]string{chunkedDigest: sum.String(), chunkedAt: "10"}, TOC{}},
		"zstd, negative":      {v1.MediaTypeImageLayerZstd, 1000, map[string]string{chunkedDigest: sum.String(), chunkedAt: "-1:20:300:1"}, TOC{}},
		"zstd, too far":       {v1.MediaTypeImageLayerZstd, 1000, map[string]string{chunkedDigest: sum.String(), chunkedAt: "990:20:300:1"}, TOC{}},
		"zstd, out of bounds": {v1.MediaTypeImageLayerZstd, 0, map[string]string{chunkedDigest: sum.String(), chunkedAt: "9223372036854775807:9223372036854775807:1:1"}, TOC{}},
	} {
		got, ok := TOCOf(v1.Descriptor{MediaType: test.mediaType, Size: test.size, Annotations: test.said})
		if got != test.want && ok || ok != (test.want != TOC{}) {
			t.Errorf("%s: got %v, %v, want %v", name, got, ok, test.want)
		}
	}
}
