package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// tagsIn gives the tags of an answer.
func tagsIn(t *testing.T, a answer) []string {
	t.Helper()
	var list struct{ Tags []string }
	if err := json.Unmarshal(a.body, &list); err != nil {
		t.Fatalf("%v: %s", err, a)
	}
	return list.Tags
}

// referrersIn gives the digests of an answer, sorted.
func referrersIn(t *testing.T, a answer) []string {
	t.Helper()
	var list v1.Index
	if err := json.Unmarshal(a.body, &list); err != nil {
		t.Fatalf("%v: %s", err, a)
	}
	digests := []string{}
	for _, d := range list.Manifests {
		digests = append(digests, d.Digest.String())
	}
	slices.Sort(digests)
	return digests
}

// subject pushes an image with three referrers and gives the path of their list, and
// their digests, sorted.
func subject(h *hub.Hub, repo string) (i *image.Image, path string, want []string) {
	i = image.New(image.Options{Seed: 20})
	of := i.Descriptor()
	h.Push(repo, "1.0", i)
	for n, kind := range []string{"application/x.sbom", "application/x.sig", "application/x.sbom"} {
		a := image.Artifact(uint64(30+n), kind, 100, &of)
		h.Push(repo, "", a)
		want = append(want, a.Digest.String())
	}
	slices.Sort(want)
	return i, "/v2/" + repo + "/referrers/" + i.Digest.String(), want
}

// Every way in which registries write the link to the next page leads to the whole list.
func TestListsAreWholeHoweverTheirPagesAreLinked(t *testing.T) {
	for name, q := range map[string]hub.Fault{
		"as the specification says":   hub.PagesOf(2),
		"without angle brackets":      hub.BareLinks(),
		"without rel":                 hub.UnrelatedLinks(),
		"with the registry's host":    hub.AbsoluteLinks(),
		"with an internal host":       hub.InternalLinks(),
		"relative to where it is now": hub.RedirectLists(),
		"on one page between maps":    hub.GoogleTags(),
	} {
		t.Run(name, func(t *testing.T) {
			h, p := start(t, believing)
			want := manyTags(h, "library/app")
			_, referrers, wantReferrers := subject(h, "library/app")
			want = append([]string{"1.0"}, want...)
			h.Inject(q)
			if got := tagsIn(t, get(t, p, "/v2/library/app/tags/list")); !slices.Equal(got, want) {
				t.Errorf("want the tags %v, got %v", want, got)
			}
			if got := referrersIn(t, get(t, p, referrers)); !slices.Equal(got, wantReferrers) {
				t.Errorf("want the referrers %v, got %v", wantReferrers, got)
			}
			if n := h.Counts().Leaks; n != 0 {
				t.Errorf("%d requests carried a token to another host", n)
			}
		})
	}
}

// A registry behind a proxy that adds a prefix does not know that prefix.
func TestListsAreWholeWhereTheirLinksLackAPrefix(t *testing.T) {
	h := hub.New(t, hub.Options{Auth: hub.Open})
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h},
		Config: "upstreams: {docker.io: {endpoints: [\"" + h.URL() + "/v2/proxy\"]}}"})
	want := manyTags(h, "proxy/library/app")
	i, _, wantReferrers := subject(h, "proxy/library/other")
	h.Inject(hub.LinksWithout("/proxy"))
	if got := tagsIn(t, get(t, p, "/v2/library/app/tags/list")); !slices.Equal(got, want) {
		t.Errorf("want the tags %v, got %v", want, got)
	}
	if got := referrersIn(t, get(t, p, "/v2/library/other/referrers/"+i.Digest.String())); !slices.Equal(got, wantReferrers) {
		t.Errorf("want the referrers %v, got %v", wantReferrers, got)
	}
}

