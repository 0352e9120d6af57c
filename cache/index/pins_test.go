package index

import (
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestAPinIsThereAfterReopeningAndGoneWhenDropped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "index.db")
	ix := opened(t, path)
	if err := ix.PutPin("docker.io", "library/nginx", "latest", pin); err != nil {
		t.Fatal(err)
	}
	if err := ix.PutPin("docker.io", "library/nginx", pin.Digest.String(), pin); err != nil {
		t.Fatal(err)
	}
	to := digest.FromString("to")
	for _, ref := range []string{"latest", "unpinned"} {
		if err := ix.MovePin("docker.io", "library/nginx", ref, to); err != nil {
			t.Fatal(err)
		}
	}
	closed(t, ix)
	ix = opened(t, path)
	defer closed(t, ix)
	pins := map[string]Pin{}
	list := func() {
		t.Helper()
		clear(pins)
		if err := ix.Pins("", "", func(upstream, repo, ref string, p Pin) bool {
			pins[upstream+"/"+repo+" "+ref] = p
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
	list()
	if p := pins["docker.io/library/nginx latest"]; len(pins) != 2 || p.Digest != to || !p.Since.Equal(pin.Since) {
		t.Errorf("pins %+v", pins)
	}
	for _, want := range []bool{true, false} {
		if dropped, err := ix.DropPin("docker.io", "library/nginx", "latest"); err != nil || dropped != want {
			t.Errorf("dropped %v, %v; want %v", dropped, err, want)
		}
	}
	if list(); len(pins) != 1 {
		t.Errorf("pins %+v", pins)
	}
	if _, ok := ix.Pin("docker.io", "library/nginx", "latest"); ok {
		t.Error("it is still pinned")
	}
}
