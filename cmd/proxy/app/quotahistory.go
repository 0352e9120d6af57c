package app

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/upstream"
)

const (
	// quotaFile, in the cache directory, says how many pulls new images needed lately.
	quotaFile = "quota.json"
	// maxQuotaFile and maxQuotaKeys bound it.
	maxQuotaFile = 1 << 20
	maxQuotaKeys = 1000
)

// quotaHistory is an upstream.QuotaHistory in a file. A file that is lost or damaged costs
// nothing but what was learned. It is safe for concurrent use.
type quotaHistory struct {
	path    string
	adopter *store.Adopter
	log     *zap.Logger

	mu   sync.Mutex // also orders the writes
	keys map[string]upstream.QuotaNeeds
}

// readQuotaHistory reads the file of a cache directory, which need not exist.
func readQuotaHistory(dir string, log *zap.Logger) *quotaHistory {
	h := &quotaHistory{path: filepath.Join(dir, quotaFile), adopter: store.AdopterFor(dir), log: log, keys: map[string]upstream.QuotaNeeds{}}
	f, err := store.OpenOwn(h.path)
	if err == nil {
		defer f.Close()
		err = json.NewDecoder(io.LimitReader(f, maxQuotaFile)).Decode(&h.keys)
	}
	// That the file can't be opened is told with the directory, if that can't be used.
	if path := (*fs.PathError)(nil); err != nil && !errors.As(err, &path) {
		log.Warn("quota history unreadable; learning anew", zap.String("file", h.path), zap.Error(err))
	}
	if h.keys == nil || len(h.keys) > maxQuotaKeys {
		h.keys = map[string]upstream.QuotaNeeds{}
	}
	return h
}

// Load returns what was saved for key.
func (h *quotaHistory) Load(key string) upstream.QuotaNeeds {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.keys[key]
}

// Save replaces the file by one with n for key.
func (h *quotaHistory) Save(key string, n upstream.QuotaNeeds) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, known := h.keys[key]; !known && len(h.keys) >= maxQuotaKeys {
		return
	}
	h.keys[key] = n
	text, err := json.Marshal(h.keys)
	if err == nil {
		err = writeNew(h.path+".new", text, h.adopter)
	}
	if err == nil {
		err = os.Rename(h.path+".new", h.path)
	}
	if err != nil {
		h.log.Warn("quota history not saved", zap.String("file", h.path), zap.Error(err))
	}
}

// writeNew writes a file for the owner of the cache, in place of whatever has that name, a symbolic
// link included.
func writeNew(path string, text []byte, adopter *store.Adopter) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) // #nosec G304 -- in the cache directory
	if err != nil {
		return err
	}
	err = adopter.File(f)
	if err == nil {
		_, err = f.Write(text)
	}
	return errors.Join(err, f.Close())
}
