package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

// TestRequestsOnOneConnectionLeaveEachOthersNamesAlone asks for repositories of equally
// long names one after the other on one connection: each request is read into the bytes
// that held the one before. Nothing that is kept of one may change with the next.
func TestRequestsOnOneConnectionLeaveEachOthersNamesAlone(t *testing.T) {
	h, p := start(t, "cache: {max_size: 1GiB}\n"+believing)
	images := map[string]*image.Image{}
	var names []string
	for i := range 20 {
		name := "library/" + strings.Repeat(string(rune('a'+i)), 12)
		names = append(names, name)
		images[name] = image.New(image.Options{Seed: uint64(i)})
		h.Push(name, "1.0", images[name])
	}
	round := func(when string) {
		t.Helper()
		for i, name := range names {
			img := images[name]
			a := get(t, p, "/v2/"+name+"/manifests/1.0", "Accept", anything)
			wantBytes(t, when+": the manifest of "+name, img.Bytes(), a.body)
			pullRaw(t, p, name, img)
			var list struct {
				Name string
				Tags []string
			}
			if err := json.Unmarshal(get(t, p, "/v2/"+name+"/tags/list").body, &list); err != nil || list.Name != name || len(list.Tags) != 1 {
				t.Errorf("%s: tags of %s: %+v %v", when, name, list, err)
			}
			get(t, p, "/v2/"+name+"/referrers/"+img.Digest.String())
			// What is of another is not here, also if it was asked for a moment ago.
			other := names[(i+7)%len(names)]
			for _, path := range []string{"manifests/" + images[other].Digest.String(), "blobs/" + images[other].Layers("")[0].Digest.String(), "manifests/9.9"} {
				if a := ask(t, p, http.MethodGet, "/v2/"+name+"/"+path, "Accept", anything); a.status != http.StatusNotFound {
					t.Errorf("%s: %s of %s: status %d", when, path, name, a.status)
				}
			}
		}
	}
	cataloged := func(when string) {
		t.Helper()
		var list struct{ Repositories []string }
		if err := json.Unmarshal(get(t, p, "/v2/_catalog").body, &list); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(list.Repositories); len(list.Repositories) != len(names) || !strings.Contains(got, names[0]) {
			t.Errorf("%s: the catalog lists %s", when, got)
		}
	}
	round("first")
	p.WaitIdle(t)
	cataloged("first")
	wantPulled := func() {
		t.Helper()
		before := h.Counts()
		for _, name := range names {
			get(t, p, "/v2/"+name+"/manifests/1.0", "Accept", anything)
			pullRaw(t, p, name, images[name])
		}
		wantUnmoved(t, before, h.Counts())
	}
	wantPulled()
	round("second")
	p.Restart(t)
	wantPulled()
	cataloged("after a restart")
	for line := range strings.Lines(p.Log()) {
		var e struct{ Repository, Reference string }
		if json.Unmarshal([]byte(line), &e) != nil || e.Repository == "" {
			continue
		}
		if img := images[e.Repository]; img == nil {
			t.Errorf("a line of the log is about %q", e.Repository)
		} else if d := digest.Digest(e.Reference); d.Validate() == nil && strings.Contains(line, `"status":200`) && !belongs(img, d) {
			t.Errorf("a line of the log says that %s has %s", e.Repository, d)
		}
	}
}

// belongs reports whether an image has content of a digest.
func belongs(i *image.Image, d digest.Digest) bool {
	_, blob := i.Blobs[d]
	return blob || i.Digest == d
}
