package fill

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
)

// A lazy puller reads a layer's table of contents (TOC) first, and finds and verifies every
// file by it. The layer's descriptor in the manifest carries the TOC's digest. So the TOC of
// a blob that isn't complete is verified before a reader gets any byte of it. If it is wrong,
// the whole blob is fetched, from another endpoint if there is one, and the blob's digest
// decides.

// What layer descriptors say about their TOC. eStargz: stargz-snapshotter,
// docs/estargz.md. zstd:chunked: containers/storage, pkg/chunked/internal/minimal.
const (
	// StargzDigest is the annotation of an eStargz layer.
	StargzDigest  = "containerd.io/snapshot/stargz/toc.digest"
	chunkedDigest = "io.github.containers.zstd-chunked.manifest-checksum"
	chunkedAt     = "io.github.containers.zstd-chunked.manifest-position"
)

const (
	// maxTOC is the largest compressed TOC that is fetched to verify it, and maxPlainTOC is
	// how large it may be uncompressed. Readers of a larger one wait for the blob's digest.
	maxTOC      = 32 << 20
	maxPlainTOC = 128 << 20
	// MaxTOCs bounds the different TOC digests that manifests may give for one blob.
	MaxTOCs = 4
	// The footer of an eStargz layer is an empty gzip member whose extra field says where the
	// TOC begins. The field has another form in old layers, and if the TOC is elsewhere.
	stargzFooter         = 51
	oldStargzFooter      = 47
	externalStargzFooter = 46
	stargzTOCName        = "stargz.index.json"
)

// maxOffset bounds the offset and the size that a manifest may give for a TOC.
const maxOffset = 1 << 44

// errTOC says that a TOC doesn't have the digest that a manifest gives for it. It is an
// ErrMismatch.
var errTOC = fmt.Errorf("the layer's table of contents does not have the digest that the manifest gives for it: %w", ErrMismatch)

// errLargeTOC says that a TOC is too large to be verified on its own.
var errLargeTOC = errors.New("the table of contents is too large")

// TOC is what a manifest says about a layer's table of contents.
type TOC struct {
	digest digest.Digest
	// at is where the blob has the compressed TOC, whose digest it is then (zstd:chunked).
	// If it is empty, the blob's footer says where the TOC is, and the digest is that of the
	// uncompressed TOC (eStargz).
	at oci.Span
}

// TOCOf returns what d, a layer's descriptor, says about the layer's TOC. It returns false if d says
// nothing usable.
func TOCOf(d v1.Descriptor) (TOC, bool) {
	key, position := StargzDigest, d.Annotations[chunkedAt]
	if position != "" {
		key = chunkedDigest
	} else if strings.HasSuffix(d.MediaType, "zstd") {
		return TOC{}, false // stargz-snapshotter gives the digest of the plain TOC for these too
	}
	sum, err := digest.Parse(d.Annotations[key])
	if err != nil || position == "" {
		return TOC{digest: sum}, err == nil
	}
	from, rest, _ := strings.Cut(position, ":")
	length, _, _ := strings.Cut(rest, ":")
	at, err := strconv.ParseInt(from, 10, 64)
	n, err2 := strconv.ParseInt(length, 10, 64)
	if err != nil || err2 != nil || at < 0 || n <= 0 || at > maxOffset || n > maxOffset || d.Size > 0 && at+n > d.Size {
		return TOC{}, false
	}
	return TOC{sum, oci.Span{From: at, To: at + n}}, true
}

// MentionsTOC reports whether a manifest's bytes may say something about a TOC. It is cheap. If it is
// false, so is TOCOf for each of the manifest's layers.
func MentionsTOC(manifest []byte) bool {
	return bytes.Contains(manifest, []byte(StargzDigest)) || bytes.Contains(manifest, []byte(chunkedDigest))
}

// guard keeps readers of a fill from the TOC until that is verified. Fill.mu guards it.
type guard struct {
	TOC
	// span is what is withheld, once located is set; it may be empty.
	span    oci.Span
	located bool
	// verified is set once the TOC is right. If onlyWhole is set, the TOC can't be verified
	// on its own, or was wrong, and the blob's digest decides.
	verified, onlyWhole bool
}

// GuardTOCs makes the fill verify these TOCs before a reader of a piece gets a byte of them.
func (f *Fill) GuardTOCs(tocs []TOC) {
	if len(tocs) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range tocs {
		known := slices.ContainsFunc(f.guards, func(g *guard) bool { return g.TOC == t })
		if known || len(f.guards) >= MaxTOCs {
			continue
		}
		f.guards = append(f.guards, &guard{TOC: t, onlyWhole: f.plain})
	}
	f.wake()
}