// A list of which a page cannot be had is no list: neither a shorter one, nor none.
func TestAListThatBreaksOffIsServedStaleOrNotAtAll(t *testing.T) {
	html := func(status int) hub.Fault {
		return hub.Answer("list", status).With("Content-Type", "text/html").Saying("<html>it works</html>")
	}
	for name, c := range map[string]struct {
		q      hub.Fault
		status int
	}{
		"404":             {hub.Answer("list", 404).OnLaterPages(), 502},
		"404 of a name":   {hub.Answer("list", 404).Saying(`{"errors":[{"code":"NAME_UNKNOWN","message":"no"}]}`).OnLaterPages(), 502},
		"404 of a page":   {html(404).OnLaterPages(), 502},
		"400":             {hub.Answer("list", 400).Saying(`{"errors":[{"code":"NAME_INVALID","message":"no"}]}`).OnLaterPages(), 502},
		"401":             {hub.Answer("list", 401).OnLaterPages(), 502},
		"403":             {hub.Answer("list", 403).OnLaterPages(), 502},
		"405":             {hub.Answer("list", 405).OnLaterPages(), 502},
		"410":             {hub.Answer("list", 410).OnLaterPages(), 502},
		"500":             {hub.Answer("list", 500).OnLaterPages(), 502},
		"501":             {hub.Answer("list", 501).OnLaterPages(), 502},
		"204":             {hub.Answer("list", 204).Saying("").OnLaterPages(), 502},
		"200 with HTML":   {html(200).OnLaterPages(), 502},
		"200 and nothing": {hub.Answer("list", 200).Saying("").OnLaterPages(), 502},
		"200 with errors": {hub.Answer("list", 200).OnLaterPages(), 502},
		"200 cut short":   {hub.Answer("list", 200).Saying(`{"tags":["a"],"manifests":[{"mediaType":"a/b","size":1,`).OnLaterPages(), 502},
		"a loop":          {hub.LinkLoop(), 502},
		"a spiral":        {hub.LinkSpiral(), 502},
		"a broken link":   {hub.BrokenLink(), 502},
	} {
		t.Run(name, func(t *testing.T) {
			h, p := start(t, doubting)
			tags := append([]string{"1.0"}, manyTags(h, "library/app")...)
			_, referrers, wantReferrers := subject(h, "library/app")
			_, cold, _ := subject(h, "library/cold")
			pages := h.Inject(hub.PagesOf(2))
			get(t, p, "/v2/library/app/tags/list")
			get(t, p, referrers)
			if strings.HasPrefix(name, "a ") {
				pages()
			}
			h.Inject(c.q)
			for _, path := range []string{"/v2/library/cold/tags/list", cold} {
				if path != cold {
					manyTags(h, "library/cold")
				}
				ask(t, p, http.MethodGet, path).wantError(t, c.status, "UNAVAILABLE")
				ask(t, p, http.MethodGet, path).wantError(t, c.status, "UNAVAILABLE") // nothing was stored
			}
			if got := tagsIn(t, get(t, p, "/v2/library/app/tags/list")); !slices.Equal(got, tags) {
				t.Errorf("want the cached tags %v, got %v", tags, got)
			}
			if got := referrersIn(t, get(t, p, referrers)); !slices.Equal(got, wantReferrers) {
				t.Errorf("want the cached referrers %v, got %v", wantReferrers, got)
			}
			h.Mend()
			until(t, "the list to be had again", func() bool {
				return ask(t, p, http.MethodGet, "/v2/library/cold/tags/list").status == http.StatusOK
			})
		})
	}
}

