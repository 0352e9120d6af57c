package cache

import (
	"container/list"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// missingFile, in the cache directory, lists what clients asked for and did not get.
	missingFile = "missing.json"
	// maxMissingImages and maxMissingBytes bound the list: the images, and the bytes of their
	// names. The oldest give way.
	maxMissingImages = 1000
	maxMissingBytes  = 256 << 10
	// maxMissingFile bounds what is read of the file.
	maxMissingFile = 4 << 20
)

// MissingImage is an image that clients asked for and did not get, because its upstream was
// not asked or did not answer.
type MissingImage struct {
	Reference string `json:"reference"`
	// Times is how often it was asked for, and First and Last are when.
	Times int64     `json:"times"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
}

// missing is the list. It is safe for concurrent use.
type missing struct {
	path    string
	adopter *store.Adopter

	mu      sync.Mutex
	byName  map[string]*list.Element // of *MissingImage
	order   *list.List               // the newest is last
	bytes   int
	changed bool
}

// readMissing returns the list in a cache directory; an empty one if there is none, or none
// that can be read.
func readMissing(dir string, adopter *store.Adopter) *missing {
	m := &missing{adopter: adopter, path: filepath.Join(dir, missingFile), byName: map[string]*list.Element{}, order: list.New()}
	f, err := store.OpenOwn(m.path)
	if err != nil {
		return m
	}
	defer f.Close()
	var images []MissingImage
	if json.NewDecoder(io.LimitReader(f, maxMissingFile)).Decode(&images) != nil {
		return m
	}
	for _, i := range images {
		m.put(i)
	}
	m.changed = false
	return m
}

// put adds an image as the newest. m.mu is held, or m is not shared yet.
func (m *missing) put(i MissingImage) {
	if e, ok := m.byName[i.Reference]; ok {
		known := e.Value.(*MissingImage)
		known.Times += i.Times
		known.Last = i.Last
		m.order.MoveToBack(e)
	} else if len(i.Reference) <= maxMissingBytes {
		m.byName[i.Reference] = m.order.PushBack(&i)
		m.bytes += len(i.Reference)
	}
	for m.order.Len() > maxMissingImages || m.bytes > maxMissingBytes {
		oldest := m.order.Front()
		name := oldest.Value.(*MissingImage).Reference
		m.order.Remove(oldest)
		delete(m.byName, name)
		m.bytes -= len(name)
	}
	m.changed = true
}

// list returns the images, the newest last.
func (m *missing) list() []MissingImage {
	m.mu.Lock()
	defer m.mu.Unlock()
	images := make([]MissingImage, 0, m.order.Len())
	for e := m.order.Front(); e != nil; e = e.Next() {
		images = append(images, *e.Value.(*MissingImage))
	}
	return images
}

// noteMissing notes that a client asked for t and got err instead, if that is because t's
// upstream was not asked or did not answer.
func (c *Cache) noteMissing(t oci.Target, err error) {
	if errors.Is(err, fs.ErrPermission) {
		return // it is here, and a bundle would not bring it
	}
	e := (*oci.Error)(nil)
	if !t.AsOf.IsZero() || !errors.As(err, &e) || e.Code != oci.CodeUnavailable && e.Code != oci.CodeTooManyRequests {
		return
	}
	now := time.Now().UTC()
	c.missing.mu.Lock()
	c.missing.put(MissingImage{Reference: strings.Clone(t.String()), Times: 1, First: now, Last: now})
	c.missing.mu.Unlock()
	select {
	case c.asked.wake <- struct{}{}:
	default: // it is awake
	}
}

// Missing lists what clients asked for and did not get because its upstream was not asked or
// did not answer, and what is still not cached: at most maxMissingImages, the newest last. resolve reads a reference.
func (c *Cache) Missing(resolve func(reference string) (oci.Target, error)) []MissingImage {
	images := []MissingImage{}
	for _, i := range c.missing.list() {
		if t, err := resolve(i.Reference); err == nil && c.has(t) {
			continue
		}
		images = append(images, i)
	}
	return images
}

// has reports whether what t names is cached.
func (c *Cache) has(t oci.Target) bool {
	d := t.Digest
	if d == "" {
		rec, ok := c.records.Tag(t)
		if !ok {
			return false
		}
		d = rec.Digest
	}
	_, linked := c.records.Link(withDigest(t, d))
	return linked && c.holds(d)
}

// flushMissing writes the list, if it has changed.
func (c *Cache) flushMissing() {
	m := c.missing
	m.mu.Lock()
	changed := m.changed
	m.changed = false
	m.mu.Unlock()
	if !changed || c.store.ReadOnly() {
		return
	}
	text, err := json.Marshal(m.list())
	if err == nil {
		err = m.write(text)
	}
	if err != nil {
		c.log.Warn("list of missing images not saved", zap.String("file", m.path), zap.Error(err))
	}
}

// write replaces the file by one of text.
func (m *missing) write(text []byte) error {
	draft := m.path + ".new"
	if err := os.Remove(draft); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(draft, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) // #nosec G304 -- in the cache directory
	if err != nil {
		return err
	}
	if err = m.adopter.File(f); err == nil {
		_, err = f.Write(text)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(draft, m.path)
}