// withheld returns the bytes that g withholds: all that may be the TOC. f.mu is held.
func (f *Fill) withheld(g *guard) oci.Span {
	switch {
	case g.located:
		return g.span
	case g.at != oci.Span{}:
		return g.at
	case f.size < 0:
		return oci.Span{From: 0, To: math.MaxInt64}
	}
	return oci.Span{From: max(0, f.size-maxTOC-stargzFooter), To: f.size}
}

// guardAt returns the first guard that withholds the byte at off from a reader of span; nil
// if none does. A reader of the whole blob waits for the blob's digest anyway. f.mu is held.
func (f *Fill) guardAt(span oci.Span, off int64) *guard {
	if f.right || span.From == 0 && (span.To == oci.Open || span.To >= f.size) {
		return nil
	}
	for _, g := range f.guards {
		if s := f.withheld(g); !g.verified && off >= s.From && off < s.To {
			return g
		}
	}
	return nil
}

// upToTOC returns limit, or the first byte from off on before it that is withheld from a
// reader of span. f.mu is held.
func (f *Fill) upToTOC(span oci.Span, off, limit int64) int64 {
	for _, g := range f.guards {
		if s := f.withheld(g); !g.verified && off < s.To && limit > s.From && f.guardAt(span, max(off, s.From)) != nil {
			limit = max(off, s.From)
		}
	}
	return limit
}

// wantTOC has fetched what is needed to verify the TOC that is withheld from a reader of span
// at off. mine is the reader's wish for that, or nil; the new one is returned. f.mu is held.
func (f *Fill) wantTOC(mine *wish, span oci.Span, off int64) *wish {
	g := f.guardAt(span, off)
	if g == nil || f.ended || f.size < 0 {
		return mine
	}
	if g.onlyWhole {
		f.goEager()
		return mine
	}
	if f.isDue(g) {
		return mine // all is here, and about to be verified
	}
	if !f.opened && (len(f.writers) > 0 || f.group == nil) {
		return mine // the upstream may send the whole, whatever it is asked for
	}
	need := f.tocBytes(g)
	if mine == nil {
		mine = &wish{}
		f.wishes = append(f.wishes, mine)
	}
	mine.span, mine.at = need, f.have.Reach(need.From)
	f.want(mine)
	return mine
}

// tocBytes returns the bytes by which g's next step is taken: the footer and some bytes
// before it, which often are the TOC, or the TOC. f.mu is held, and the size known.
func (f *Fill) tocBytes(g *guard) oci.Span {
	switch {
	case g.at != oci.Span{}:
		return oci.Span{From: min(g.at.From, f.size), To: min(g.at.To, f.size)}
	case !g.located:
		return oci.Span{From: max(0, f.size-minPiece), To: f.size}
	}
	return oci.Span{From: g.span.From, To: f.size - oldStargzFooter}
}

// dueTOC returns a guard whose next step can be taken, or nil. f.mu is held.
func (f *Fill) dueTOC() *guard {
	if i := slices.IndexFunc(f.guards, f.isDue); i >= 0 {
		return f.guards[i]
	}
	return nil
}

// isDue reports whether g's next step can be taken: what it takes is here. f.mu is held.
func (f *Fill) isDue(g *guard) bool {
	if g.verified || g.onlyWhole || f.size < 0 || f.right {
		return false
	}
	need := f.tocBytes(g)
	switch {
	case g.located:
	case g.at == oci.Span{}:
		need.From = max(0, f.size-stargzFooter)
	default:
		return true // the manifest has located it
	}
	return f.have.Reach(need.From) >= need.To
}

// checkTOCs verifies the TOCs that have come. Its error is errTOC, or the disk's.
func (f *Fill) checkTOCs() error {
	for {
		f.mu.Lock()
		g := f.dueTOC()
		if g == nil {
			f.mu.Unlock()
			return nil
		}
		size, at, located := f.size, g.span, g.located
		f.mu.Unlock()
		var err error
		if located {
			err = g.verify(f.part, at)
		} else {
			at, err = g.locate(f.part, size)
		}
		large := at.To-at.From > maxTOC+stargzFooter || errors.Is(err, errLargeTOC)
		if err != nil && !large {
			return fmt.Errorf("%s: %w", f.task.Digest, err)
		}
		f.mu.Lock()
		g.span, g.located = at, true
		g.verified = !large && (located || at.From == at.To)
		if g.onlyWhole = large; large {
			f.goEager()
		}
		f.wake()
		f.mu.Unlock()
	}
}

// resetTOCs prepares the guards for another round. f.mu is held.
func (f *Fill) resetTOCs() {
	for _, g := range f.guards {
		*g = guard{TOC: g.TOC, onlyWhole: f.plain}
	}
}

