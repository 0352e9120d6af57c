package cache

import (
	"unsafe"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/memory"
	"github.com/entrepot-dev/entrepot/oci"
)

// smallBlob is the largest blob, in bytes, that memory keeps: configs are smaller, layers
// are for the page cache and sendfile.
const smallBlob = 32 << 10

// contentMemory is the part of the memory tier that has content: manifests, small blobs, and
// how the files of larger blobs looked when they were verified. It never holds what the disk
// or the upstream has not said.
type contentMemory struct{ *memory.Tier }

func manifestName(d digest.Digest) memory.Name {
	return memory.Name{Kind: memory.Manifest, Reference: string(d)}
}

func blobName(d digest.Digest) memory.Name {
	return memory.Name{Kind: memory.Blob, Reference: string(d)}
}

func (m contentMemory) ready(d digest.Digest) (*readyManifest, bool) {
	return memory.Find[*readyManifest](m.Tier, manifestName(d))
}

func (m contentMemory) manifest(d digest.Digest) (*oci.Manifest, bool) {
	r, ok := m.ready(d)
	if !ok {
		return nil, false
	}
	return r.Manifest, true
}

func (m contentMemory) setManifest(v *oci.Manifest) {
	r := ready(v)
	cost := int64(unsafe.Sizeof(*r)+unsafe.Sizeof(*v)) + int64(cap(v.Bytes)+len(v.MediaType)+len(v.Digest))
	m.Set(manifestName(v.Digest), r, cost)
}

// blob gives the content of d if that is small, else how its file looked when it was
// verified, or neither. It is one look-up, because it is on the way of every hit.
func (m contentMemory) blob(d digest.Digest) (content []byte, small bool, known *verified) {
	switch v, _ := memory.Find[any](m.Tier, blobName(d)); v := v.(type) {
	case memoryBlob:
		return v, true, nil
	case *verified:
		return nil, false, v
	}
	return nil, false, nil
}

// smallBlob gives the content of d if that is small, with its digest; else nil.
func (m contentMemory) smallBlob(d digest.Digest) (Blob, digest.Digest) {
	e := m.Get(blobName(d))
	if e == nil {
		return nil, ""
	}
	if _, small := e.Value.(memoryBlob); !small {
		return nil, ""
	}
	m.CountHit()
	return e.Value.(Blob), digest.Digest(e.Name.Reference)
}

// verifiedBlob gives how the file of d looked when it was verified, with its digest; nil if
// that is not known.
func (m contentMemory) verifiedBlob(d digest.Digest) (*verified, digest.Digest) {
	e := m.Get(blobName(d))
	if e == nil {
		return nil, ""
	}
	v, ok := e.Value.(*verified)
	if !ok {
		return nil, ""
	}
	m.CountHit()
	return v, digest.Digest(e.Name.Reference)
}

func (m contentMemory) setBlob(d digest.Digest, b []byte) {
	m.Set(blobName(d), memoryBlob(b), int64(cap(b))+memory.WordCost)
}

func (m contentMemory) setVerified(d digest.Digest, v *verified) {
	m.Replace(blobName(d), v, int64(unsafe.Sizeof(*v)))
}

// recallVerified keeps what the index says. It may come late, behind what is newer; then the
// blob is verified once more.
func (m contentMemory) recallVerified(d digest.Digest, v *verified) {
	m.Set(blobName(d), v, int64(unsafe.Sizeof(*v)))
}

func (m contentMemory) dropBlob(d digest.Digest) { m.Drop(blobName(d)) }
