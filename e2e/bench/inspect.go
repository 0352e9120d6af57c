package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/entrepot-dev/entrepot/admin"
)

// mallocs is how many objects Entrepot has ever allocated; 0 for the others,
// and where it does not say.
func (s *server) mallocs(ctx context.Context) float64 {
	if s.admin == "" {
		return 0
	}
	text, err := s.ask(ctx, "/metrics")
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(text) {
		if value, ok := bytes.CutPrefix(line, []byte("go_memstats_mallocs_total ")); ok {
			n, err := strconv.ParseFloat(string(bytes.TrimSpace(value)), 64)
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}

// ask gets a page of Entrepot's operator listener.
func (s *server) ask(ctx context.Context, page string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.admin+page, nil)
	if err != nil {
		return nil, err
	}
	if token, err := admin.ReadToken(s.token); err == nil { // /metrics needs none
		req.Header.Set("Authorization", "Bearer "+token.Secret)
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", page, res.Status)
	}
	return io.ReadAll(io.LimitReader(res.Body, 64<<20))
}

// profile begins a CPU profile of Entrepot where one is wanted. The function
// that it gives waits for its end and keeps it.
func (b *bench) profile(ctx context.Context, s *server) (stop func() error, err error) {
	if b.o.profiles == "" || s.subject != entrepot {
		return func() error { return nil }, nil
	}
	if err := os.MkdirAll(b.o.profiles, 0o755); err != nil {
		return nil, err
	}
	seconds := max(1, int(b.o.span/time.Second))
	type answer struct {
		profile []byte
		err     error
	}
	answers := make(chan answer, 1)
	go func() {
		p, err := s.ask(ctx, "/debug/pprof/profile?seconds="+strconv.Itoa(seconds))
		answers <- answer{p, err}
	}()
	return func() error {
		a := <-answers
		heap, err := s.ask(ctx, "/debug/pprof/allocs")
		return errors.Join(a.err, err,
			os.WriteFile(filepath.Join(b.o.profiles, b.o.current+".cpu.pprof"), a.profile, 0o644),
			os.WriteFile(filepath.Join(b.o.profiles, b.o.current+".allocs.pprof"), heap, 0o644))
	}, nil
}
