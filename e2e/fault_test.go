package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// The blob of the fault suite has at most faultSize bytes; transfers of it break
// at breakAt.
const (
	faultSize = 5 << 20
	breakAt   = 1 << 20
)

// hasty lets an upstream that is silent be given up on soon.
const hasty = `connect_timeout: 2s, header_timeout: 1s, stall_timeout: 1s`

// trouble is what an upstream does wrong while it sends a blob.
type trouble struct {
	hub hub.Options
	// begin puts it in force.
	begin func(h *hub.Hub)
	// midway, where it is set, happens when the client has some of the blob, and
	// the upstream is silent; its end is when the proxy has noticed.
	midway func(h *hub.Hub)
	// again is how many bytes the upstream may send a second time: those that
	// were lost on the way, or sent to no end.
	again int64
	// unseen marks what needs no resumption.
	unseen bool
	// sized marks what may go another way where no manifest has told the size.
	sized bool
}

func faults(list ...hub.Fault) func(*hub.Hub) {
	return func(h *hub.Hub) {
		for _, f := range list {
			h.Inject(f)
		}
	}
}

// leads gives how many bytes come twice because each request that resumes a blob asks for
// some that are here, and compares them.
func leads(h *hub.Hub) int64 { return int64(len(h.Requests())) * 4 << 10 }

// breaksOnce is a transfer that breaks, once: what follows happens to the
// request that resumes it.
var breaksOnce = hub.CutAfter(breakAt).Times(1)

// midBlob answers requests of a kind after the first with status.
func midBlob(k hub.Kind, status int) hub.Fault { return hub.Answer(k, status).After(1) }

