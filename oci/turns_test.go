package oci

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/image-spec/specs-go/v1"
)

// TestLargeDocumentsAreReadInTurns takes all turns: a large document waits for one, by
// whichever way it is read, and a small one doesn't.
func TestLargeDocumentsAreReadInTurns(t *testing.T) {
	small := []byte(`{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageIndex + `","manifests":[]}`)
	large := append(small[:len(small):len(small)], strings.Repeat(" ", largeDocument)...)
	for name, read := range map[string]func(b []byte) string{
		"Parse": func(b []byte) string {
			p, err := ParseManifest(b, "")
			if err != nil {
				t.Error(err)
				return ""
			}
			return p.MediaType
		},
		"MediaTypeOf": func(b []byte) string { return MediaTypeOf(b, "") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				was := turns
				defer func() { turns = was }()
				turns = make(chan struct{}, 1)
				turns <- struct{}{}
				done := make(chan string, 1)
				go func() { done <- read(large) }()
				synctest.Wait()
				if len(done) > 0 {
					t.Error("a large document did not wait for its turn")
				}
				if got := read(small); got != v1.MediaTypeImageIndex {
					t.Errorf("a small document is %q", got)
				}
				<-turns
				if got := <-done; got != v1.MediaTypeImageIndex {
					t.Errorf("a large document is %q", got)
				}
				if len(turns) > 0 {
					t.Error("the turn is not over")
				}
			})
		})
	}
}
