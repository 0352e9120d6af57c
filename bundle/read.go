package bundle

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"path"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
)

// What is taken of an archive at most: it comes from a stranger.
const (
	// maxEntries bounds its entries.
	maxEntries = 500_000
	// maxName bounds the name of an entry, and of what it links to, in bytes.
	maxName = 255
	// maxDocument bounds each document about all of it, in bytes: the contents, the
	// layout's index, and what "docker save" writes.
	maxDocument = 64 << 20
	// maxSmall bounds a document about itself, in bytes.
	maxSmall = 4 << 20
	// maxEnd bounds what may follow the end of the tar, in bytes; it is zeros.
	maxEnd = 1 << 20
	// maxNamed is how many things an error names.
	maxNamed = 10
	// tellEvery is how often it is told how far the reading has come.
	tellEvery = 100 * time.Millisecond
)

// Intake takes content in from an archive. Nothing of it is visible before all of it has
// been taken in and found right. Its errors are *oci.Error where they are about what
// was given to it.
type Intake interface {
	// Expect makes room for content of these sizes that will come.
	Expect(ctx context.Context, content iter.Seq2[digest.Digest, int64]) error
	// Take takes in size bytes of r, which must be those of d; where d is empty it gives
	// what they are.
	Take(ctx context.Context, d digest.Digest, size int64, r io.Reader) (digest.Digest, error)
	// Has tells whether content that does not come is there.
	Has(d digest.Digest, size int64) bool
	// Read gives content that was taken in, of at most so many bytes.
	Read(d digest.Digest, most int64) ([]byte, error)
	// Add has a repository serve the manifest of d and all that it names; the target's
	// tag, where it has one, stands for it as of fetched, which may be zero.
	Add(t oci.Target, d v1.Descriptor, fetched time.Time) error
	// AddListed is Add for an image of which it is known what refers to it and to its
	// manifests: nothing does but what is added as well.
	AddListed(t oci.Target, d v1.Descriptor, fetched time.Time) error
	// Unnamed lists up to so many digests that nothing names that was added.
	Unnamed(most int) []digest.Digest
	// Drop forgets content that was taken in.
	Drop(d digest.Digest) error
}

// ReadOptions say how an archive is read.
type ReadOptions struct {
	// Name is what the image of an archive is called, where that has one image and
	// does not say it itself, or says otherwise. Empty: as the archive says.
	Name string
	// Resolve reads a reference as people write it: "nginx:1.27".
	Resolve func(reference string) (oci.Target, error)
	// Route gives the target of a repository of an upstream.
	Route func(upstream, repository string) (oci.Target, error)
	// Tell, where it is not nil, is told now and then how far the reading has come; its
	// error ends it.
	Tell func(ReadProgress) error
}

// ReadProgress is how far the reading of an archive has come.
type ReadProgress struct {
	// Blobs of Total have come, manifests among them. Total is zero where the archive
	// does not say it beforehand.
	Blobs, Total int
	// Bytes of the archive have been read.
	Bytes int64
}

// Refusal says what is wrong with an archive.
type Refusal struct{ err error }

func (r *Refusal) Error() string { return r.err.Error() }
func (r *Refusal) Unwrap() error { return r.err }

func refuse(format string, args ...any) error { return &Refusal{fmt.Errorf(format, args...)} }

// refused makes a Refusal of what an Intake says about content.
func refused(err error) error {
	e, already := (*oci.Error)(nil), (*Refusal)(nil)
	if errors.As(err, &already) || !errors.As(err, &e) || e.Code == oci.CodeUnavailable {
		return err
	}
	return &Refusal{errors.New(e.Message)}
}

// Read takes in the images of an archive: a bundle, an OCI image layout or what "docker
// save" writes, as a tar, which may be packed by gzip. All of it is verified: nothing
// must be missing, and nothing be in it that does not belong there. The error is a
// *Refusal where the archive is wrong; nothing of what was taken in may become visible
// then. r is read to its end.
func Read(ctx context.Context, r io.Reader, in Intake, o ReadOptions) error {
	a := &reading{
		ctx: ctx, in: in, ReadOptions: o,
		names: map[string]bool{}, taken: map[digest.Digest]int64{}, files: map[string]namedFile{}, links: map[string]string{},
	}
	counted := &counter{r: r, a: a}
	buffered := bufio.NewReaderSize(counted, 64<<10)
	var plain io.Reader = buffered
	if magic, err := buffered.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		if plain, err = gzip.NewReader(buffered); err != nil {
			return a.unreadable(counted, err)
		}
	}
	if err := a.entries(plain, counted); err != nil {
		return err
	}
	return a.add()
}

