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
	asked := int64(0)
	for _, s := range spans {
		asked += s.To - s.From
	}
	if most := asked + int64(200*(len(spans)+1)); res.ContentLength > most {
		return fmt.Errorf("want at most %d bytes for %d that are asked for, got %d", most, asked, res.ContentLength)
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
		// What is on its way when a connection is cut, because others fetch the rest, is lost.
		if got := h.Sent(d); got > size+size/4+leads(h) {
			t.Errorf("%s: the upstream sent %d bytes of a blob of %d", what, got, size)
		}
	}
	wantSingleRanges(t, h)
}

// A crowd of ranges costs no more than one request for what they ask for: at the upstream
// each byte once, and at the client.
func TestAFloodOfRangesCostsWhatItAsksFor(t *testing.T) {
	t.Parallel()
	h := hub.New(t, hub.Options{})
	p := proxy.New(t, h)
	const size = 8 << 20
	for what, c := range map[string]struct {
		ranges string
		length int
	}{
		"all, a thousand times":        {strings.Repeat("0-,", 1024), size},
		"the end, a thousand times":    {strings.Repeat("-100,", 1024), 100},
		"the same byte":                {strings.Repeat("5000000-5000000,", 1024), 1},
		"all of it among parts of it":  {strings.Repeat("70-99,", 1023) + "0-", size},
		"overlapping by a byte each":   {overlapping(1024, 100), 1024*99 + 1},
		"beyond the end, and one byte": {strings.Repeat("99999999-,", 1023) + "0-0", 1},
	} {
		content := randomBytes("flood "+what, size)
		d := digest.FromBytes(content)
		h.PushBlob("library/app", d, content)
		path := "/v2/library/app/blobs/" + d.String()
		for _, state := range []string{"cold", "warm"} {
			a := ask(t, p, http.MethodGet, path, "Range", "bytes="+c.ranges)
			if a.status != http.StatusPartialContent || a.err != nil || len(a.body) != c.length || a.header.Get("Content-Range") == "" {
				a.body = a.body[:min(len(a.body), 100)]
				t.Errorf("%s, %s: want one range of %d bytes, got %s", what, state, c.length, a)
			}
			p.WaitIdle(t)
		}
		if got := h.Sent(d); got > size+size/4+leads(h) {
			t.Errorf("%s: the upstream sent %d bytes of a blob of %d", what, got, size)
		}
	}
	wantSingleRanges(t, h)
}

// overlapping returns n ranges of a size each of which begins with the last byte of the one before.
func overlapping(n, size int) string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("%d-%d", i*(size-1), i*(size-1)+size-1)
	}
	return strings.Join(list, ",")
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
		err := askRanges(t, p, "/v2/"+name+"/app/blobs/"+d.String(), content, spans)
		// A wrong piece far from all others meets nothing that it could be compared with: who asks
		// for pieces verifies them.
		lies := slices.Contains([]string{"the first bytes", "one byte late", "one byte early", "first cut, then cut or lies"}, quirk)
		if err != nil && !(lies && strings.Contains(err.Error(), "that are not those of")) {
			t.Errorf("%s: %v", quirk, err)
		}
		wantSingleRanges(t, hubs[name])
	}
}
