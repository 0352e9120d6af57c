package main

import (
	"errors"
	"net/http"
	"strconv"
	"testing"
	"time"
)

func TestPacedReadersTakeNoMoreThanTheirRate(t *testing.T) {
	body := make([]byte, 64<<10)
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body)
	})
	const rate, readers = 200_000, 30
	l := load{address: address, connections: readers, span: 500 * time.Millisecond, requests: []request{get(address, item{Repository: "a", Reference: "b", Size: int64(len(body))})}}
	got, err := l.runPaced(t.Context(), rate)
	if err = errors.Join(err, got.err()); err != nil {
		t.Fatal(err)
	}
	if most := int64(readers * rate * got.elapsed.Seconds()); got.bytes == 0 || got.bytes > most {
		t.Errorf("%d bytes in %s, want at most %d", got.bytes, got.elapsed, most)
	}
	if got.requests == 0 {
		t.Error("no reader has begun again at the end of the body")
	}
}