// counter counts what is read, and remembers what kept it from being read: that says
// nothing about the archive.
type counter struct {
	r   io.Reader
	a   *reading
	n   int64
	err error
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	if err != nil && err != io.EOF {
		c.err = err
	} else if told := c.a.tell(c.n); told != nil {
		c.err, err = told, told
	}
	return n, err
}

// reading is an archive that is being read.
type reading struct {
	ReadOptions
	ctx context.Context
	in  Intake

	names  map[string]bool // all there are
	layout bool
	// contents, index and docker are the documents that say what it is.
	contents *Contents
	promised map[digest.Digest]Content // what contents says
	index    *layoutIndex
	docker   []savedImage
	taken    map[digest.Digest]int64 // with their sizes
	// files are those with names of their own, links the names that stand for others.
	files map[string]namedFile
	links map[string]string

	told time.Time
}

// namedFile is content that "docker save" gives a name of its own.
type namedFile struct {
	digest digest.Digest
	size   int64
	packed bool // by gzip
}

func (a *reading) tell(bytes int64) error {
	if err := context.Cause(a.ctx); err != nil {
		return err
	}
	now := time.Now()
	if a.Tell == nil || now.Sub(a.told) < tellEvery {
		return nil
	}
	a.told = now
	p := ReadProgress{Blobs: len(a.taken), Bytes: bytes}
	for _, c := range a.promised {
		if c.Present {
			p.Total++
		}
	}
	return a.Tell(p)
}

// unreadable says why an archive can not be read on.
func (a *reading) unreadable(c *counter, err error) error {
	switch {
	case c.err != nil:
		return c.err
	case len(a.names) == 0:
		return refuse("it is no tar of images, as entrepot export, docker save, podman save, skopeo and crane pull write them")
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return refuse("it is truncated: it ends after %d bytes, in the middle", c.n)
	}
	return refuse("it is no tar of images, or is damaged at byte %d: %w", c.n, err)
}

// entries reads all entries of the tar, and to the end of r.
func (a *reading) entries(r io.Reader, c *counter) error {
	place := &placed{r: r}
	t, end := tar.NewReader(place), int64(0)
	for {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return a.unreadable(c, err)
		}
		if err := a.entry(h, &entryReader{t}); err != nil {
			var cut cutShort
			if c.err != nil || errors.As(err, &cut) {
				return a.unreadable(c, err)
			}
			return refused(err)
		}
		end = place.at + -h.Size&(block-1)
	}
	switch {
	case len(a.names) == 0:
		return refuse("it is empty, or no tar")
	case place.at < end+block:
		return refuse("it is truncated: it has no end, as a tar has")
	}
	rest, err := io.ReadAll(io.LimitReader(r, maxEnd+1))
	switch {
	case err != nil:
		return a.unreadable(c, err)
	case len(rest) > maxEnd, len(bytes.Trim(rest, "\x00")) > 0:
		return refuse("something follows the end of the tar")
	}
	return nil
}

// block is what a tar consists of, in bytes.
const block = 512

// placed knows how many bytes have been read through it.
type placed struct {
	r  io.Reader
	at int64
}

func (p *placed) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.at += int64(n)
	return n, err
}

// cutShort is an error of the tar in the middle of an entry.
type cutShort struct{ error }

func (e cutShort) Unwrap() error { return e.error }

// entryReader marks the errors of reading an entry, so that they are told from those of
// what is done with it.
type entryReader struct{ r io.Reader }

func (e *entryReader) Read(b []byte) (int, error) {
	n, err := e.r.Read(b)
	if err != nil && err != io.EOF {
		err = cutShort{err}
	}
	return n, err
}

