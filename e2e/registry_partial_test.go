package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
	"github.com/entrepot-dev/entrepot/oci"
)

// Ollama asks for a blob, expects a redirect to the registry's storage, and sends all
// further requests to the Location of the last answer (server/download.go).
func TestABlobSaysWhereItIs(t *testing.T) {
	t.Parallel()
	h := hub.New(t, hub.Options{})
	i := image.New(image.Options{})
	h.Push("library/app", "1.0", i)
	p := proxy.New(t, h)
	blob := i.Layers("")[0].Digest.String()
	for _, state := range []string{"cold", "warm"} {
		for _, path := range []string{
			"/v2/library/app/blobs/" + blob,
			"/v2/docker.io/library/app/blobs/" + blob,
			"/v2/library/app/blobs/" + blob + "?ns=docker.io",
			"/v2/app/blobs/" + blob,
			"/docker.io/v2/library/app/blobs/" + blob,
			"/v2/index.docker.io/library/app/blobs/" + blob,
		} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.URL()+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := raw.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			at, err := res.Location()
			if res.StatusCode != 200 || err != nil || at.String() != p.URL()+path {
				t.Errorf("%s, %s: want 200 and its own URL, got %d, %v, %v", state, path, res.StatusCode, at, err)
				continue
			}
			part := ask(t, p, http.MethodGet, at.RequestURI(), "Range", "bytes=0-99")
			if part.status != http.StatusPartialContent || len(part.body) != 100 {
				t.Errorf("%s, %s: want the first 100 bytes from there, got %s", state, path, part)
			}
			ask(t, p, http.MethodHead, path).wantHeader(t, "Location", path)
		}
	}
}

// askRanges asks for spans of content at path, and checks what comes: as many parts, in that
// order, of a body whose length was announced.
func askRanges(t *testing.T, p *proxy.Proxy, path string, content []byte, spans []oci.Span) error {
	t.Helper()
	list := make([]string, len(spans))
	for i, s := range spans {
		list[i] = fmt.Sprintf("%d-%d", s.From, s.To-1)
	}
	res, err := open(t.Context(), p, http.MethodGet, path, "Range", "bytes="+strings.Join(list, ","))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	kind, params, err := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if res.StatusCode != http.StatusPartialContent || kind != "multipart/byteranges" || res.ContentLength < 0 {
		return fmt.Errorf("want several ranges and their length, got %s %v, %w", res.Status, res.Header, err)
	}
	parts := multipart.NewReader(res.Body, params["boundary"])
	for i, s := range spans {
		part, err := parts.NextRawPart()
		if err != nil {
			return fmt.Errorf("part %d: %w", i, err)
		}
		got, err := io.ReadAll(part)
		if want := fmt.Sprintf("bytes %d-%d/%d", s.From, s.To-1, len(content)); part.Header.Get("Content-Range") != want {
			return fmt.Errorf("part %d: want %s, got %v", i, want, part.Header)
		}
		if err != nil || !bytes.Equal(got, content[s.From:s.To]) {
			return fmt.Errorf("part %d: got %d bytes that are not those of %v, %w", i, len(got), s, err)
		}
	}
	if _, err := parts.NextRawPart(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("want %d parts, got one more, %w", len(spans), err)
	}
	return nil
}

// wantSingleRanges checks that no request to the hub asks for several ranges: GHCR answers
// those with 501, GCR with 400, S3 with the whole.
func wantSingleRanges(t *testing.T, h *hub.Hub) {
	t.Helper()
	for _, r := range h.Requests() {
		if v := r.Header.Get("Range"); strings.Contains(v, ",") {
			t.Errorf("the upstream was asked for several ranges: %s", v)
		}
	}
}

func TestSeveralRangesComeColdAndWarm(t *testing.T) {
	t.Parallel()
	h := hub.New(t, hub.Options{})
	p := proxy.New(t, h)
	const size = 12 << 20
	pieces := func(step, length int64) (spans []oci.Span) {
		for at := int64(0); at+length <= size && len(spans) < 1024; at += step {
			spans = append(spans, oci.Span{From: at, To: at + length})
		}
		return spans
	}
	backwards := pieces(1<<20, 100_000)
	slices.Reverse(backwards)
	for what, spans := range map[string][]oci.Span{
		"a thousand small ones": pieces(12_000, 100),
		"large ones":            pieces(2<<20, 1<<20),
		"that touch":            pieces(1<<20, 1<<20),
		"backwards":             backwards,
		"the ends":              {{From: 0, To: 1}, {From: size - 100, To: size}},
	} {
		content := randomBytes("ranges "+what, size)
		d := digest.FromBytes(content)
		h.PushBlob("library/app", d, content)
		path := "/v2/library/app/blobs/" + d.String()
		if err := askRanges(t, p, path, content, spans); err != nil {
			t.Errorf("%s, cold: %v", what, err)
		}
		p.WaitIdle(t)
		if err := askRanges(t, p, path, content, spans); err != nil {
			t.Errorf("%s, cold, again: %v", what, err)
		}
		get(t, p, path)
		if err := askRanges(t, p, path, content, spans); err != nil {
			t.Errorf("%s, warm: %v", what, err)
		}
	}
	wantSingleRanges(t, h)
}

// Whatever an upstream does to ranges, clients get theirs from one fetch.
func TestSeveralRangesComeWhateverUpstreamsDoToRanges(t *testing.T) {
	t.Parallel()
	content := randomBytes("several ranges", 10<<20)
	d := digest.FromBytes(content)
	spans := []oci.Span{{From: 1000, To: 1100}, {From: 6 << 20, To: 6<<20 + 50_000}, {From: 9 << 20, To: 9<<20 + 7}}
	hubs := map[string]*hub.Hub{}
	names := map[string]string{}
	for quirk, faults := range rangeQuirks() {
		h := hub.New(t, hub.Options{})
		h.PushBlob("app", d, content)
		for _, f := range faults {
			h.Inject(f)
		}
		names[quirk] = fmt.Sprintf("reg%d.test", len(hubs))
		hubs[names[quirk]] = h
	}
	p := proxy.Start(t, proxy.Options{Upstreams: hubs})
	for quirk, name := range names {
		if err := askRanges(t, p, "/v2/"+name+"/app/blobs/"+d.String(), content, spans); err != nil {
			t.Errorf("%s: %v", quirk, err)
		}
		wantSingleRanges(t, hubs[name])
	}
}