// What no registry sends instead of a list of tags, though its status is 200, replaces no list.
func TestOnlyAListOfTagsIsTakenForOne(t *testing.T) {
	for name, body := range map[string]string{
		"HTML": "<html></html>", "nothing": "", "errors": `{"errors":[{"code":"UNKNOWN","message":"no"}]}`, "another JSON": `["a"]`, "null": "null",
		"an object of tags": `{"name":"library/app","tags":{"a":1}}`,
	} {
		t.Run(name, func(t *testing.T) {
			h, p := start(t, doubting)
			want := manyTags(h, "library/app")
			get(t, p, "/v2/library/app/tags/list")
			h.Inject(hub.Answer(hub.Tags, 200).Saying(body))
			if got := tagsIn(t, get(t, p, "/v2/library/app/tags/list")); !slices.Equal(got, want) {
				t.Errorf("want the cached tags, got %v", got)
			}
			h.Push("library/cold", "1", image.New(image.Options{}))
			ask(t, p, http.MethodGet, "/v2/library/cold/tags/list").wantError(t, 502, "UNAVAILABLE")
		})
	}
}

// odd are answers by which registries say that they have no referrers API.
var odd = map[string]hub.Fault{
	"404":                hub.ReferrersAnswer(404, "text/plain; charset=utf-8", "404 page not found\n"),
	"405":                hub.Answer(hub.Referrers, 405),
	"501":                hub.Answer(hub.Referrers, 501),
	"400":                hub.Answer(hub.Referrers, 400),
	"400 of a name":      hub.ReferrersAnswer(400, "application/json", `{"errors":[{"code":"NAME_INVALID","message":"no"}]}`),
	"406":                hub.ReferrersAnswer(406, "application/json", `{"errors":[{"status":406,"message":"Not Acceptable"}]}`),
	"401":                hub.Answer(hub.Referrers, 401),
	"403":                hub.Answer(hub.Referrers, 403),
	"403 HTML":           hub.ReferrersAnswer(403, "text/html", "<html>no</html>"),
	"410":                hub.Answer(hub.Referrers, 410),
	"415":                hub.Answer(hub.Referrers, 415),
	"422":                hub.Answer(hub.Referrers, 422),
	"200 HTML":           hub.ReferrersAnswer(200, "text/html", "<html>sign in</html>"),
	"200 empty":          hub.ReferrersAnswer(200, "application/json", ""),
	"204":                hub.ReferrersAnswer(204, "application/json", ""),
	"200 other JSON":     hub.ReferrersAnswer(200, "application/json", `{"status":"ok"}`),
	"200 {}":             hub.ReferrersAnswer(200, "application/json", `{}`),
	"200 null":           hub.ReferrersAnswer(200, "application/json", `null`),
	"200 []":             hub.ReferrersAnswer(200, "application/json", `[]`),
	"200 an image":       hub.ReferrersAnswer(200, v1.MediaTypeImageManifest, `{"schemaVersion":2,"config":{},"layers":[]}`),
	"200 errors":         hub.ReferrersAnswer(200, "application/json", `{"errors":[{"code":"UNSUPPORTED","message":"no"}]}`),
	"200 ORAS' old list": hub.ReferrersAnswer(200, "application/json", `{"references":[]}`),
}

func TestReferrersFallBackToTheTagWhateverTheAPIAnswers(t *testing.T) {
	all := map[string]hub.Fault{"500": hub.Answer(hub.Referrers, 500), "502": hub.Answer(hub.Referrers, 502), "503": hub.Answer(hub.Referrers, 503)}
	for name, q := range odd {
		all[name] = q
	}
	h, p := start(t, believing)
	for name, q := range all {
		t.Run(name, func(t *testing.T) {
			h.Mend()
			repo := "library/tagged-" + digest.FromString(name).Encoded()[:12]
			i, path, want := subject(h, repo)
			h.TagReferrers(repo, i.Digest)
			h.Inject(q)
			a := get(t, p, path)
			if got := referrersIn(t, a); !slices.Equal(got, want) {
				t.Errorf("want %v, got %s", want, a)
			}
			a.wantHeader(t, "Content-Type", v1.MediaTypeImageIndex)
		})
		t.Run(name+", no tag", func(t *testing.T) {
			h.Mend()
			repo := "library/bare-" + digest.FromString(name).Encoded()[:12]
			_, path, _ := subject(h, repo)
			h.Inject(q)
			a := ask(t, p, http.MethodGet, path)
			if name[0] == '5' && name != "501" {
				a.wantError(t, a.status, "UNAVAILABLE") // nobody has said that there are none
				return
			}
			if a.status != 200 || len(referrersIn(t, a)) != 0 {
				t.Errorf("want no referrers, got %s", a)
			}
		})
		t.Run(name+", cached before", func(t *testing.T) {
			if name == "404" || name == "405" || name == "501" {
				t.Skip("the registry says that it has no such API, and that there is no such tag")
			}
			h, p := start(t, doubting)
			_, path, want := subject(h, "library/app")
			get(t, p, path)
			h.Inject(q)
			for range 2 {
				if got := referrersIn(t, get(t, p, path)); !slices.Equal(got, want) {
					t.Errorf("want the cached list %v, got %v", want, got)
				}
			}
		})
	}
}

