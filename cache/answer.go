package cache

import (
	"errors"
	"io"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache/fill"
	"github.com/entrepot-dev/entrepot/oci"
)

// Status says in a word how a request was answered. It becomes Cache-Status,
// a field of the log line and a label of the metrics.
type Status string

const (
	// Hit: from memory or disk, without asking the upstream.
	Hit Status = "hit"
	// Revalidated: from memory or disk, after the upstream said that the tag
	// still stands for it.
	Revalidated Status = "revalidated"
	// Stale: from memory or disk, though it is past its time, because the
	// upstream could not be asked. Outcome.Reason says why.
	Stale Status = "stale"
	// Miss: fetched from the upstream for this request.
	Miss Status = "miss"
	// Collapsed: this request joined a fetch that another one had begun.
	Collapsed Status = "collapsed"
	// Negative: the upstream's "not found" was remembered; it was not asked.
	Negative Status = "negative"
)

// Outcome says how a request was answered, and why.
type Outcome struct {
	Status Status
	// Age is the time since the upstream last confirmed the answer; zero for
	// what never changes (content by digest).
	Age time.Duration
	// TTL is for how much longer the answer counts as fresh. It is negative
	// for a stale answer and zero for what never changes.
	TTL time.Duration
	// Forwarded is the HTTP status by which the upstream answered what it was
	// asked for this request; zero where it was not asked, did not answer, or
	// where that is not known. An error's is its own (oci.Error, Answered).
	Forwarded int
	// Stored says that what the upstream sent is kept. What is still on its way
	// is not kept yet.
	Stored bool
	// Unverified is set if a piece of a blob is sent before the whole has been verified:
	// who asks for pieces verifies them.
	Unverified bool
	// MediaType is set if a blob is known to be a manifest: clients must not take it for
	// content of no type.
	MediaType string
	// Reason is a short phrase for people, "upstream timed out"; may be empty.
	Reason string
}

// forwarded completes o for the manifest of d, which was found: a fetch or a
// check that succeeds has been answered 200.
func (c *Cache) forwarded(o Outcome, d digest.Digest) Outcome {
	switch o.Status {
	case Miss, Collapsed:
		o.Forwarded, o.Stored = 200, c.holds(d)
	case Revalidated:
		o.Forwarded = 200
	}
	return o
}

// answered gives the status by which an upstream answered, where err tells it.
func answered(err error) int {
	var e *oci.Error
	if errors.As(err, &e) {
		return e.Answered
	}
	return 0
}

// Manifest is a manifest or index, ready to be sent.
type Manifest struct {
	Digest    digest.Digest
	MediaType string
	// Size is the length of the manifest in bytes.
	Size int64
	// Bytes is the manifest, byte for byte as the upstream sent it; it must
	// not be changed. It is nil where only a description was asked for (Describe).
	Bytes []byte
	// Negotiated is set where this manifest was chosen out of an index
	// because the client takes no index: the answer depends on Accept.
	Negotiated bool
}

// Blob is a blob that is stored or on its way; the caller cannot tell and need
// not. It is for one goroutine. Close releases it.
type Blob interface {
	// Size is the size of the whole blob in bytes.
	Size() int64
	// Send writes the bytes of span to w: by sendfile where w implements
	// io.ReaderFrom as a TCP connection does, waiting where bytes are still to
	// come. Fewer bytes than the span has come with an error; the caller then
	// cuts the connection, for the rest will never be right. The last bytes of
	// a blob are not given out before its digest is verified.
	Send(w io.Writer, span oci.Span) (int64, error)
	// Prepare is told of several spans, in the order in which Send will be called for
	// them, so that what is missing of them can be fetched at once. It is false if the
	// upstream would send some bytes more than once for them: then the caller sends one
	// span only.
	Prepare(spans []oci.Span) bool
	Close() error
}

// File is what a blob's Send hands to a writer that can send a file's bytes by itself; see
// fill.SendFile.
type File = fill.File
