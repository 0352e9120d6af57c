package bundle

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// File is a file of a bundle and its place in the tar.
type File struct {
	Name string
	// Digest is that of the content.
	Digest digest.Digest
	// Size is in bytes.
	Size int64
	// Start is where the header of the file begins in the tar, Begin where its bytes do,
	// and End where the next one's header does.
	Start, Begin, End int64

	document []byte // its bytes, where it is no content
}

// Files are those of a bundle in the order of the tar.
type Files struct {
	List []File
	// Size is that of the tar in bytes.
	Size int64
}

// endOfTar is what follows the last file: two blocks of zeros.
const endOfTar = 2 * tarBlock

const tarBlock = 512

// bundleDocuments is how many files of a bundle are no content.
const bundleDocuments = 4

// Lay gives the files of a bundle. docker is Plan.Docker. The error is ErrContents or
// ErrTooLarge, in words.
func Lay(c *Contents, docker []byte) (*Files, error) {
	if n := len(c.Contents) + bundleDocuments; n > maxEntries {
		return nil, fmt.Errorf("the bundle has %d files: %w", n, ErrTooLarge)
	}
	layout, err := encode(v1.ImageLayout{Version: v1.ImageLayoutVersion})
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", LayoutName, err)
	}
	contents, err := c.Encode()
	if err != nil {
		return nil, err
	}
	index, err := encode(c.index())
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", IndexName, err)
	}
	f := &Files{List: make([]File, 0, len(c.Contents)+4)}
	for _, d := range []struct {
		name     string
		document []byte
	}{{LayoutName, layout}, {ContentsName, contents}, {IndexName, index}, {DockerName, docker}} {
		if len(d.document) > maxDocument {
			return nil, fmt.Errorf("%s has %d bytes: %w", d.name, len(d.document), ErrTooLarge)
		}
		if err := f.add(File{Name: d.name, Digest: digest.FromBytes(d.document), Size: int64(len(d.document)), document: d.document}); err != nil {
			return nil, err
		}
	}
	for _, manifests := range []bool{true, false} {
		for _, k := range c.Contents {
			if !k.Present || k.IsManifest() != manifests {
				continue
			}
			if err := k.Digest.Validate(); err != nil || k.Size < 0 {
				return nil, fmt.Errorf("the contents of the bundle name %q with %d bytes: %w", k.Digest, k.Size, ErrContents)
			}
			if err := f.add(File{Name: BlobName(k.Digest), Digest: k.Digest, Size: k.Size}); err != nil {
				return nil, err
			}
		}
	}
	f.Size += endOfTar
	return f, nil
}

func (f *Files) add(file File) error {
	header, err := file.header()
	if err != nil {
		return err
	}
	file.Start = f.Size
	file.Begin = file.Start + int64(len(header))
	file.End = file.Begin + (file.Size+tarBlock-1)/tarBlock*tarBlock
	f.List, f.Size = append(f.List, file), file.End
	return nil
}

// header gives what is before the file's bytes in the tar: it depends on the name and
// the size alone.
func (f File) header() ([]byte, error) {
	var b bytes.Buffer
	err := tar.NewWriter(&b).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.Name, Size: f.Size, Mode: 0o644, ModTime: time.Unix(0, 0)})
	if err != nil {
		return nil, fmt.Errorf("make the header of %s: %w", f.Name, err)
	}
	return b.Bytes(), nil
}

// index gives the index of the layout.
func (c *Contents) index() v1.Index {
	sizes := make(map[digest.Digest]int64, len(c.Contents))
	for _, k := range c.Contents {
		sizes[k.Digest] = k.Size
	}
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{}}
	for _, i := range c.Images {
		a := map[string]string{
			AnnotationUpstream: i.Upstream, AnnotationRepository: i.Repository, AnnotationFetched: i.Fetched.Format(time.RFC3339),
		}
		if i.Tag != "" {
			a[AnnotationTag] = i.Tag
		}
		if i.Tag != "" || !i.Referrer {
			a[v1.AnnotationRefName] = i.String()
			a[AnnotationContainerdName] = i.String()
		}
		index.Manifests = append(index.Manifests, v1.Descriptor{MediaType: i.MediaType, Digest: i.Digest, Size: sizes[i.Digest], Annotations: a})
	}
	return index
}

// At gives the file that a place in the tar is in, nil at its end, and how many are
// before it.
func (f *Files) At(place int64) (file *File, before int) {
	n := sort.Search(len(f.List), func(i int) bool { return f.List[i].End > place })
	if n == len(f.List) {
		return nil, n
	}
	return &f.List[n], n
}

// ErrTooLarge says that a bundle is larger than what is taken in again.
var ErrTooLarge = errors.New("it is more than an import takes: make several bundles, each of fewer images")

// ErrContents says that the contents of a bundle make no sense.
var ErrContents = errors.New("they make no sense")
