package index

import (
	"errors"
	"time"

	"github.com/opencontainers/go-digest"
)

// MaxPins is how many images can be pinned.
const MaxPins = 10_000

// ErrTooManyPins says that MaxPins images are pinned.
var ErrTooManyPins = errors.New("too many images are pinned")

// Pin says that an image is not to be evicted.
type Pin struct {
	// Digest is what the reference stood for when that was last looked at.
	Digest digest.Digest `json:"digest"`
	// Since is when it was pinned.
	Since time.Time `json:"since"`
}

// PutPin pins what ref, a tag or a digest, stands for in a repository. It is kept in
// the backup. The error is ErrTooManyPins where there are MaxPins others.
func (ix *Index) PutPin(upstream, repo, ref string, p Pin) error {
	key := join(upstream, repo, ref)
	ix.backupSoon()
	return ix.update(func(tx *tx) error {
		b := tx.Bucket(pinsBucket)
		if b.Get(key) == nil && b.KeyN() >= MaxPins {
			return ErrTooManyPins
		}
		return putJSON(b, key, p)
	})
}

// MovePin notes what a pinned reference stands for now. What is not pinned stays so.
func (ix *Index) MovePin(upstream, repo, ref string, to digest.Digest) error {
	key := join(upstream, repo, ref)
	ix.backupSoon()
	return ix.batch(func(tx *tx) error {
		var p Pin
		b := tx.Bucket(pinsBucket)
		if !decode(b.Get(key), &p) {
			return nil
		}
		p.Digest = to
		return putJSON(b, key, p)
	})
}

// DropPin undoes PutPin. It tells whether there was something to undo.
func (ix *Index) DropPin(upstream, repo, ref string) (dropped bool, err error) {
	key := join(upstream, repo, ref)
	ix.backupSoon()
	err = ix.batch(func(tx *tx) error {
		b := tx.Bucket(pinsBucket)
		dropped = b.Get(key) != nil
		return b.Delete(key)
	})
	return dropped, err
}

// Pin gives the pin of ref, a tag or a digest; false where there is none.
func (ix *Index) Pin(upstream, repo, ref string) (Pin, bool) {
	var p Pin
	ok := ix.get(pinsBucket, join(upstream, repo, ref), &p)
	return p, ok
}

// Pins calls fn for each pin, as Records does for tags.
func (ix *Index) Pins(upstream, repo string, fn func(upstream, repo, ref string, p Pin) bool) error {
	return each(ix, pinsBucket, scope(upstream, repo), fn)
}
