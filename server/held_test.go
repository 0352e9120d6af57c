package server

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/metrics"
)

func TestListingsAreAsEncodingJSONWritesThem(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	seed := maphash.MakeSeed()
	letters := []rune("abcXYZ019._-/\"\\<>&\x00\x1f\x7f\n\u00e9\u2028\U0001f600\ufffd")
	for range 500 {
		list := []string{}
		for range random.IntN(5) {
			s := ""
			for range random.IntN(8) {
				s += string(letters[random.IntN(len(letters))])
			}
			if random.IntN(10) == 0 {
				s += "\xff"
			}
			list = append(list, s)
		}
		want, err := json.Marshal(list)
		if err != nil {
			t.Fatal(err)
		}
		l := stringsOf("[", list, "]")
		size, _ := l.measure(seed)
		if got := l.render(size); !bytes.Equal(got, want) || int64(len(want)) != size {
			t.Fatalf("%q: want %s, got %s, of %d bytes as measured", list, want, got, size)
		}
	}
	_, one := stringsOf("[", []string{"a", "bc"}, "]").measure(seed)
	_, other := stringsOf("[", []string{"ab", "c"}, "]").measure(seed)
	if one == other {
		t.Error("two lists have one hash")
	}
}

// takingNothing sends a request on a connection in memory, where nothing is on its way:
// the server keeps what the client does not take. It gives the answer's header.
func takingNothing(t *testing.T, l *pipes, path string) (net.Conn, *http.Response) {
	t.Helper()
	c := l.dial()
	write(t, c, "GET "+path+" HTTP/1.1\r\nHost: cache\r\nAccept: */*\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReaderSize(c, 64), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, resp
}

func TestBodiesForSlowReadersAreSharedAndBounded(t *testing.T) {
	const size, memory = 100_000, 250_000
	shelf := newShelf()
	for n := range 4 {
		b := bytes.Repeat([]byte{byte('0' + n)}, size)
		d := digest.FromBytes(b)
		shelf.manifests[fmt.Sprintf("docker.io/library/large:%d", n)] = &cache.Manifest{Digest: d, MediaType: v1.MediaTypeImageIndex, Size: size, Bytes: b}
	}
	shelf.tags = nil
	for n := range 20_000 {
		shelf.tags = append(shelf.tags, fmt.Sprintf("%08d", n))
	}
	manifest := func(n int) string { return fmt.Sprintf("/v2/library/large/manifests/%d", n) }
	list := func(n int) string { return fmt.Sprintf("/v2/library/nginx/tags/list?n=%d", 9000+n) } // of about 100 kB
	for name, of := range map[string]struct {
		path   func(n int) string
		bodies func(*Server) *holding
		limit  string
	}{
		"manifests": {manifest, func(s *Server) *holding { return s.manifests }, "manifests"},
		"lists":     {list, func(s *Server) *holding { return s.lists }, "lists"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubbleWith(t, Options{Content: shelf, BodyMemory: memory, Metrics: metrics.Discard()}, nil, func(t *testing.T, s *Server, l *pipes) {
				used := func() int64 {
					synctest.Wait()
					h := of.bodies(s)
					h.mu.Lock()
					defer h.mu.Unlock()
					return h.used
				}
				var readers []net.Conn
				for range 10 {
					c, resp := takingNothing(t, l, of.path(0))
					if resp.StatusCode != 200 {
						t.Fatalf("want 200, got %s", resp.Status)
					}
					readers = append(readers, c)
				}
				one := used()
				if one < size*9/10 || one > size*12/10 {
					t.Errorf("ten readers of one body of about %d bytes: %d are counted", size, one)
				}
				second, _ := takingNothing(t, l, of.path(1))
				if n := used(); n < 2*one || n > 2*one+1000 {
					t.Errorf("want two bodies, got %d bytes", n)
				}
				third, resp := takingNothing(t, l, of.path(2))
				if resp.StatusCode != 503 || resp.Header.Get("Retry-After") != "2" || resp.Header.Get("Link") != "" {
					t.Errorf("want 503 with Retry-After, got %s %v", resp.Status, resp.Header)
				}
				if n := value(t, s.metrics.Refused.WithLabelValues(of.limit)); n != 1 {
					t.Errorf("want 1 refusal counted, got %v", n)
				}
				// What is shared or small goes on, and a HEAD needs no memory.
				if c, resp := takingNothing(t, l, of.path(1)); resp.StatusCode != 200 {
					t.Errorf("want 200 for what others read, got %s", resp.Status)
				} else {
					_ = c.Close()
				}
				for _, path := range []string{"/v2/library/nginx/manifests/1", "/v2/library/nginx/tags/list?n=3"} {
					if c, resp := takingNothing(t, l, path); resp.StatusCode != 200 {
						t.Errorf("%s: want 200, got %s", path, resp.Status)
					} else {
						_ = c.Close()
					}
				}
				head := l.dial()
				write(t, head, "HEAD "+of.path(2)+" HTTP/1.1\r\nHost: cache\r\nAccept: */*\r\n\r\n")
				if resp, err := http.ReadResponse(bufio.NewReader(head), &http.Request{Method: "HEAD"}); err != nil || resp.StatusCode != 200 || resp.ContentLength < size*9/10 {
					t.Errorf("HEAD: want 200 and a length, got %v, %v", resp, err)
				}
				_, _ = head.Close(), third.Close()

				for _, c := range readers[1:] {
					_ = c.Close()
				}
				_ = second.Close()
				if n := used(); n != one {
					t.Errorf("one reader is left, of %d bytes, and %d are counted", one, n)
				}
				c, resp := takingNothing(t, l, of.path(2))
				if resp.StatusCode != 200 {
					t.Errorf("want 200 once there is room, got %s", resp.Status)
				}
				go func() { _, _ = io.Copy(io.Discard, c) }() // ends with the connection
				synctest.Wait()
				_, _ = readers[0].Close(), c.Close()
				if n := used(); n != 0 || len(of.bodies(s).bodies) != 0 {
					t.Errorf("nobody reads, and %d bytes are counted", n)
				}
				if err := s.Shutdown(t.Context()); err != nil {
					t.Errorf("Shutdown: %v", err)
				}
			})
		})
	}
}

// A long list is copied to be filtered: a crowd does that in turns, whatever comes out.
func TestLongListsAreFilteredInTurns(t *testing.T) {
	shelf := newShelf()
	shelf.referrers = make([]v1.Descriptor, shortList+1)
	inBubbleWith(t, Options{Content: shelf}, nil, func(t *testing.T, s *Server, l *pipes) {
		path := "/v2/library/nginx/referrers/" + digest.FromString("subject").String() + "?artifactType=none/such"
		for range cap(s.turns) {
			s.turns <- struct{}{}
		}
		if c, resp := takingNothing(t, l, path); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
			t.Errorf("want 503 with Retry-After while others take all turns, got %s", resp.Status)
		} else {
			_ = c.Close()
		}
		for range cap(s.turns) {
			<-s.turns
		}
		c, resp := takingNothing(t, l, path)
		if resp.StatusCode != 200 || resp.Header.Get("OCI-Filters-Applied") != "artifactType" {
			t.Errorf("want 200 and a filtered list, got %s", resp.Status)
		}
		_ = c.Close()
		if err := s.Shutdown(t.Context()); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
}