// entry reads one entry.
func (a *reading) entry(h *tar.Header, r io.Reader) error {
	if len(h.Name) > maxName || len(h.Linkname) > maxName {
		return refuse("%.40q… has too long a name, or leads to one: at most %d bytes are taken", h.Name, maxName)
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		if len(a.names) == maxEntries {
			return refuse("it has more than %d entries", maxEntries)
		}
		a.names[name+"/"] = true // more than once does no harm
		return nil
	}
	switch {
	case a.names[name]:
		return refuse("it has %q twice", name)
	case len(a.names) == maxEntries:
		return refuse("it has more than %d entries", maxEntries)
	}
	a.names[name] = true
	switch {
	case h.Typeflag == tar.TypeSymlink:
		return a.link(name, h.Linkname)
	case h.Typeflag != tar.TypeReg:
		return refuse("%q is no file: it is of the type %q", name, h.Typeflag)
	case isSparse(h):
		return refuse("%q is a sparse file", name)
	}
	return a.file(name, h.Size, r)
}

func isSparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// cleanName gives the name of an entry, which must be one below the archive's root, and
// written as such.
func cleanName(name string) (string, error) {
	clean := strings.TrimSuffix(strings.TrimPrefix(name, "./"), "/")
	switch {
	case clean == "" && (name == "./" || name == "."), clean == ".":
		return ".", nil
	case strings.HasPrefix(name, "/"):
		return "", refuse("%q is an absolute name", name)
	case clean == "..", strings.HasPrefix(clean, "../"), strings.Contains(clean, "/../"), strings.HasSuffix(clean, "/.."):
		return "", refuse("%q leads out of the archive", name)
	case clean != path.Clean(clean), strings.ContainsAny(clean, "\\\x00"):
		return "", refuse("%q is no name of a file in an archive of images", name)
	}
	return clean, nil
}

// link notes that a name stands for another: "docker save" and its likes write a layer
// that is there twice so. Nothing is made of it on a disk.
func (a *reading) link(name, to string) error {
	target := path.Join(path.Dir(name), to)
	if path.IsAbs(to) || target == ".." || strings.HasPrefix(target, "../") || path.Base(name) != savedLayer {
		return refuse("%q is a link, to %q", name, to)
	}
	a.links[name] = target
	return nil
}

// file reads a file.
func (a *reading) file(name string, size int64, r io.Reader) error {
	switch name {
	case LayoutName:
		a.layout = true
		return a.readLayout(size, r)
	case ContentsName:
		return a.readContents(size, r)
	case IndexName:
		a.index = &layoutIndex{}
		return readDocument(name, size, maxDocument, r, a.index)
	case DockerName:
		return readDocument(name, size, maxDocument, r, &a.docker)
	}
	if blob, ok := strings.CutPrefix(name, BlobsDir+"/"); ok {
		return a.blob(name, blob, size, r)
	}
	switch base := path.Base(name); {
	case base == savedLayer, path.Dir(name) == "." && (strings.HasSuffix(name, ".json") || strings.HasSuffix(name, ".tar")):
		return a.named(name, "", size, r)
	case path.Dir(name) == "." && digestOfName(name) != "":
		return a.named(name, digestOfName(name), size, r)
	case name == "repositories", base == "json", base == "VERSION":
		// What old Dockers want beside manifest.json. It says nothing more.
		if size > maxSmall {
			return refuse("%q has %d bytes, and at most %d are taken", name, size, maxSmall)
		}
		_, err := io.Copy(io.Discard, r)
		return err
	}
	return refuse("%q does not belong into an archive of images", name)
}

// digestOfName returns the digest that is the name of a file of "crane pull": of the config
// (sha256:<hex>) or of a compressed layer (<hex>.tar.gz). It is empty for another name.
func digestOfName(name string) digest.Digest {
	d := digest.Digest(name)
	if hex, ok := strings.CutSuffix(name, ".tar.gz"); ok {
		d = digest.NewDigestFromEncoded(digest.SHA256, hex)
	}
	if d.Validate() != nil {
		return ""
	}
	return d
}

