package cache

import (
	"errors"
	"fmt"
	"testing"

	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/oci"
)

func TestTheListOfMissingImagesIsBoundedAndSurvives(t *testing.T) {
	hub := newRegistry()
	dir := t.TempDir()
	c := open(t, Options{Dir: dir}, map[string]*registry{"docker.io": hub})
	gone := &oci.Error{Code: oci.CodeUnavailable, Message: "the upstream is gone"}
	for i := range maxMissingImages + 10 {
		c.noteMissing(tagged("app", fmt.Sprint(i)), gone)
	}
	c.noteMissing(tagged("app", "20"), gone)
	c.noteMissing(tagged("app", "absent"), oci.Errorf(oci.CodeManifestUnknown, "there is none"))
	c.noteMissing(tagged("app", "left"), errors.New("the client went away"))
	resolve := func(string) (oci.Target, error) { return tagged("none", "1"), nil }
	check := func(list []MissingImage) {
		t.Helper()
		if len(list) != maxMissingImages {
			t.Fatalf("%d are listed, want %d", len(list), maxMissingImages)
		}
		if first, last := list[0], list[len(list)-1]; first.Reference != "docker.io/app:10" || last.Reference != "docker.io/app:20" || last.Times != 2 {
			t.Errorf("the list is from %+v to %+v", first, last)
		}
	}
	check(c.Missing(resolve))
	c.flushMissing()
	check(readMissing(dir, store.AdopterFor(dir)).list())
}