// spareRanges says, once the blob's digest is right, whether a TOC that was refused was right
// after all, and the manifest wrong. Then the upstream's ranges aren't to blame.
func (f *Fill) spareRanges(size int64) bool {
	f.mu.Lock()
	guards, wrong := slices.Clone(f.guards), f.wrongTOC
	f.mu.Unlock()
	return wrong && slices.ContainsFunc(guards, func(g *guard) bool {
		at, err := g.locate(f.part, size)
		if err == nil && at.From < at.To {
			err = g.verify(f.part, at)
		}
		return errors.Is(err, errTOC)
	})
}

// locate returns the bytes of a blob of size bytes in file that are withheld until its TOC is
// Verified: the TOC, and what follows it in an eStargz layer. They are none if the TOC isn't
// in the blob. The error wraps errTOC if nothing says where it is.
func (g *guard) locate(file io.ReaderAt, size int64) (oci.Span, error) {
	if (g.at != oci.Span{}) {
		if g.at.To > size {
			return oci.Span{}, fmt.Errorf("%w; it would end behind the layer", errTOC)
		}
		return g.at, nil
	}
	footer := make([]byte, min(stargzFooter, size))
	if n, err := file.ReadAt(footer, size-int64(len(footer))); err != nil && (err != io.EOF || n < len(footer)) {
		return oci.Span{}, OnDisk(err)
	}
	at, ok := tocOffset(footer)
	switch {
	case !ok:
		return oci.Span{}, fmt.Errorf("%w; the layer has no eStargz footer", errTOC)
	case at == elsewhere:
		return oci.Span{From: size, To: size}, nil
	case at < 0 || at >= size-oldStargzFooter:
		return oci.Span{}, fmt.Errorf("%w; the layer's footer says that it Begins at byte %d", errTOC, at)
	}
	return oci.Span{From: at, To: size}, nil
}

// elsewhere stands for the offset of a TOC that isn't in the blob.
const elsewhere = math.MinInt64

// tocOffset returns where the TOC begins, as b says, which ends with an eStargz layer's
// footer; false if it doesn't.
func tocOffset(b []byte) (int64, bool) {
	for _, size := range []int{stargzFooter, oldStargzFooter, externalStargzFooter} {
		z, err := gzip.NewReader(bytes.NewReader(b[max(0, len(b)-size):]))
		if err != nil {
			continue
		}
		field := string(z.Extra) // RFC 1952, 2.3.1
		if size != oldStargzFooter {
			var ok bool
			if field, ok = strings.CutPrefix(field, "SG"); !ok || len(field) < 2 {
				continue
			}
			field = field[2:] // its length
		}
		if field == "STARGZEXTERNALTOC" {
			return elsewhere, true
		}
		if hex, ok := strings.CutSuffix(field, "STARGZ"); ok {
			at, err := strconv.ParseInt(hex, 16, 64)
			return at, err == nil
		}
	}
	return 0, false
}

// verify reads the TOC at the beginning of at in file. Its error wraps errTOC if it is wrong,
// and is errLargeTOC or that of the disk otherwise.
func (g *guard) verify(file io.ReaderAt, at oci.Span) error {
	disk := &diskReader{io.NewSectionReader(file, at.From, at.To-at.From), nil}
	hash := g.digest.Algorithm().Hash()
	err := g.plain(disk, hash)
	switch sum := digest.NewDigest(g.digest.Algorithm(), hash); {
	case disk.err != nil:
		return OnDisk(disk.err)
	case errors.Is(err, errLargeTOC):
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", errTOC, err)
	case sum != g.digest:
		return fmt.Errorf("%w; it has %s and should have %s", errTOC, sum, g.digest)
	}
	return nil
}

// plain copies to out what g's digest is the digest of.
func (g *guard) plain(in io.Reader, out io.Writer) error {
	if (g.at != oci.Span{}) {
		_, err := io.Copy(out, in)
		return err
	}
	z, err := gzip.NewReader(in)
	if err != nil {
		return err
	}
	z.Multistream(false)
	bounded := &io.LimitedReader{R: z, N: maxPlainTOC}
	t := tar.NewReader(bounded)
	h, err := t.Next()
	if err == nil && h.Name != stargzTOCName {
		err = fmt.Errorf("its file is called %q and not %q", h.Name, stargzTOCName)
	}
	if err == nil && h.Size > maxPlainTOC {
		return errLargeTOC
	}
	if err == nil {
		_, err = io.CopyN(out, t, h.Size)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, bounded) // has the checksum compared
	}
	if bounded.N <= 0 {
		return errLargeTOC
	}
	return err
}

// diskReader keeps the error of what it reads, to tell it from those of what it is read for.
type diskReader struct {
	io.Reader
	err error
}

func (r *diskReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}