// readDocument reads a document of at most so many bytes into v.
func readDocument(name string, size, most int64, r io.Reader, v any) error {
	if size > most {
		return refuse("%q has %d bytes, and at most %d are taken", name, size, most)
	}
	dec := json.NewDecoder(r)
	if err := dec.Decode(v); err != nil {
		if e := (cutShort{}); errors.As(err, &e) {
			return err
		}
		return refuse("%q is not what it should be: %w", name, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return refuse("%q has more than one document", name)
	}
	return nil
}

func (a *reading) readLayout(size int64, r io.Reader) error {
	var l v1.ImageLayout
	if err := readDocument(LayoutName, size, maxSmall, r, &l); err != nil {
		return err
	}
	if !strings.HasPrefix(l.Version, "1.") {
		return refuse("it is an image layout of version %q, and only 1 is known", l.Version)
	}
	return nil
}

// readContents reads what a bundle says of itself, and makes room for it.
func (a *reading) readContents(size int64, r io.Reader) error {
	c := &Contents{}
	if err := readDocument(ContentsName, size, maxDocument, r, c); err != nil {
		return err
	}
	if c.Version < 1 || c.Version > Version {
		return refuse("it is a bundle of version %d, and this entrepot knows up to %d: use the entrepot that wrote it, or a newer one", c.Version, Version)
	}
	sum, err := c.Sum()
	if err != nil {
		return err
	}
	if sum != c.Digest {
		return refuse("%s has been changed: its digest is %s, and it says %s", ContentsName, sum, c.Digest)
	}
	promised := make(map[digest.Digest]Content, len(c.Contents))
	for _, e := range c.Contents {
		if _, err := oci.ParseDigest(e.Digest.String()); err != nil {
			return err
		}
		if _, twice := promised[e.Digest]; twice || e.Size < 0 {
			return refuse("%s names %s twice, or with a size below zero", ContentsName, e.Digest)
		}
		promised[e.Digest] = e
	}
	a.contents, a.promised = c, promised
	return a.in.Expect(a.ctx, func(yield func(digest.Digest, int64) bool) {
		for _, e := range c.Contents {
			if e.Present && !yield(e.Digest, e.Size) {
				return
			}
		}
	})
}

// blob takes in the content that has its digest for a name.
func (a *reading) blob(name, blob string, size int64, r io.Reader) error {
	alg, hex, _ := strings.Cut(blob, "/")
	d, err := oci.ParseDigest(alg + ":" + hex)
	if err != nil {
		return refuse("%q is no name of a blob: %w", name, err)
	}
	if a.contents != nil {
		c, ok := a.promised[d]
		switch {
		case !ok || !c.Present:
			return refuse("it has the blob %s, which %s does not say", d, ContentsName)
		case c.Size != size:
			return refuse("the blob %s has %d bytes, and %s says %d", d, size, ContentsName, c.Size)
		}
	}
	if _, err := a.in.Take(a.ctx, d, size, r); err != nil {
		return err
	}
	a.taken[d] = size
	return nil
}

// named takes in content that has a name of its own. Its digest is d, or any if that is empty.
func (a *reading) named(name string, d digest.Digest, size int64, r io.Reader) error {
	b := bufio.NewReaderSize(r, 512)
	magic, err := b.Peek(2)
	if err != nil && err != io.EOF {
		return err
	}
	d, err = a.in.Take(a.ctx, d, size, b)
	if err != nil {
		return err
	}
	a.files[name] = namedFile{digest: d, size: size, packed: bytes.Equal(magic, []byte{0x1f, 0x8b})}
	a.taken[d] = size
	return nil
}

// add has all images served, once everything has been read.
func (a *reading) add() error {
	var err error
	switch {
	case a.contents != nil:
		err = a.addContents()
	case a.index != nil:
		err = a.addIndex()
	case a.docker != nil:
		err = a.addSaved()
	default:
		err = refuse("it is no archive of images: there is neither %s nor %s in it", IndexName, DockerName)
	}
	if err != nil {
		return refused(err)
	}
	if a.docker != nil && a.contents == nil {
		if err := a.dropLegacy(); err != nil {
			return err
		}
	}
	if list := a.in.Unnamed(maxNamed + 1); len(list) > 0 {
		return refuse("none of its images names what is in it: %s", tellSome(list))
	}
	return nil
}

// tellSome writes a list that may be long.
func tellSome[T ~string](list []T) string {
	var s strings.Builder
	for n, v := range list {
		switch {
		case n == maxNamed:
			return s.String() + " and more"
		case n > 0:
			s.WriteString(", ")
		}
		s.WriteString(string(v))
	}
	return s.String()
}