// A list that breaks off is a failure, also on its first page: what the tag has, or lacks,
// is no answer then.
func TestReferrersThatBreakOffOnTheFirstPageFail(t *testing.T) {
	for name, q := range map[string]hub.Fault{
		"cut short":     hub.ReferrersAnswer(200, v1.MediaTypeImageIndex, `{"schemaVersion":2,"manifests":[{"mediaType":"a/b",`),
		"a broken link": hub.BrokenLink(),
	} {
		h, p := start(t, believing)
		_, path, _ := subject(h, "library/app")
		h.Inject(q)
		if a := ask(t, p, http.MethodGet, path); a.status != 502 {
			t.Errorf("%s: want 502, got %s", name, a)
		}
	}
}

// The two fail: so nothing is known.
func TestReferrersFailIfTheAPIAndTheTagFail(t *testing.T) {
	for _, status := range []int{404, 406, 500} {
		h, p := start(t, believing)
		_, path, _ := subject(h, "library/app")
		h.Inject(hub.Answer(hub.Referrers, status))
		h.Inject(hub.Answer(hub.ManifestGet, 500))
		ask(t, p, http.MethodGet, path).wantError(t, 502, "UNAVAILABLE")
	}
}

// A login that the referrers API asks for is given before anything else is tried.
func TestReferrersOfAPrivateImageAreAskedForWithTheLogin(t *testing.T) {
	for name, o := range map[string]hub.Options{
		"bearer": {Users: map[string]string{"ci": "hunter2"}},
		"basic":  {Auth: hub.Basic, Users: map[string]string{"ci": "hunter2"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := hub.New(t, o)
			_, path, want := subject(h, "org/secret")
			h.MakePrivate("org/secret", "ci")
			p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h},
				Config: "upstreams: {docker.io: {credentials: {username: ci, password: hunter2}}}"})
			before := h.Counts().ManifestGets
			if got := referrersIn(t, get(t, p, path)); !slices.Equal(got, want) {
				t.Errorf("want %v, got %v", want, got)
			}
			if n := h.Counts().ManifestGets - before; n != 0 {
				t.Errorf("%d tags were asked for", n)
			}
		})
	}
}

// At registry.gitlab.com the tag of the schema is the subject itself.
func TestASubjectIsNotItsOwnReferrer(t *testing.T) {
	h, p := start(t, believing)
	h.UseReferrersAPI(false)
	h.Inject(hub.DigestTags())
	index, single := image.Index(image.Options{Seed: 5}), image.New(image.Options{Seed: 6})
	for name, i := range map[string]*image.Image{"index": index, "single": single} {
		h.Push("library/"+name, "1.0", i)
		a := get(t, p, "/v2/library/"+name+"/referrers/"+i.Digest.String())
		if got := referrersIn(t, a); len(got) != 0 {
			t.Errorf("%s: want none, got %s", name, a)
		}
	}
	// A tag that names something else than an index lists nothing either.
	h.Push("library/other", image.ReferrersTag(index.Digest), single)
	h.Push("library/other", "1.0", index)
	h.Mend()
	if a := get(t, p, "/v2/library/other/referrers/"+index.Digest.String()); len(referrersIn(t, a)) != 0 {
		t.Errorf("want none, got %s", a)
	}
}