// mendable are troubles that pass.
func mendable() map[string]trouble {
	list := map[string]trouble{
		"closes the connection":                            {begin: faults(hub.CutAfter(breakAt).Times(3))},
		"closes the connection at once":                    {begin: faults(hub.CutAfter(0).Times(2)), unseen: true},
		"resets the connection":                            {begin: faults(hub.ResetAfter(breakAt).Times(2)), again: 2 * breakAt},
		"resets the connection at once":                    {begin: faults(hub.ResetAfter(0).Times(2)), unseen: true},
		"stalls":                                           {begin: faults(hub.StallAfter(breakAt, nil).Times(1))},
		"stalls at once":                                   {begin: faults(hub.StallAfter(0, nil).Times(1)), unseen: true},
		"sends too little, and says that it is all":        {begin: faults(hub.TruncateAfter(breakAt).Times(3))},
		"sends too much, without a length":                 {begin: faults(hub.Append(5000), hub.NoLength()), unseen: true},
		"sends too much, and says so":                      {begin: faults(hub.Append(5000).Times(1)), again: faultSize, unseen: true},
		"promises more than it sends":                      {begin: faults(hub.WrongLength(1000).Times(1)), again: faultSize, unseen: true},
		"promises less than there is":                      {begin: faults(hub.WrongLength(-1000).Times(1)), again: faultSize, unseen: true},
		"promises more than it sends, mid-blob":            {begin: faults(breaksOnce, hub.WrongLength(1000).After(1).Times(1)), again: faultSize},
		"tells no lengths":                                 {begin: faults(hub.NoLength(), hub.CutAfter(breakAt).Times(2))},
		"names another digest":                             {begin: faults(hub.WrongDigest().Of(hub.BlobGet)), hub: hub.Options{NoCDN: true}, unseen: true},
		"answers 200 to a Range":                           {begin: faults(hub.IgnoreRange(), hub.CutAfter(breakAt).Times(2)), again: 2 * breakAt},
		"lets the signed URL expire":                       {begin: faults(breaksOnce, hub.ExpireURL().After(1).Times(2)), again: breakAt},
		"goes from 307 to 403":                             {begin: faults(breaksOnce, midBlob(hub.BlobGet, 403).Times(2))},
		"wants another token":                              {begin: faults(breaksOnce, midBlob(hub.BlobGet, 401).Times(1))},
		"has a registry that limits, mid-blob":             {begin: faults(breaksOnce, midBlob(hub.BlobGet, 429).With("Retry-After", "1").Times(1))},
		"has a CDN that limits, mid-blob":                  {begin: faults(breaksOnce, midBlob(hub.CDNGet, 429).Times(2))},
		"has a registry that is overloaded from the first": {begin: faults(hub.Answer(hub.BlobGet, 503).Times(1)), unseen: true},
		"has a CDN that is overloaded from the first":      {begin: faults(hub.Answer(hub.CDNGet, 503).Times(1)), unseen: true},

		"refuses connections, mid-blob":     {begin: faults(hub.StallAfter(breakAt, nil).Times(1)), midway: func(h *hub.Hub) { h.Down() }},
		"never answers, mid-blob":           {begin: faults(hub.StallAfter(breakAt, nil).Times(1)), midway: func(h *hub.Hub) { h.BlackHole() }},
		"breaks TLS, mid-blob":              {hub: hub.Options{TLS: true}, begin: faults(hub.StallAfter(breakAt, nil).Times(1)), midway: func(h *hub.Hub) { h.BreakTLS() }},
		"breaks the CDN's TLS, mid-blob":    {hub: hub.Options{TLS: true}, begin: faults(hub.StallAfter(breakAt, nil).Times(1)), midway: func(h *hub.Hub) { h.BreakTLS(hub.CDN) }},
		"forgets its tokens, mid-blob":      {begin: faults(hub.StallAfter(breakAt, nil).Times(1)), midway: func(h *hub.Hub) { h.ExpireTokens() }},
		"loses its token server too":        {begin: faults(hub.StallAfter(breakAt, nil).Times(1)), midway: func(h *hub.Hub) { h.ExpireTokens(); h.Down(hub.TokenServer) }},
		"closes over https":                 {hub: hub.Options{TLS: true}, begin: faults(hub.CutAfter(breakAt).Times(3))},
		"closes without a CDN":              {hub: hub.Options{NoCDN: true}, begin: faults(hub.CutAfter(breakAt).Times(3))},
		"closes behind a relative redirect": {hub: hub.Options{RelativeRedirect: true}, begin: faults(hub.CutAfter(breakAt).Times(3))},
	}
	// A range that is refused twice is taken for one that is not supported: the whole
	// comes again.
	for _, status := range []int{500, 502, 503, 504} {
		list[fmt.Sprintf("has a registry that answers %d, mid-blob", status)] = trouble{begin: faults(breaksOnce, midBlob(hub.BlobGet, status).Times(2)), again: breakAt}
		list[fmt.Sprintf("has a CDN that answers %d, mid-blob", status)] = trouble{begin: faults(breaksOnce, midBlob(hub.CDNGet, status).Times(2)), again: breakAt}
	}
	return list
}

// TestAnUpstreamThatBreaksOffIsResumedUnseen: what an upstream mends, a client
// does not notice but by a pause, and what had come does not come again.
func TestAnUpstreamThatBreaksOffIsResumedUnseen(t *testing.T) {
	t.Parallel()
	for name, c := range mendable() {
		t.Run("it "+name, func(t *testing.T) {
			t.Parallel()
			h := hub.New(t, c.hub)
			p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: `upstreams: {docker.io: {` + hasty + `}}`})
			layer, content, path := pulledManifest(t, p, h)
			c.begin(h)
			got := c.pull(t, h, p, path, layer.Size)
			wantBytes(t, "layer", content, got)
			p.WaitIdle(t)
			saw(t, p, layer, h)
			sent := h.Sent(layer.Digest)
			if sent < layer.Size || sent > layer.Size+c.again+leads(h) {
				t.Errorf("the upstream sent %d bytes of %d; at most %d may come again", sent, layer.Size, c.again)
			}
			if n := resumptions(h); n == 0 && !c.unseen {
				t.Errorf("nothing was resumed: %d requests", len(h.Requests()))
			}
			h.Down()
			wantBytes(t, "layer again", content, get(t, p, path).body)
		})
	}
}

