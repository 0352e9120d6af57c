package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/cache"
)

func TestAListOfAnyLengthIsReadImageByImage(t *testing.T) {
	const images, each = 300, 1 << 20 // more than the 256 MiB that other answers may have
	c := serving(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		padding := strings.Repeat("x", each)
		between := `{"images":[`
		for range images {
			fmt.Fprintf(w, `%s{"reference":"%s"}`, between, padding)
			between = ","
		}
		_, _ = io.WriteString(w, `],"size":7}`)
	}))
	n, most := 0, uint64(0)
	size, err := c.Images(t.Context(), "", false, func(i cache.Image) error {
		if len(i.Reference) != each {
			t.Errorf("the reference has %d bytes", len(i.Reference))
		}
		if n++; n%50 == 0 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapAlloc)
		}
		return nil
	})
	if err != nil || n != images || size != 7 {
		t.Errorf("want %d images of 7 bytes, got %d of %d, %v", images, n, size, err)
	}
	if most == 0 || most > 64<<20 {
		t.Errorf("%d MiB were held at a time", most>>20)
	}
}

func TestAListThatBreaksOffTellsWhy(t *testing.T) {
	c := serving(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		writeBytes(w, r, "application/json", func(_ context.Context, _ *http.Request, w io.Writer) error {
			_, _ = io.WriteString(w, `{"images":[{"reference":"a"}`)
			return errors.New("the disk is gone")
		})
	}))
	n := 0
	_, err := c.Images(t.Context(), "", false, func(cache.Image) error { n++; return nil })
	if e := (*Error)(nil); !errors.As(err, &e) || e.Detail != "the disk is gone" || n != 1 {
		t.Errorf("want the problem after an image, got %v after %d", err, n)
	}
	for name, answer := range map[string]string{"none": "", "short": `{"images":[{}`, "others": `{"size":1}`, "no size": `{"images":[]}`} {
		c := serving(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, answer) }))
		if _, err := c.Images(t.Context(), "", false, func(cache.Image) error { return nil }); err == nil || !strings.Contains(err.Error(), "not understood") {
			t.Errorf("%s: want that it is not understood, got %v", name, err)
		}
	}
}

func TestAnAnswerThatIsTooLongIsToldAsSuch(t *testing.T) {
	c := serving(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"version":"`+strings.Repeat("x", 2<<20)+`"}`)
	}))
	c.most = 1 << 20
	if err := c.Get(t.Context(), "status", nil, &Status{}); err == nil || !strings.Contains(err.Error(), "longer than the 1 MiB") {
		t.Errorf("want a sentence, got %v", err)
	}
}