func TestWarmingFetchesNoPlatformsAsReferrers(t *testing.T) {
	h, p := start(t, "platforms: [linux/amd64]\n"+believing)
	h.UseReferrersAPI(false)
	h.Inject(hub.DigestTags())
	index := image.Index(image.Options{Seed: 5})
	h.Push("library/app", "1.0", index)
	var done warmed
	warm := operate(t, p, "warm", "library/app:1.0", "--with-referrers", "--output", "json")
	warm.want(t, 0)
	warm.json(t, &done)
	if done.Images[0].Referrers != 0 {
		t.Errorf("want no referrers, got %+v", done)
	}
	if got, all := h.Counts().ManifestGets, int64(len(index.Manifests)); got >= all+2 {
		t.Errorf("%d manifests were fetched, and the index has %d", got, all)
	}
}

// Some registries send all that they have on one page.
func TestLongPagesAreRead(t *testing.T) {
	h, p := start(t, believing)
	i := image.Artifact(1, "application/x.test", 100, nil)
	google, signed := []string{}, []string{}
	for n := range 30_000 {
		google = append(google, fmt.Sprintf("v%05d", n))
	}
	for n := range 120_000 {
		signed = append(signed, "sha256-"+digest.FromString(fmt.Sprint(n)).Encoded()+".sig")
	}
	slices.Sort(signed)
	for repo, tags := range map[string][]string{"google": google, "signed": signed} {
		for _, tag := range tags {
			h.Push("library/"+repo, tag, i)
		}
	}
	h.Inject(hub.GoogleTags().In("library/google"))
	for repo, want := range map[string][]string{"google": google, "signed": signed} {
		if got := tagsIn(t, get(t, p, "/v2/library/"+repo+"/tags/list")); !slices.Equal(got, want) {
			t.Errorf("%s: want %d tags, got %d", repo, len(want), len(got))
		}
	}
	// The cached lists are served when the registry is gone, also after a restart.
	h.Down()
	for range 2 {
		for repo, want := range map[string][]string{"google": google, "signed": signed} {
			if got := tagsIn(t, get(t, p, "/v2/library/"+repo+"/tags/list")); !slices.Equal(got, want) {
				t.Errorf("cached: want %d tags of %s, got %d", len(want), repo, len(got))
			}
		}
		p.Restart(t)
	}
}

func TestAPageOfMoreThanThereIsIsTheWholeList(t *testing.T) {
	h, p := start(t, believing)
	want := manyTags(h, "library/app")
	get(t, p, "/v2/library/app/manifests/"+want[0], "Accept", anything)
	for _, n := range []string{"99999999999", "2147483647", "2147483648", "9223372036854775807", "9223372036854775808", "99999999999999999999999999", "00000000000000000000000000000100"} {
		a := get(t, p, "/v2/library/app/tags/list?n="+n)
		a.wantHeader(t, "Link", "")
		if got := tagsIn(t, a); !slices.Equal(got, want) {
			t.Errorf("n=%s: want %v, got %v", n, want, got)
		}
		a = get(t, p, "/v2/_catalog?n="+n)
		a.wantHeader(t, "Link", "")
		if !strings.Contains(string(a.body), "library/app") {
			t.Errorf("n=%s: want the whole catalog, got %s", n, a)
		}
	}
	for _, n := range []string{"-1", "x", "1e9", "+1", "99999999999x", "-99999999999"} {
		ask(t, p, http.MethodGet, "/v2/library/app/tags/list?n="+n).wantError(t, 400, "PAGINATION_NUMBER_INVALID")
		ask(t, p, http.MethodGet, "/v2/_catalog?n="+n).wantError(t, 400, "PAGINATION_NUMBER_INVALID")
	}
}