// pull gets the blob through the trouble.
func (c trouble) pull(t *testing.T, h *hub.Hub, p *proxy.Proxy, path string, size int64) []byte {
	t.Helper()
	if c.midway == nil {
		return get(t, p, path).body
	}
	res, err := open(t.Context(), p, http.MethodGet, path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got := make([]byte, size)
	if _, err := io.ReadFull(res.Body, got[:breakAt/2]); err != nil {
		t.Fatalf("the beginning: %s, %v", res.Status, err)
	}
	before := failures(t, p)
	c.midway(h)
	until(t, "the proxy to notice", func() bool { return failures(t, p) > before })
	if err := h.Up(); err != nil {
		t.Fatal(err)
	}
	if n, err := io.ReadFull(res.Body, got[breakAt/2:]); err != nil {
		t.Fatalf("the rest broke off after %d bytes: %v", n, err)
	}
	return got
}

// failures counts what an upstream did wrong; a stall, which the suite makes
// itself, aside.
func failures(t *testing.T, p *proxy.Proxy) float64 {
	t.Helper()
	m := p.Metrics(t)
	return m.Sum("entrepot_upstream_errors_total") + m.Sum("entrepot_upstream_token_fetches_total") - m.Sum("entrepot_upstream_errors_total", "reason", "stall")
}

// pulledManifest pushes an image with one layer, pulls its manifest as a client
// does, so that the layer's size is known, and forgets that the hub was asked.
func pulledManifest(t *testing.T, p *proxy.Proxy, hubs ...*hub.Hub) (layer v1.Descriptor, content []byte, path string) {
	t.Helper()
	i := image.New(image.Options{Seed: 3, Layers: []image.Layer{{Size: faultSize - 8<<10, Compression: image.None}}})
	for _, h := range hubs {
		h.Push("library/big", "1.0", i)
	}
	layer = i.Layers("")[0]
	get(t, p, "/v2/library/big/manifests/1.0")
	for _, h := range hubs {
		h.ResetCounts()
	}
	return layer, i.Blobs[layer.Digest], "/v2/library/big/blobs/" + layer.Digest.String()
}

// resumptions counts the requests for bytes of a blob from the middle on.
func resumptions(h *hub.Hub) (n int) {
	for _, r := range h.Requests() {
		if rg := r.Header.Get("Range"); (r.Kind == hub.CDNGet || r.Kind == hub.BlobGet) && rg != "" && !strings.HasPrefix(rg, "bytes=0-") {
			n++
		}
	}
	return n
}

// saw prints what a case did to the upstreams.
func saw(t *testing.T, p *proxy.Proxy, layer v1.Descriptor, hubs ...*hub.Hub) {
	t.Helper()
	m := p.Metrics(t)
	for n, h := range hubs {
		c, sent := h.Counts(), h.Sent(layer.Digest)
		t.Logf("upstream %d sent %d bytes of %d (%.3fx) in %d requests to the registry and %d to the CDN, %d of them from the middle on",
			n+1, sent, layer.Size, float64(sent)/float64(layer.Size), c.BlobGets, c.CDNGets, resumptions(h))
	}
	t.Logf("the proxy counts %g resumptions, %g failures of the upstream, %g retries, %g mismatches",
		m.Sum("entrepot_fill_resumes_total"), m.Sum("entrepot_upstream_errors_total"), m.Sum("entrepot_upstream_retries_total"), m.Sum("entrepot_digest_mismatches_total"))
}

// TestAFillGoesOnAtTheNextEndpoint: the first endpoint breaks off, and never
// sends the rest.
func TestAFillGoesOnAtTheNextEndpoint(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]trouble{
		"is closed again and again":   {begin: faults(breaksOnce, hub.CutAfter(0).After(1))},
		"is reset again and again":    {begin: faults(hub.ResetAfter(breakAt)), again: breakAt},
		"stalls":                      {begin: faults(hub.StallAfter(breakAt, nil))},
		"has an expired URL":          {begin: faults(breaksOnce, hub.ExpireURL().After(1))},
		"answers 403":                 {begin: faults(breaksOnce, midBlob(hub.BlobGet, 403))},
		"answers 429":                 {begin: faults(breaksOnce, midBlob(hub.BlobGet, 429).With("Retry-After", "60"))},
		"answers 500":                 {begin: faults(breaksOnce, midBlob(hub.CDNGet, 500))},
		"answers 503":                 {begin: faults(breaksOnce, midBlob(hub.BlobGet, 503))},
		"answers 200 to a Range":      {begin: faults(hub.IgnoreRange(), hub.CutAfter(breakAt))},
		"promises more than it sends": {begin: faults(hub.WrongLength(1000)), again: faultSize, unseen: true},
		"sends too much":              {begin: faults(hub.Append(5000)), again: faultSize, unseen: true},
		"breaks TLS":                  {hub: hub.Options{TLS: true}, begin: faults(hub.StallAfter(breakAt, nil).Times(1)), midway: func(h *hub.Hub) { h.BreakTLS() }},
		"refuses connections":         {begin: faults(hub.StallAfter(breakAt, nil).Times(1)), midway: func(h *hub.Hub) { h.Down() }},
		"never answers":               {begin: faults(hub.StallAfter(breakAt, nil).Times(1)), midway: func(h *hub.Hub) { h.BlackHole() }},
	} {
		t.Run("the first "+name, func(t *testing.T) {
			t.Parallel()
			first, second, p := startTwo(t, c.hub)
			layer, content, path := pulledManifest(t, p, first, second)
			c.begin(first)
			var got []byte
			if c.midway == nil {
				got = get(t, p, path).body
			} else {
				res, err := open(t.Context(), p, http.MethodGet, path)
				if err != nil {
					t.Fatal(err)
				}
				got = make([]byte, layer.Size)
				if _, err := io.ReadFull(res.Body, got[:breakAt/2]); err != nil {
					t.Fatal(err)
				}
				c.midway(first)
				n, err := io.ReadFull(res.Body, got[breakAt/2:])
				if res.Body.Close(); err != nil {
					t.Fatalf("the rest broke off after %d bytes: %v", n, err)
				}
			}
			wantBytes(t, "layer", content, got)
			p.WaitIdle(t)
			saw(t, p, layer, first, second)
			if sent := first.Sent(layer.Digest) + second.Sent(layer.Digest); sent > layer.Size+c.again+leads(first)+leads(second) {
				t.Errorf("the upstreams sent %d bytes of %d; at most %d may come again", sent, layer.Size, c.again)
			}
			if n := second.Sent(layer.Digest); n == 0 {
				t.Error("the second endpoint was not asked")
			}
			if n := resumptions(second); n == 0 && !c.unseen {
				t.Error("the second endpoint was asked for all of it")
			}
		})
	}
}

