package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

// TestALostIndexIsMadeAgainAlsoOffline takes the index away from a cache whose
// proxy then can not ask any upstream.
func TestALostIndexIsMadeAgainAlsoOffline(t *testing.T) {
	for name, lose := range map[string]func(path string) error{
		"missing": os.Remove,
		"cut short": func(path string) error {
			st, err := os.Stat(path)
			if err != nil {
				return err
			}
			return os.Truncate(path, st.Size()/3)
		},
		"no index": func(path string) error { return os.WriteFile(path, []byte("no index at all"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, p := start(t, believing)
			i := image.New(image.Options{Seed: 1, Layers: []image.Layer{{Size: 300 << 10}, {Size: 5 << 10}}})
			h.Push("library/app", "1.0", i)
			get(t, p, tagPath)
			pullRaw(t, p, "library/app", i)
			p.Stop(t)
			if err := lose(filepath.Join(p.Dir, "index.db")); err != nil {
				t.Fatal(err)
			}
			before := h.Counts()
			off := restartWith(t, p, h, "cache: {offline: true}\n"+believing)
			until(t, "the index to be restored", func() bool { return strings.Contains(off.Log(), "the index agrees with what is stored again") })
			wantBytes(t, "tag", i.Bytes(), get(t, off, tagPath).body)
			pullRaw(t, off, "library/app", i)
			wantUnmoved(t, before, h.Counts())
			if got, want := off.Metrics(t).Sum("entrepot_cache_size_bytes"), float64(i.Size()); got != want {
				t.Errorf("entrepot_cache_size_bytes: want %g, got %g", want, got)
			}
		})
	}
}
