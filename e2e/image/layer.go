package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
)

// Compression is how a layer's tar is packed.
type Compression string

// The compressions that registries meet.
const (
	Gzip Compression = "gzip"
	Zstd Compression = "zstd"
	None Compression = "none"
)

// Layer is a layer to be made.
type Layer struct {
	// Size is the layer's size in bytes, about: its content does not compress,
	// and a few KiB of tar come on top.
	Size int
	// Compression is Gzip where it is empty.
	Compression Compression
}

// made is a layer that has been made.
type made struct {
	packed []byte
	diffID digest.Digest
}

// random gives bytes that depend on seed and name alone.
func random(seed uint64, name string, n int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	d := digest.FromString(name).Encoded()
	copy(key[8:], d[:24])
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	return b
}

// pack makes layer number n of an image for one platform: a small root file
// system with the seed's bytes in it.
func (l Layer) pack(seed uint64, platform string, n int) made {
	var plain bytes.Buffer
	tw := tar.NewWriter(&plain)
	add := func(h tar.Header, content []byte) {
		h.Size = int64(len(content))
		h.Format = tar.FormatPAX
		if err := tw.WriteHeader(&h); err != nil {
			panic(fmt.Sprintf("image: tar %s: %v", h.Name, err))
		}
		if _, err := tw.Write(content); err != nil {
			panic(fmt.Sprintf("image: tar %s: %v", h.Name, err))
		}
	}
	if n == 0 {
		for _, dir := range []string{"bin/", "etc/", "opt/", "tmp/"} {
			add(tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
		}
		add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/os-release", Mode: 0o644},
			[]byte("ID=entrepot-test\nPLATFORM="+platform+"\n"))
		add(tar.Header{Typeflag: tar.TypeSymlink, Name: "etc/release", Linkname: "os-release", Mode: 0o777}, nil)
	}
	name := fmt.Sprintf("opt/layer-%d", n)
	add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, random(seed, platform+"/"+name, l.Size))
	if err := tw.Close(); err != nil {
		panic(fmt.Sprintf("image: tar: %v", err))
	}
	return made{packed: l.compress(plain.Bytes()), diffID: digest.FromBytes(plain.Bytes())}
}

func (l Layer) compress(plain []byte) []byte {
	var packed bytes.Buffer
	var w io.WriteCloser
	var err error
	switch l.Compression {
	case Gzip, "":
		w, err = gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	case Zstd:
		w, err = zstd.NewWriter(&packed, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	case None:
		return plain
	default:
		err = fmt.Errorf("unknown compression %q", l.Compression)
	}
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(fmt.Sprintf("image: compress: %v", err))
	}
	return packed.Bytes()
}

func (l Layer) mediaType(f Flavour) string {
	if f == Docker {
		switch l.Compression {
		case Zstd:
			return "application/vnd.docker.image.rootfs.diff.tar.zstd"
		case None:
			return "application/vnd.docker.image.rootfs.diff.tar"
		}
		return oci.MediaTypeDockerLayerGzip
	}
	switch l.Compression {
	case Zstd:
		return v1.MediaTypeImageLayerZstd
	case None:
		return v1.MediaTypeImageLayer
	}
	return v1.MediaTypeImageLayerGzip
}