// startTwo runs the program with two endpoints of docker.io.
func startTwo(t *testing.T, o hub.Options) (first, second *hub.Hub, p *proxy.Proxy) {
	t.Helper()
	first, second = hub.New(t, o), hub.New(t, hub.Options{})
	return first, second, proxy.Start(t, proxy.Options{
		Upstreams: map[string]*hub.Hub{"docker.io": first},
		Config: fmt.Sprintf(`upstreams: {docker.io: {%s, endpoints: [%q, %q], realms: [%q, %q], redirect_hosts: [%q, %q]}}`,
			hasty, first.URL(), second.URL(), first.Realm(), second.Realm(), first.CDNHost(), second.CDNHost()),
	})
}

// TestWrongBytesNeverMakeAWholeAnswerAndAreNotKept: what can not be mended is a
// clean error or a cut connection. A whole answer is one whose body ends where
// its length says; it may come only where the proxy has found a way to the true
// bytes (around a missing end, by Range, there is one).
func TestWrongBytesNeverMakeAWholeAnswerAndAreNotKept(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]trouble{
		"a bit is flipped early":            {sized: true, begin: faults(hub.Flip(10))},
		"a bit is flipped late":             {sized: true, begin: faults(hub.Flip(faultSize - 30<<10))},
		"the end is missing":                {sized: true, begin: faults(hub.TruncateAfter(faultSize / 2))},
		"there is nothing":                  {sized: true, begin: faults(hub.TruncateAfter(0))},
		"there is too much":                 {sized: true, begin: faults(hub.Append(1000))},
		"the length is too large":           {sized: true, begin: faults(hub.WrongLength(1000))},
		"the length is too small":           {sized: true, begin: faults(hub.WrongLength(-1000))},
		"no connection lasts":               {begin: faults(hub.CutAfter(0))},
		"every connection is reset":         {begin: faults(hub.ResetAfter(0))},
		"all is sent anew, and breaks off":  {begin: faults(hub.IgnoreRange(), hub.CutAfter(breakAt))},
		"it stalls":                         {sized: true, begin: faults(hub.StallAfter(breakAt, nil))},
		"no signed URL is good":             {begin: faults(hub.ExpireURL())},
		"the URL expires, mid-blob":         {begin: faults(breaksOnce, hub.ExpireURL().After(1))},
		"the registry refuses":              {begin: faults(hub.Answer(hub.BlobGet, 403))},
		"the registry refuses, mid-blob":    {begin: faults(breaksOnce, midBlob(hub.BlobGet, 403))},
		"the registry limits":               {begin: faults(hub.Answer(hub.BlobGet, 429).With("Retry-After", "1"))},
		"the CDN limits, mid-blob":          {begin: faults(breaksOnce, midBlob(hub.CDNGet, 429))},
		"the CDN fails, mid-blob":           {begin: faults(breaksOnce, midBlob(hub.CDNGet, 500))},
		"the registry is over its capacity": {begin: faults(hub.Answer(hub.BlobGet, 503))},
		"TLS is broken":                     {hub: hub.Options{TLS: true}, begin: func(h *hub.Hub) { h.BreakTLS() }},
		"the CDN's TLS is broken":           {hub: hub.Options{TLS: true}, begin: func(h *hub.Hub) { h.BreakTLS(hub.CDN) }},
		"connections are refused":           {begin: func(h *hub.Hub) { h.Down() }},
		"the CDN never answers":             {begin: func(h *hub.Hub) { h.BlackHole(hub.CDN) }},
	} {
		for _, known := range []bool{true, false} {
			if !known && !c.sized {
				continue
			}
			t.Run(fmt.Sprintf("%s, size known %v", name, known), func(t *testing.T) {
				t.Parallel()
				h := hub.New(t, c.hub)
				p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: `upstreams: {docker.io: {` + hasty + `}}`})
				layer, content, path := pulledManifest(t, p, h)
				if !known {
					// Another repository's: no manifest has told its size here.
					h.PushBlob("library/other", layer.Digest, content)
					path = strings.Replace(path, "/big/", "/other/", 1)
				}
				c.begin(h)
				from := layer.Size - 1000
				wantTrueOrNone(t, content, ask(t, p, "GET", path))
				tail := ask(t, p, "GET", path, "Range", fmt.Sprintf("bytes=%d-", from))
				// Who asks for a piece verifies it: of a blob of unknown size it ends where the
				// upstream says that the blob does.
				if known || strings.HasSuffix(tail.header.Get("Content-Range"), fmt.Sprintf("/%d", layer.Size)) {
					wantTrueOrNone(t, content[from:], tail)
				}
				saw(t, p, layer, h)
				h.Mend()
				if err := h.Up(); err != nil {
					t.Fatal(err)
				}
				p.WaitIdle(t)
				// An upstream that has failed may be left alone for a moment.
				var a answer
				until(t, "a whole answer once it is mended", func() bool {
					a = ask(t, p, "GET", path)
					return a.status == http.StatusOK && a.err == nil
				})
				wantBytes(t, "once it is mended", content, a.body)
				p.WaitIdle(t)
				h.Down()
				wantBytes(t, "from the cache", content, get(t, p, path).body)
			})
		}
	}
}

