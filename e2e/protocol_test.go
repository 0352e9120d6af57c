package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
	"github.com/entrepot-dev/entrepot/oci"
)

func TestPingIsAnsweredWithoutTheUpstream(t *testing.T) {
	h, p := start(t, "")
	for _, path := range []string{"/v2/", "/v2"} {
		a := get(t, p, path, "Authorization", "Bearer stray")
		a.wantHeader(t, "Docker-Distribution-Api-Version", "registry/2.0", "Content-Type", "application/json", "WWW-Authenticate", "")
		if strings.TrimSpace(string(a.body)) != "{}" {
			t.Errorf("%s: want {}, got %s", path, a)
		}
	}
	wantUnmoved(t, hub.Counts{}, h.Counts())
}

func TestHeadIsGetWithoutTheBody(t *testing.T) {
	h, p := start(t, believing)
	i := image.Index(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	amd64 := i.Platforms["linux/amd64"]
	layer := i.Layers("linux/amd64")[0].Digest
	for _, path := range []string{
		"/v2/",
		"/v2/library/app/manifests/1.0",
		"/v2/library/app/manifests/" + i.Digest.String(),
		"/v2/library/app/manifests/" + amd64.String(),
		"/v2/library/app/blobs/" + layer.String(),
		"/v2/library/app/tags/list",
		"/v2/library/app/referrers/" + i.Digest.String(),
		"/v2/_catalog",
		"/v2/library/app/manifests/none",
		"/v2/library/app/blobs/" + digest.FromString("none").String(),
		"/v2/library/app/manifests/sha256:zz",
	} {
		cold := ask(t, p, "HEAD", path)
		first := ask(t, p, "GET", path)
		head, again := ask(t, p, "HEAD", path), ask(t, p, "GET", path)
		for _, a := range []answer{cold, head} {
			if len(a.body) != 0 || a.err != nil {
				t.Errorf("a HEAD has a body: %s", a)
			}
			if a.status != first.status || again.status != first.status {
				t.Errorf("%s: GET answers %d, HEAD %d, GET again %d", path, first.status, a.status, again.status)
			}
			for k := range again.header {
				switch k {
				case "Date", "Age", "Cache-Status", "Retry-After":
					continue
				}
				a.wantHeader(t, k, again.header.Get(k))
			}
			if got, want := a.header.Get("Content-Length"), fmt.Sprint(len(again.body)); got != want {
				t.Errorf("HEAD %s: Content-Length: want %s, got %q", path, want, got)
			}
		}
		wantBytes(t, "GET "+path, first.body, again.body)
	}
}

func TestEveryHeaderOfAManifest(t *testing.T) {
	h, p := start(t, believing)
	for tag, i := range map[string]*image.Image{
		"oci":   image.New(image.Options{Seed: 1}),
		"s2":    image.New(image.Options{Seed: 2, Flavour: image.Docker}),
		"index": image.Index(image.Options{Seed: 3}),
		"list":  image.Index(image.Options{Seed: 4, Flavour: image.Docker}),
		"chart": image.HelmChart(5, "app", "1.0.0"),
	} {
		h.Push("library/app", tag, i)
		for n, ref := range []string{tag, tag, i.Digest.String()} {
			a := get(t, p, "/v2/library/app/manifests/"+ref, "Accept", anything)
			wantBytes(t, tag, i.Bytes(), a.body)
			a.wantHeader(t,
				"Content-Type", i.MediaType(),
				"Docker-Content-Digest", i.Digest.String(),
				"Content-Length", fmt.Sprint(len(i.Bytes())),
				"ETag", `"`+i.Digest.String()+`"`,
				"Docker-Distribution-Api-Version", "registry/2.0",
			)
			cs := a.header.Get("Cache-Status")
			if hit := strings.Contains(cs, "; hit"); hit != (n > 0) {
				t.Errorf("request %d of %s: Cache-Status: got %q", n+1, tag, cs)
			}
			if n == 0 && !strings.Contains(cs, "fwd=") {
				t.Errorf("request 1 of %s: want a fwd reason in Cache-Status, got %q", tag, cs)
			}
		}
	}
}

func TestEveryHeaderOfABlob(t *testing.T) {
	h, p := start(t, "")
	i := image.New(image.Options{Seed: 1, Layers: []image.Layer{{Size: 300 << 10}}})
	h.Push("library/app", "1.0", i)
	get(t, p, "/v2/library/app/manifests/1.0")
	for _, d := range i.Layers("") {
		for range 2 {
			a := get(t, p, "/v2/library/app/blobs/"+d.Digest.String())
			wantBytes(t, "layer", i.Blobs[d.Digest], a.body)
			a.wantHeader(t,
				"Docker-Content-Digest", d.Digest.String(),
				"Content-Length", fmt.Sprint(d.Size),
				"ETag", `"`+d.Digest.String()+`"`,
				"Location", "/v2/library/app/blobs/"+d.Digest.String(),
				"Accept-Ranges", "bytes",
				"Docker-Distribution-Api-Version", "registry/2.0",
			)
			if a.header.Get("Content-Type") == "" || a.header.Get("Cache-Status") == "" {
				t.Errorf("want a Content-Type and a Cache-Status, got %v", a.header)
			}
		}
	}
}

func TestRangesAreAnsweredColdAndWarm(t *testing.T) {
	const size = 700_000
	h, p := start(t, "")
	for n, c := range []struct {
		ask        string
		from, to   int
		status     int
		conditions string // If-Range: "match", "other" or none
	}{
		{"bytes=0-0", 0, 1, 206, ""},
		{"bytes=100-199", 100, 200, 206, ""},
		{"bytes=699990-", 699_990, size, 206, ""},
		{"bytes=0-", 0, size, 206, ""},
		{"bytes=-10", size - 10, size, 206, ""},
		{"bytes=-9999999", 0, size, 206, ""},
		{"bytes=699999-9999999", size - 1, size, 206, ""},
		{"bytes=700000-", 0, 0, 416, ""},
		{"bytes=700000-700001", 0, 0, 416, ""},
		{"bytes=-0", 0, 0, 416, ""},
		{"bytes=5-4", 0, size, 200, ""},
		{"bytes=x-y", 0, size, 200, ""},
		{"lines=1-2", 0, size, 200, ""},
		{"bytes=0-9,5-19", 0, 20, 206, ""},
		{"bytes=700000-,5-6", 5, 7, 206, ""},
		{"bytes=700000-,-0", 0, 0, 416, ""},
		{"bytes=0-1,5-6", 0, size, 200, "other"},
		{"bytes=100-199", 100, 200, 206, "match"},
		{"bytes=100-199", 0, size, 200, "other"},
	} {
		content := make([]byte, size)
		copy(content, fmt.Sprintf("blob %d", n))
		for i := 16; i < size; i++ {
			content[i] = byte(i * 7 / 3)
		}
		d := digest.FromBytes(content)
		h.PushBlob("library/app", d, content)
		headers := []string{"Range", c.ask}
		switch c.conditions {
		case "match":
			headers = append(headers, "If-Range", `"`+d.String()+`"`)
		case "other":
			headers = append(headers, "If-Range", `"`+digest.FromString("other").String()+`"`)
		}
		for _, state := range []string{"cold", "warm"} {
			name := fmt.Sprintf("%s %s, If-Range %q", state, c.ask, c.conditions)
			a := ask(t, p, "GET", "/v2/library/app/blobs/"+d.String(), headers...)
			if a.status != c.status || a.err != nil {
				t.Errorf("%s: want %d, got %s", name, c.status, a)
				continue
			}
			switch c.status {
			case 416:
				a.wantHeader(t, "Content-Range", fmt.Sprintf("bytes */%d", size))
				continue
			case 206:
				a.wantHeader(t, "Content-Range", fmt.Sprintf("bytes %d-%d/%d", c.from, c.to-1, size))
			default:
				a.wantHeader(t, "Content-Range", "")
			}
			wantBytes(t, name, content[c.from:c.to], a.body)
			a.wantHeader(t, "Content-Length", fmt.Sprint(c.to-c.from), "Docker-Content-Digest", d.String())
			// All of it, so that it is warm.
			get(t, p, "/v2/library/app/blobs/"+d.String())
		}
	}
}

// containerd's parallel fetch opens "bytes=N-", reads a chunk and closes.
func TestOpenEndedRangesThatAreClosedEarlyCostTheUpstreamNothing(t *testing.T) {
	h, p := start(t, "")
	i := image.New(image.Options{Seed: 1, Layers: []image.Layer{{Size: 6 << 20}}})
	h.Push("library/app", "1.0", i)
	layer := i.Layers("")[0]
	path := "/v2/library/app/blobs/" + layer.Digest.String()
	content := i.Blobs[layer.Digest]
	const piece = 1 << 20
	for from := int64(0); from < layer.Size; from += piece {
		res, err := open(t.Context(), p, "GET", path, "Range", fmt.Sprintf("bytes=%d-", from))
		if err != nil {
			t.Fatal(err)
		}
		want := content[from:min(from+piece, layer.Size)]
		got := make([]byte, len(want))
		_, err = io.ReadFull(res.Body, got)
		res.Body.Close()
		if res.StatusCode != 206 || err != nil {
			t.Fatalf("from %d: want 206 and %d bytes, got %s, %v", from, len(want), res.Status, err)
		}
		if want := fmt.Sprintf("bytes %d-%d/%d", from, layer.Size-1, layer.Size); res.Header.Get("Content-Range") != want {
			t.Errorf("Content-Range: want %s, got %s", want, res.Header.Get("Content-Range"))
		}
		wantBytes(t, fmt.Sprintf("from %d", from), want, got)
	}
	p.WaitIdle(t)
	if got := h.Sent(layer.Digest); got < layer.Size || got > layer.Size+leads(h) {
		t.Errorf("the upstream sent %d bytes of a blob of %d", got, layer.Size)
	}
}

func TestIfNoneMatchIsAnsweredWithout304sBody(t *testing.T) {
	h, p := start(t, believing)
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	layer := i.Layers("")[0].Digest
	for path, d := range map[string]digest.Digest{
		"/v2/library/app/manifests/1.0":                  i.Digest,
		"/v2/library/app/manifests/" + i.Digest.String(): i.Digest,
		"/v2/library/app/blobs/" + layer.String():        layer,
	} {
		get(t, p, path, "Accept", anything)
		other := digest.FromString("other").String()
		for value, want := range map[string]int{
			`"` + d.String() + `"`:                   304,
			d.String():                               304,
			`W/"` + d.String() + `"`:                 304,
			`"` + other + `", "` + d.String() + `"`:  304,
			`*`:                                      304,
			`"` + other + `"`:                        200,
			`"` + strings.ToUpper(d.Encoded()) + `"`: 200,
		} {
			for _, method := range []string{"GET", "HEAD"} {
				a := ask(t, p, method, path, "Accept", anything, "If-None-Match", value)
				if a.status != want {
					t.Errorf("%s %s, If-None-Match %s: want %d, got %s", method, path, value, want, a)
				}
				if want == 304 {
					if len(a.body) != 0 {
						t.Errorf("a 304 has a body: %s", a)
					}
					a.wantHeader(t, "ETag", `"`+d.String()+`"`, "Docker-Content-Digest", d.String())
				}
			}
		}
	}
}

func TestErrorsAreTheSpecsJSON(t *testing.T) {
	h, p := start(t, "")
	h.Push("library/app", "1.0", image.New(image.Options{}))
	none := digest.FromString("none").String()
	for _, c := range []struct {
		path   string
		status int
		code   string
	}{
		{"/v2/library/app/manifests/none", 404, "MANIFEST_UNKNOWN"},
		{"/v2/library/app/manifests/" + none, 404, "MANIFEST_UNKNOWN"},
		{"/v2/library/app/blobs/" + none, 404, "BLOB_UNKNOWN"},
		{"/v2/library/app/manifests/sha256:abc", 400, "DIGEST_INVALID"},
		{"/v2/library/app/manifests/sha256:" + strings.Repeat("A", 64), 400, "DIGEST_INVALID"},
		{"/v2/library/app/manifests/md5:d41d8cd98f00b204e9800998ecf8427e", 400, "DIGEST_INVALID"},
		{"/v2/library/app/blobs/sha256:abc", 400, "DIGEST_INVALID"},
		{"/v2/library/app/blobs/latest", 400, "DIGEST_INVALID"},
		{"/v2/library/app/referrers/latest", 400, "DIGEST_INVALID"},
		{"/v2/Library/App/manifests/1.0", 400, "NAME_INVALID"},
		{"/v2/library/../app/manifests/1.0", 400, "NAME_INVALID"},
		{"/v2/library/%2e%2e/manifests/1.0", 400, "NAME_INVALID"},
		{"/v2/library/none/tags/list", 404, "NAME_UNKNOWN"},
	} {
		a := ask(t, p, "GET", c.path)
		a.wantError(t, c.status, c.code)
		a.wantHeader(t, "Docker-Distribution-Api-Version", "registry/2.0")
	}
	for _, path := range []string{"/v2/library/app/manifests/-bad", "/v2/library/app/manifests/" + strings.Repeat("x", 129)} {
		if a := ask(t, p, "GET", path); a.status != 400 && a.status != 404 {
			t.Errorf("want 400 or 404, got %s", a)
		}
	}
}

func TestAnUpstreamsFailureIsNever404(t *testing.T) {
	t.Parallel()
	h, p := start(t, `upstreams: {docker.io: {header_timeout: 2s, connect_timeout: 2s}}`)
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	layer := i.Layers("")[0].Digest.String()
	failed := func(what string) {
		t.Helper()
		var g errgroup.Group // each is tried several times, with pauses
		for _, path := range []string{"/v2/library/app/manifests/1.0", "/v2/library/app/manifests/" + i.Digest.String(), "/v2/library/app/blobs/" + layer, "/v2/library/app/tags/list"} {
			for _, method := range []string{"GET", "HEAD"} {
				g.Go(func() error {
					res, err := open(t.Context(), p, method, path)
					if err != nil {
						return err
					}
					b, err := readAndClose(res.Body, nil)
					if err != nil || res.StatusCode < 502 || res.StatusCode > 504 {
						return fmt.Errorf("%s %s: want 502, 503 or 504, got %s, %q, %v", method, path, res.Status, b, err)
					}
					return nil
				})
			}
		}
		if err := g.Wait(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, status := range []int{500, 502, 503} {
		undo := h.Inject(hub.Answer(hub.Any, status))
		failed(fmt.Sprint("the upstream answers ", status))
		undo()
	}
	h.ExpireTokens()
	for what, f := range map[string]hub.Fault{
		"the token server answers 500": hub.Answer(hub.Token, 500),
		"the token server answers 503": hub.Answer(hub.Token, 503),
	} {
		undo := h.Inject(f)
		failed(what)
		undo()
	}
	h.Down()
	failed("the upstream refuses connections")
	if err := h.Up(); err != nil {
		t.Fatal(err)
	}
}

func TestARateLimitWithNothingCachedIsSaidWithRetryAfter(t *testing.T) {
	h, p := start(t, "")
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	h.Inject(hub.Answer(hub.ManifestGet, 429).With("Retry-After", "3600"))
	a := ask(t, p, "GET", "/v2/library/app/manifests/1.0")
	a.wantError(t, 429, "TOOMANYREQUESTS")
	if a.header.Get("Retry-After") == "" {
		t.Errorf("want a Retry-After, got %v", a.header)
	}
}

func TestPushesAreRefusedInWords(t *testing.T) {
	h, p := start(t, "")
	d := digest.FromString("x").String()
	for _, c := range [][2]string{
		{"POST", "/v2/library/app/blobs/uploads/"},
		{"POST", "/v2/library/app/blobs/uploads/?mount=" + d + "&from=library/other"},
		{"PATCH", "/v2/library/app/blobs/uploads/1234"},
		{"PUT", "/v2/library/app/blobs/uploads/1234?digest=" + d},
		{"PUT", "/v2/library/app/manifests/1.0"},
		{"DELETE", "/v2/library/app/manifests/" + d},
		{"DELETE", "/v2/library/app/blobs/" + d},
	} {
		a := ask(t, p, c[0], c[1])
		if message := a.wantError(t, 405, "UNSUPPORTED"); len(strings.Fields(message)) < 5 {
			t.Errorf("%s %s: want a sentence, got %q", c[0], c[1], message)
		}
		a.wantHeader(t, "Allow", "GET, HEAD")
	}
	wantUnmoved(t, hub.Counts{}, h.Counts())
}

func TestTagsComeInPagesWhoseLinksPointHere(t *testing.T) {
	// The upstream's own pages are of another size.
	h := hub.New(t, hub.Options{PageSize: 4})
	p := proxy.New(t, h)
	var all []string
	for n := range 11 {
		tag := fmt.Sprintf("v%02d", n)
		all = append(all, tag)
		h.Push("library/app", tag, image.New(image.Options{}))
	}
	list := func(path string) ([]string, string) {
		t.Helper()
		a := get(t, p, path)
		var body struct {
			Name string
			Tags []string
		}
		if err := json.Unmarshal(a.body, &body); err != nil || body.Tags == nil {
			t.Fatalf("want a list of tags, got %s", a)
		}
		if body.Name != "library/app" && body.Name != "docker.io/library/app" {
			t.Errorf("%s: name: got %q", path, body.Name)
		}
		return body.Tags, next(t, a)
	}
	for _, n := range []int{0, 1, 3, 5, 11, 100} {
		var got []string
		path := fmt.Sprintf("/v2/library/app/tags/list?n=%d", n)
		if n == 0 {
			path = "/v2/library/app/tags/list"
		}
		for pages := 0; path != "" && pages < 20; pages++ {
			tags, link := list(path)
			if n > 0 && len(tags) > n {
				t.Errorf("n=%d: got a page of %d", n, len(tags))
			}
			got, path = append(got, tags...), link
		}
		if !slices.Equal(got, all) {
			t.Errorf("n=%d:\nwant %v\ngot  %v", n, all, got)
		}
	}
	if tags, link := list("/v2/library/app/tags/list?n=0"); len(tags) != 0 || link != "" {
		t.Errorf("n=0: want none, got %v and %q", tags, link)
	}
	if tags, _ := list("/v2/library/app/tags/list?n=2&last=v03x"); !slices.Equal(tags, []string{"v04", "v05"}) {
		t.Errorf("after an unknown last: want v04 v05, got %v", tags)
	}
	if tags, _ := list("/v2/docker.io/library/app/tags/list?n=2"); !slices.Equal(tags, all[:2]) {
		t.Errorf("by prefix: want %v, got %v", all[:2], tags)
	}
	// Stale when the upstream is gone.
	h.Down()
	if tags, _ := list("/v2/library/app/tags/list?n=100"); !slices.Equal(tags, all) {
		t.Errorf("upstream down: want %v, got %v", all, tags)
	}
}

// next gives the path that an answer's Link header leads to, if it has one.
func next(t *testing.T, a answer) string {
	t.Helper()
	link := a.header.Get("Link")
	if link == "" {
		return ""
	}
	target, params, ok := strings.Cut(strings.TrimPrefix(link, "<"), ">")
	if !ok || !strings.Contains(params, `rel="next"`) {
		t.Fatalf("%s: no next in Link %q", a.url, link)
	}
	here, err := url.Parse("http://proxy" + a.url)
	if err != nil {
		t.Fatal(err)
	}
	u, err := here.Parse(target)
	if err != nil {
		t.Fatalf("Link %q: %v", link, err)
	}
	if u.Host != "proxy" {
		t.Fatalf("Link %q leads away", link)
	}
	return u.RequestURI()
}

func TestReferrersAreListedByAPIAndByTag(t *testing.T) {
	for _, api := range []bool{true, false} {
		t.Run(fmt.Sprintf("upstream has the API: %v", api), func(t *testing.T) {
			h := hub.New(t, hub.Options{PageSize: 2})
			p := proxy.New(t, h)
			i := image.New(image.Options{Seed: 1})
			subject := i.Descriptor()
			h.Push("library/app", "1.0", i)
			want := map[digest.Digest]string{}
			for n := range uint64(5) {
				kind := "application/x.sbom"
				if n == 3 {
					kind = "application/x.sig"
				}
				a := image.Artifact(n, kind, 100, &subject)
				h.Push("library/app", "", a)
				want[a.Digest] = kind
			}
			if !api {
				h.UseReferrersAPI(false)
				h.TagReferrers("library/app", subject.Digest)
			}
			base := "/v2/library/app/referrers/" + subject.Digest.String()
			list := func(path string) map[digest.Digest]string {
				t.Helper()
				got := map[digest.Digest]string{}
				for pages := 0; path != "" && pages < 20; pages++ {
					a := get(t, p, path)
					a.wantHeader(t, "Content-Type", v1.MediaTypeImageIndex)
					if strings.Contains(path, "artifactType") {
						a.wantHeader(t, "OCI-Filters-Applied", "artifactType")
					}
					var x v1.Index
					if err := json.Unmarshal(a.body, &x); err != nil || x.Manifests == nil {
						t.Fatalf("want an index, got %s", a)
					}
					for _, m := range x.Manifests {
						got[m.Digest] = m.ArtifactType
					}
					path = next(t, a)
				}
				return got
			}
			if got := list(base); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("all:\nwant %v\ngot  %v", want, got)
			}
			got := list(base + "?artifactType=application/x.sig")
			if len(got) != 1 {
				t.Errorf("filtered: want 1, got %v", got)
			}
			for d, kind := range got {
				if kind != "application/x.sig" || want[d] != kind {
					t.Errorf("filtered: got %s of type %s", d, kind)
				}
			}
			if got := list("/v2/library/app/referrers/" + digest.FromString("nobody's").String()); len(got) != 0 {
				t.Errorf("of nothing: got %v", got)
			}
			h.Down()
			if got := list(base); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("upstream down:\nwant %v\ngot  %v", want, got)
			}
		})
	}
}

func TestTheCatalogListsWhatIsCached(t *testing.T) {
	h, p := start(t, "")
	for n, name := range []string{"library/b", "library/a", "org/c", "org/not-pulled"} {
		h.Push(name, "1", image.New(image.Options{Seed: uint64(n)}))
	}
	for _, name := range []string{"library/b", "library/a", "org/c"} {
		get(t, p, "/v2/"+name+"/manifests/1")
	}
	h.Down()
	var all []string
	path := "/v2/_catalog?n=2"
	for pages := 0; path != "" && pages < 10; pages++ {
		a := get(t, p, path)
		var body struct{ Repositories []string }
		if err := json.Unmarshal(a.body, &body); err != nil || len(body.Repositories) > 2 {
			t.Fatalf("want at most 2 repositories, got %s", a)
		}
		all = append(all, body.Repositories...)
		path = next(t, a)
	}
	got := strings.Join(all, " ")
	for _, name := range []string{"library/a", "library/b", "org/c"} {
		if !strings.Contains(got, name) {
			t.Errorf("want %s in the catalog, got %s", name, got)
		}
	}
	if strings.Contains(got, "not-pulled") || len(all) != 3 {
		t.Errorf("want 3 repositories, got %s", got)
	}
	if !slices.IsSorted(all) {
		t.Errorf("want them sorted, got %s", got)
	}
}

func TestARequestSaysWhichUpstreamItMeans(t *testing.T) {
	one, two := hub.New(t, hub.Options{}), hub.New(t, hub.Options{})
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": one, "two.example.test:8443": two}})
	a, b := image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
	// The same name at both: whoever keys by name alone is found out.
	one.Push("library/app", "1", a)
	two.Push("library/app", "1", b)
	two.Push("app", "1", b)
	for _, c := range []struct {
		path    string
		headers []string
		want    *image.Image
		ns      string
	}{
		{"/v2/library/app/manifests/1", nil, a, ""},
		{"/v2/app/manifests/1", nil, a, ""}, // library/ is understood
		{"/v2/library/app/manifests/1?ns=docker.io", nil, a, "docker.io"},
		{"/v2/library/app/manifests/1?ns=index.docker.io", nil, a, "index.docker.io"},
		{"/v2/library/app/manifests/1?ns=two.example.test:8443", nil, b, "two.example.test:8443"},
		{"/v2/library/app/manifests/1?ns=two.example.test%3A8443", nil, b, "two.example.test:8443"},
		{"/v2/docker.io/library/app/manifests/1", nil, a, ""},
		{"/v2/docker.io/app/manifests/1", nil, a, ""},
		{"/v2/two.example.test:8443/library/app/manifests/1", nil, b, ""},
		{"/v2/two.example.test:8443/app/manifests/1", nil, b, ""},
		{"/v2/library/app/manifests/1", []string{"Host", "two.example.test:8443"}, b, ""},
		{"/v2/library/app/manifests/1", []string{"Host", "anything.example.test"}, a, ""},
		{"/v2/library/app/manifests/1?ns=docker.io", []string{"Host", "two.example.test:8443"}, a, "docker.io"},
	} {
		got := get(t, p, c.path, c.headers...)
		wantBytes(t, fmt.Sprint(c.path, c.headers), c.want.Bytes(), got.body)
		got.wantHeader(t, "OCI-Namespace", c.ns)
		if cs := got.header.Get("Cache-Status"); cs == "" {
			t.Errorf("%s: no Cache-Status", c.path)
		}
	}
}

func TestAnUpstreamThatIsNotConfiguredIsRefused(t *testing.T) {
	h, p := start(t, "")
	for _, path := range []string{
		"/v2/library/app/manifests/1?ns=evil.example.test",
		"/v2/library/app/manifests/1?ns=127.0.0.1:1",
		"/v2/library/app/blobs/" + digest.FromString("x").String() + "?ns=evil.example.test",
		"/v2/library/app/tags/list?ns=evil.example.test",
	} {
		a := ask(t, p, "GET", path)
		message := a.wantError(t, 404, "NAME_UNKNOWN")
		if !strings.Contains(message+string(a.body), "docker.io") {
			t.Errorf("%s: want the configured upstreams named, got %s", path, a)
		}
	}
	if c := h.Counts(); c.ManifestGets+c.BlobGets+c.Tags != 0 {
		t.Errorf("the default upstream was asked: %+v", c)
	}
}

func TestAClientThatTakesNoIndexGetsTheDefaultPlatform(t *testing.T) {
	h, p := start(t, believing+"\nplatforms: [linux/arm64, linux/amd64]\n")
	for _, flavour := range []image.Flavour{image.Docker, image.OCI} {
		i := image.Index(image.Options{Seed: 1, Flavour: flavour})
		h.Push("library/app", string(flavour), i)
		path := "/v2/library/app/manifests/" + string(flavour)
		arm64 := i.Platforms["linux/arm64"]
		for accept, want := range map[string]digest.Digest{
			"":    i.Digest,
			"*/*": i.Digest,
			v1.MediaTypeImageIndex + ", " + oci.MediaTypeDockerManifestList:      i.Digest,
			v1.MediaTypeImageManifest + ", " + oci.MediaTypeDockerManifest:       arm64,
			i.Manifests[arm64].MediaType + ";q=0.5":                              arm64,
			oci.MediaTypeDockerManifest + "," + oci.MediaTypeDockerSchema1Signed: arm64,
			"application/vnd.example.other+json":                                 i.Digest,
		} {
			var headers []string
			if accept != "" {
				headers = []string{"Accept", accept}
			}
			a := get(t, p, path, headers...)
			wantBytes(t, fmt.Sprintf("%s, Accept %q", flavour, accept), i.Manifests[want].Bytes, a.body)
			a.wantHeader(t, "Docker-Content-Digest", want.String(), "Content-Type", i.Manifests[want].MediaType,
				"ETag", `"`+want.String()+`"`)
			if want == arm64 && !strings.Contains(a.header.Get("Vary"), "Accept") {
				t.Errorf("Accept %q: want Vary: Accept, got %q", accept, a.header.Get("Vary"))
			}
			head := ask(t, p, "HEAD", path, headers...)
			head.wantHeader(t, "Docker-Content-Digest", want.String(), "Content-Length", fmt.Sprint(len(i.Manifests[want].Bytes)))
		}
		// By digest it is what the digest says.
		a := get(t, p, "/v2/library/app/manifests/"+i.Digest.String(), "Accept", v1.MediaTypeImageIndex)
		wantBytes(t, "index by digest", i.Bytes(), a.body)
	}
}

func TestAPlatformThatIsNotThereIsSaidWithThoseThatAre(t *testing.T) {
	h, p := start(t, "platforms: [linux/riscv64]")
	h.Push("library/app", "1", image.Index(image.Options{}))
	a := ask(t, p, "GET", "/v2/library/app/manifests/1", "Accept", oci.MediaTypeDockerManifest+", "+v1.MediaTypeImageManifest)
	message := a.wantError(t, 404, "MANIFEST_UNKNOWN")
	for _, platform := range image.Platforms {
		if !strings.Contains(message, platform) {
			t.Errorf("want %s named, got %q", platform, message)
		}
	}
}

func TestAStrayAuthorizationIsIgnored(t *testing.T) {
	h, p := start(t, "")
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	for _, value := range []string{"Bearer stray-token", "Basic c3RyYXk6dG9rZW4=", "nonsense"} {
		a := get(t, p, "/v2/library/app/manifests/1.0", "Authorization", value)
		wantBytes(t, value, i.Bytes(), a.body)
		layer := i.Layers("")[0].Digest
		a = get(t, p, "/v2/library/app/blobs/"+layer.String(), "Authorization", value)
		wantBytes(t, value, i.Blobs[layer], a.body)
	}
	for _, r := range h.Requests() {
		for _, v := range r.Header.Values("Authorization") {
			if strings.Contains(v, "stray") || strings.Contains(v, "c3RyYXk") || v == "nonsense" {
				t.Errorf("the client's Authorization reached the upstream: %s %s", r.Method, r.URL)
			}
		}
	}
	if h.Counts().Leaks != 0 {
		t.Errorf("an Authorization header reached the CDN")
	}
}

func TestSHA512ContentIsServedByItsDigest(t *testing.T) {
	h, p := start(t, "")
	i := image.New(image.Options{Seed: 1, Algorithm: digest.SHA512, Layers: []image.Layer{{Size: 100}, {Size: 300 << 10}}})
	h.Push("library/app", "512", i)
	pullRaw(t, p, "library/app", i)
	a := get(t, p, "/v2/library/app/manifests/512")
	wantBytes(t, "by tag", i.Bytes(), a.body)
	before := h.Counts()
	h.Down()
	pullRaw(t, p, "library/app", i)
	wantUnmoved(t, before, h.Counts())
}

func TestRepositoriesMayBeCalledLikeThePathsParts(t *testing.T) {
	h, p := start(t, "")
	for n, name := range []string{"a/manifests", "manifests/manifests", "blobs/b", "tags/list", "app/v2/referrers/x", "library/a__b--c.d"} {
		i := image.New(image.Options{Seed: uint64(n)})
		h.Push(name, "latest", i)
		a := get(t, p, "/v2/"+name+"/manifests/latest")
		wantBytes(t, name, i.Bytes(), a.body)
		layer := i.Layers("")[0].Digest
		a = get(t, p, "/v2/"+name+"/blobs/"+layer.String())
		wantBytes(t, name, i.Blobs[layer], a.body)
		get(t, p, "/v2/"+name+"/tags/list")
	}
}

func TestOneRepositorysDigestsAreNoKeyToAnothers(t *testing.T) {
	h, p := start(t, "")
	i := image.New(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	h.Push("library/other", "1.0", image.New(image.Options{Seed: 2}))
	pullRaw(t, p, "library/app", i)
	layer := i.Layers("")[0].Digest.String()
	ask(t, p, "GET", "/v2/library/other/blobs/"+layer).wantError(t, http.StatusNotFound, "BLOB_UNKNOWN")
	ask(t, p, "GET", "/v2/library/other/manifests/"+i.Digest.String()).wantError(t, http.StatusNotFound, "MANIFEST_UNKNOWN")
}
