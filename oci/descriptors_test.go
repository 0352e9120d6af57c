package oci

import (
	"encoding/json"
	"runtime"
	"strings"
	"testing"
)

func TestListsKeepWhatCanBeAskedFor(t *testing.T) {
	var doc struct {
		Manifests Descriptors
	}
	if err := json.Unmarshal([]byte(`{"manifests":[{},null,{"digest":"`+a256+`","size":-1},{"digest":"sha384:x"},{"digest":"`+b256+`","data":"eHg=","size":2}]}`), &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Manifests) != 1 || string(doc.Manifests[0].Digest) != b256 || doc.Manifests[0].Data != nil {
		t.Errorf("descriptors: got %+v, want that of %s alone", doc.Manifests, b256)
	}
	for _, bad := range []string{`{"manifests":{}}`, `{"manifests":["x"]}`, `{"manifests":[[]]}`, `{"manifests":"x"}`} {
		if err := json.Unmarshal([]byte(bad), &doc); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
	doc.Manifests = nil
	if err := json.Unmarshal([]byte(`{"manifests":null}`), &doc); err != nil || doc.Manifests != nil {
		t.Errorf("null: got %v, %v", doc.Manifests, err)
	}
	if err := json.Unmarshal([]byte(`{"manifests":[]}`), &doc); err != nil || doc.Manifests == nil {
		t.Errorf("an empty list is %v, %v; want one that is there", doc.Manifests, err)
	}
}

// A manifest of few bytes that stands for much memory is not to take it: many of
// them may be read at a time.
func TestAManifestTakesMemoryInProportionToItsBytes(t *testing.T) {
	// Bytes that are allocated for each byte of the document, most of them free
	// again at once; a list of descriptors that grows takes several hundred.
	const most = 100
	for name, doc := range map[string]string{
		"layers":           `{"mediaType":"` + ociManifest + `","layers":[` + fill("{}") + `]}`,
		"manifests":        `{"mediaType":"` + ociIndex + `","manifests":[` + fill("{}") + `]}`,
		"null":             `{"mediaType":"` + ociIndex + `","manifests":[` + fill("null") + `]}`,
		"true descriptors": `{"mediaType":"` + ociManifest + `","layers":[` + fill(`{"digest":"`+a256+`"}`) + `]}`,
		"annotations":      `{"mediaType":"` + ociManifest + `","annotations":{` + fill(`"a":""`) + `}}`,
		"urls":             `{"mediaType":"` + ociManifest + `","layers":[{"digest":"` + a256 + `","urls":[` + fill(`""`) + `]}]}`,
		"nesting":          `{"mediaType":"` + ociManifest + `","x":` + strings.Repeat("[", 1<<20),
		"nested objects":   `{"x":` + strings.Repeat(`{"x":`, 200_000),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		p, err := ParseManifest([]byte(doc), "")
		runtime.ReadMemStats(&after)
		per := (after.TotalAlloc - before.TotalAlloc) / uint64(len(doc))
		if per > most {
			t.Errorf("%s: %d bytes were allocated for each of %d, want at most %d", name, per, len(doc), most)
		}
		if useless := name == "layers" || name == "manifests" || name == "null"; useless && err == nil {
			t.Errorf("%s: it was read, want an error", name)
		}
		if err == nil && len(p.Children) > 1 {
			t.Errorf("%s: %d children, want one at most", name, len(p.Children))
		}
	}
}

// fill repeats an element of a list up to a MiB.
func fill(element string) string {
	return strings.TrimSuffix(strings.Repeat(element+",", (1<<20-400)/(len(element)+1)), ",")
}