// wantTrueOrNone checks that a is the true bytes, or part of them and then a cut
// connection, or the spec's error, and never one that says that the blob does
// not exist.
func wantTrueOrNone(t *testing.T, content []byte, a answer) {
	t.Helper()
	switch {
	case a.status >= 300:
		var e struct {
			Errors []struct{ Code, Message string }
		}
		if err := json.Unmarshal(a.body, &e); err != nil || a.err != nil || len(e.Errors) != 1 || e.Errors[0].Code == "" || e.Errors[0].Message == "" {
			t.Errorf("want the spec's error, got %s", a)
			return
		}
		if a.status == http.StatusNotFound || a.status == http.StatusUnauthorized {
			t.Errorf("want no word on what exists, got %s", a)
		}
		t.Logf("the client got %d %s: %s", a.status, e.Errors[0].Code, e.Errors[0].Message)
	case a.err == nil && bytes.Equal(a.body, content):
		t.Logf("the client got %d and all %d true bytes", a.status, len(content))
	case a.err == nil:
		t.Errorf("a whole answer of wrong bytes: %d, %d bytes of %d", a.status, len(a.body), len(content))
	default:
		t.Logf("the client got %d and %d bytes of %d, then a cut connection", a.status, len(a.body), len(content))
	}
}

// A part of a wrong blob has wrong bytes before the digest is known; but what is
// small is not given out before, so that the wrong bytes are fetched again
// without anybody's noticing.
func TestAWrongSmallBlobIsFetchedAgainUnseen(t *testing.T) {
	t.Parallel()
	h, p := start(t, "")
	layer, content, path := big(h, 20<<10)
	h.Inject(hub.Flip(100).Times(2))
	wantBytes(t, "layer", content, get(t, p, path).body)
	if got := h.Sent(layer.Digest); got != 3*layer.Size {
		t.Errorf("want it sent three times, got %d bytes of %d", got, layer.Size)
	}
}

// TestAManifestsWrongDigestHeaderIsNotBelieved: the bytes tell the digest, as they do for
// docker, podman and crane.
func TestAManifestsWrongDigestHeaderIsNotBelieved(t *testing.T) {
	t.Parallel()
	h, p := start(t, doubting)
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	h.Inject(hub.WrongDigest())
	for range 3 {
		a := get(t, p, tagPath)
		wantBytes(t, "as it was", i.Bytes(), a.body)
		a.wantHeader(t, "Docker-Content-Digest", i.Digest.String())
	}
}

// TestADamagedManifestIsNotTakenForItsTag: a registry whose file is damaged sends the same wrong
// bytes each time, with a header that names the right digest.
func TestADamagedManifestIsNotTakenForItsTag(t *testing.T) {
	t.Parallel()
	for name, times := range map[string]int{"each time": 1000, "until it is asked by digest": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, p := start(t, doubting)
			i := image.New(image.Options{Seed: 1})
			h.Push("library/app", "1.0", i)
			undo := h.Inject(hub.Flip(int64(len(i.Bytes()) / 2)).Of(hub.ManifestGet).Times(times))
			a := ask(t, p, "GET", tagPath)
			if times > 2 {
				a.wantError(t, http.StatusBadGateway, "UNAVAILABLE")
				undo()
				until(t, "the right manifest", func() bool {
					a = ask(t, p, "GET", tagPath)
					return a.status == 200
				})
			}
			wantBytes(t, "manifest", i.Bytes(), a.body)
			a.wantHeader(t, "Docker-Content-Digest", i.Digest.String())
		})
	}
}

// TestAFillOutlastsAnUpstreamThatIsLeftAlone: the upstream is gone for so long that
// the proxy does not ask it any more but by probes. A client in the middle of a blob
// sees a pause.
func TestAFillOutlastsAnUpstreamThatIsLeftAlone(t *testing.T) {
	t.Parallel()
	h, p := start(t, "")
	layer, content, path := pulledManifest(t, p, h)
	h.Inject(hub.StallAfter(breakAt, nil).Times(1))
	res, err := open(t.Context(), p, http.MethodGet, path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got := make([]byte, layer.Size)
	if _, err := io.ReadFull(res.Body, got[:breakAt/2]); err != nil {
		t.Fatal(err)
	}
	h.Down()
	until(t, "the upstream to be left alone", func() bool {
		return p.Metrics(t).Sum("entrepot_upstream_endpoint_state", "upstream", "docker.io") > 0
	})
	if err := h.Up(); err != nil {
		t.Fatal(err)
	}
	if n, err := io.ReadFull(res.Body, got[breakAt/2:]); err != nil {
		t.Fatalf("the rest broke off after %d bytes: %v", n, err)
	}
	wantBytes(t, "layer", content, got)
	p.WaitIdle(t)
	saw(t, p, layer, h)
	if sent := h.Sent(layer.Digest); sent < layer.Size || sent > layer.Size+leads(h) {
		t.Errorf("the upstream sent %d bytes of %d", sent, layer.Size)
	}
}
