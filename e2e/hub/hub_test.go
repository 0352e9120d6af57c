package hub_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
)

// client asks a hub, with a token where it wants one.
type client struct {
	t              *testing.T
	h              *hub.Hub
	user, password string
}

func (c client) do(method, target string, header ...string) (*http.Response, []byte, error) {
	c.t.Helper()
	if strings.HasPrefix(target, "/") {
		target = c.h.URL() + target
	}
	req, err := http.NewRequest(method, target, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.h.Client().Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res, b, err
}

func (c client) must(method, target string, header ...string) (*http.Response, []byte) {
	c.t.Helper()
	res, b, err := c.do(method, target, header...)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, target, err)
	}
	return res, b
}

// token gets a token for pulling from a repository.
func (c client) token(repo string) string {
	c.t.Helper()
	q := url.Values{"service": {"registry.docker.io"}, "scope": {"repository:" + repo + ":pull"}}
	req, err := http.NewRequest(http.MethodGet, c.h.Realm()+"?"+q.Encode(), nil)
	if err != nil {
		c.t.Fatal(err)
	}
	if c.user != "" {
		req.SetBasicAuth(c.user, c.password)
	}
	res, err := c.h.Client().Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	var a struct {
		Token     string `json:"token"`
		Access    string `json:"access_token"`
		ExpiresIn int    `json:"expires_in"`
	}
	if err := json.NewDecoder(res.Body).Decode(&a); err != nil {
		c.t.Fatal(err)
	}
	if a.Token == "" || a.Token != a.Access || a.ExpiresIn != 300 {
		c.t.Fatalf("want a token twice and 300 s, got %+v", a)
	}
	return "Bearer " + a.Token
}

func start(t *testing.T, o hub.Options) client { return client{t: t, h: hub.New(t, o)} }

func wantStatus(t *testing.T, res *http.Response, want int) {
	t.Helper()
	if res.StatusCode != want {
		t.Fatalf("%s %s: want %d, got %s", res.Request.Method, res.Request.URL, want, res.Status)
	}
}

func TestAPullTakesATokenAndARedirectWithoutIt(t *testing.T) {
	for _, tls := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", tls), func(t *testing.T) {
			c := start(t, hub.Options{TLS: tls})
			i := image.New(image.Options{Seed: 1})
			c.h.Push("library/app", "1.0", i)
			layer := i.Layers("")[0]

			res, _ := c.must("GET", "/v2/library/app/manifests/1.0")
			wantStatus(t, res, 401)
			want := fmt.Sprintf(`Bearer realm=%q,service="registry.docker.io",scope="repository:library/app:pull"`, c.h.Realm())
			if got := res.Header.Get("WWW-Authenticate"); got != want {
				t.Errorf("challenge:\nwant %s\ngot  %s", want, got)
			}

			token := c.token("library/app")
			res, b := c.must("GET", "/v2/library/app/manifests/1.0", "Authorization", token)
			wantStatus(t, res, 200)
			if !bytes.Equal(b, i.Bytes()) || res.Header.Get("Docker-Content-Digest") != i.Digest.String() {
				t.Errorf("want manifest %s, got %s", i.Digest, res.Header.Get("Docker-Content-Digest"))
			}

			res, _ = c.must("GET", "/v2/library/app/blobs/"+layer.Digest.String(), "Authorization", token)
			wantStatus(t, res, 307)
			location := res.Header.Get("Location")
			res, _ = c.must("GET", location, "Authorization", token)
			wantStatus(t, res, 400)
			res, b = c.must("GET", location)
			wantStatus(t, res, 200)
			if !bytes.Equal(b, i.Blobs[layer.Digest]) {
				t.Errorf("the layer is not the layer")
			}
			got := c.h.Counts()
			if got.Leaks != 1 || got.Tokens != 1 || got.ManifestGets != 2 || got.BlobGets != 1 || got.CDNGets != 2 || got.Challenges != 1 || got.CDNBytes != layer.Size {
				t.Errorf("counts: %+v", got)
			}
			if c.h.Sent(layer.Digest) != layer.Size {
				t.Errorf("sent: want %d, got %d", layer.Size, c.h.Sent(layer.Digest))
			}
			if n := len(c.h.Requests()); n != 6 {
				t.Errorf("requests: want 6, got %d", n)
			}
			c.h.ExpireURLs()
			res, _ = c.must("GET", location)
			wantStatus(t, res, 403)
			c.h.ExpireTokens()
			res, _ = c.must("GET", "/v2/library/app/manifests/1.0", "Authorization", token)
			wantStatus(t, res, 401)
			if !strings.Contains(res.Header.Get("WWW-Authenticate"), `error="invalid_token"`) {
				t.Errorf("challenge for an expired token: %s", res.Header.Get("WWW-Authenticate"))
			}
		})
	}
}

func TestAPrivateRepositoryIsForItsUsersOnly(t *testing.T) {
	c := start(t, hub.Options{Users: map[string]string{"alice": "secret", "bob": "b"}})
	c.h.Push("alice/app", "1", image.New(image.Options{}))
	c.h.MakePrivate("alice/app", "alice")
	for _, u := range []struct {
		user, password string
		want           int
	}{{"", "", 401}, {"bob", "b", 401}, {"alice", "secret", 200}} {
		c.user, c.password = u.user, u.password
		res, _ := c.must("HEAD", "/v2/alice/app/manifests/1", "Authorization", c.token("alice/app"))
		if res.StatusCode != u.want {
			t.Errorf("%q: want %d, got %s", u.user, u.want, res.Status)
		}
	}
	res, err := c.h.Client().PostForm(c.h.Realm(), url.Values{"grant_type": {"password"}, "service": {"registry.docker.io"}, "username": {"alice"}, "password": {"wrong"}})
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	wantStatus(t, res, 401)
	res, err = c.h.Client().PostForm(c.h.Realm(), url.Values{"grant_type": {"refresh_token"}, "service": {"registry.docker.io"}, "refresh_token": {c.h.RefreshToken("alice")}})
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	wantStatus(t, res, 200)
}

func TestHeadsAreNoPulls(t *testing.T) {
	c := start(t, hub.Options{Auth: hub.Open})
	c.h.Push("library/app", "1", image.New(image.Options{}))
	c.h.LimitPulls(100, 1, 21600)
	const path = "/v2/library/app/manifests/1"
	for _, s := range []struct {
		method, remaining string
		status            int
	}{
		{"HEAD", "1;w=21600", 200}, {"GET", "0;w=21600", 200}, {"HEAD", "0;w=21600", 200}, {"GET", "0;w=21600", 429},
	} {
		res, b := c.must(s.method, path)
		wantStatus(t, res, s.status)
		if got := res.Header.Get("ratelimit-remaining"); got != s.remaining {
			t.Errorf("%s: remaining: want %s, got %s", s.method, s.remaining, got)
		}
		if got := res.Header.Get("ratelimit-limit"); got != "100;w=21600" {
			t.Errorf("%s: limit: got %s", s.method, got)
		}
		if s.status == 429 && !strings.Contains(string(b), "TOOMANYREQUESTS") {
			t.Errorf("429 says %s", b)
		}
	}
}

func TestRangesAreAnsweredByTheCDN(t *testing.T) {
	c := start(t, hub.Options{Auth: hub.Open, NoCDN: true})
	content := []byte("0123456789")
	d := digest.FromBytes(content)
	c.h.PushBlob("a", d, content)
	for _, s := range []struct {
		ask, body, span string
		status          int
	}{
		{"", "0123456789", "", 200},
		{"bytes=2-4", "234", "bytes 2-4/10", 206},
		{"bytes=7-", "789", "bytes 7-9/10", 206},
		{"bytes=-3", "789", "bytes 7-9/10", 206},
		{"bytes=8-99", "89", "bytes 8-9/10", 206},
		{"bytes=10-", "", "bytes */10", 416},
		{"bytes=-0", "", "bytes */10", 416},
		{"bytes=1-2,4-5", "0123456789", "", 200},
		{"bytes=5-4", "0123456789", "", 200},
		{"lines=1-2", "0123456789", "", 200},
	} {
		res, b := c.must("GET", "/v2/a/blobs/"+d.String(), "Range", s.ask)
		if res.StatusCode != s.status || string(b) != s.body || res.Header.Get("Content-Range") != s.span {
			t.Errorf("%q: want %d %q %q, got %d %q %q", s.ask, s.status, s.span, s.body, res.StatusCode, res.Header.Get("Content-Range"), b)
		}
	}
}

func TestTagsComeInPages(t *testing.T) {
	c := start(t, hub.Options{Auth: hub.Open, PageSize: 3})
	for _, tag := range []string{"e", "b", "a", "d", "c"} {
		c.h.Push("a/b", tag, image.New(image.Options{}))
	}
	for _, s := range []struct{ query, tags, link string }{
		{"", `["a","b","c"]`, `</v2/a/b/tags/list?last=c&n=3>; rel="next"`},
		{"?n=2&last=b", `["c","d"]`, `</v2/a/b/tags/list?last=d&n=2>; rel="next"`},
		{"?n=2&last=bb", `["c","d"]`, `</v2/a/b/tags/list?last=d&n=2>; rel="next"`},
		{"?last=c", `["d","e"]`, ""},
		{"?n=0", `[]`, ""},
	} {
		res, b := c.must("GET", "/v2/a/b/tags/list"+s.query)
		if want := `{"name":"a/b","tags":` + s.tags + `}`; string(b) != want || res.Header.Get("Link") != s.link {
			t.Errorf("%q:\nwant %s %s\ngot  %s %s", s.query, want, s.link, b, res.Header.Get("Link"))
		}
	}
	res, _ := c.must("GET", "/v2/none/tags/list")
	wantStatus(t, res, 404)
}

func TestReferrersComeByAPIOrByTag(t *testing.T) {
	c := start(t, hub.Options{Auth: hub.Open, PageSize: 2})
	i := image.New(image.Options{})
	subject := i.Descriptor()
	c.h.Push("app", "1", i)
	for n := range uint64(3) {
		c.h.Push("app", "", image.Artifact(n, "application/x.sbom", 10, &subject))
	}
	sig := image.Artifact(9, "application/x.sig", 10, &subject)
	c.h.Push("app", "", sig)
	list := func(path string) (v1.Index, *http.Response) {
		res, b := c.must("GET", path)
		wantStatus(t, res, 200)
		var x v1.Index
		if err := json.Unmarshal(b, &x); err != nil {
			t.Fatal(err)
		}
		return x, res
	}
	path := "/v2/app/referrers/" + subject.Digest.String()
	x, res := list(path)
	link := res.Header.Get("Link")
	if len(x.Manifests) != 2 || link == "" {
		t.Fatalf("want 2 and a link, got %d and %q", len(x.Manifests), link)
	}
	if x, res = list(strings.TrimPrefix(link[:strings.Index(link, ">")], "<")); len(x.Manifests) != 2 || res.Header.Get("Link") != "" {
		t.Errorf("page 2: want 2 and no link, got %d and %q", len(x.Manifests), res.Header.Get("Link"))
	}
	x, res = list(path + "?artifactType=application/x.sig")
	if len(x.Manifests) != 1 || x.Manifests[0].Digest != sig.Digest || res.Header.Get("OCI-Filters-Applied") != "artifactType" {
		t.Errorf("filtered: got %+v", x.Manifests)
	}
	c.h.UseReferrersAPI(false)
	res, _ = c.must("GET", path)
	wantStatus(t, res, 404)
	c.h.TagReferrers("app", subject.Digest)
	if x, _ = list("/v2/app/manifests/" + image.ReferrersTag(subject.Digest)); len(x.Manifests) != 4 {
		t.Errorf("by tag: want 4, got %d", len(x.Manifests))
	}
}

func TestAClientThatTakesNoIndexGetsLinuxAMD64(t *testing.T) {
	c := start(t, hub.Options{Auth: hub.Open})
	i := image.Index(image.Options{Flavour: image.Docker})
	c.h.Push("app", "1", i)
	amd64 := i.Platforms["linux/amd64"]
	for accept, want := range map[string]digest.Digest{
		"": i.Digest, "*/*": i.Digest, i.MediaType(): i.Digest,
		i.Manifests[amd64].MediaType: amd64,
	} {
		res, _ := c.must("GET", "/v2/app/manifests/1", "Accept", accept)
		if got := res.Header.Get("Docker-Content-Digest"); got != want.String() {
			t.Errorf("Accept %q: want %s, got %s", accept, want, got)
		}
	}
}

func TestBodyFaults(t *testing.T) {
	content := bytes.Repeat([]byte("x"), 200_000)
	d := digest.FromBytes(content)
	flipped := bytes.Clone(content)
	flipped[150_000] ^= 1
	opened := make(chan struct{})
	close(opened)
	for name, s := range map[string]struct {
		fault  hub.Fault
		body   []byte
		fails  bool
		status int
	}{
		"cut":              {hub.CutAfter(100_000), content[:100_000], true, 200},
		"reset":            {hub.ResetAfter(100_000), nil, true, 200},
		"truncate":         {hub.TruncateAfter(100_000), content[:100_000], false, 200},
		"flip":             {hub.Flip(150_000), flipped, false, 200},
		"stall":            {hub.StallAfter(100_000, opened), content, false, 200},
		"longer":           {hub.WrongLength(5), content, true, 200},
		"shorter":          {hub.WrongLength(-5), content[:199_995], false, 200},
		"more than it has": {hub.Append(3), append(bytes.Clone(content), 0, 0, 0), false, 200},
		"without a length": {hub.NoLength(), content, false, 200},
		"spared":           {hub.CutAfter(0).After(1), content, false, 200},
		"slow":             {hub.Slow(100 << 20), content, false, 200},
		"refused":          {hub.Answer(hub.BlobGet, 503), []byte(`{"errors":[{"code":"UNAVAILABLE","message":"Service Unavailable"}]}` + "\n"), false, 503},
		"too many, plain":  {hub.TooManyRequests(hub.Any), []byte("Too Many Requests (HAP429).\n"), false, 429},
		"for another blob": {hub.CutAfter(0).On(digest.FromString("y")), content, false, 200},
		"elsewhere":        {hub.CutAfter(0).In("b"), content, false, 200},
		"of another kind":  {hub.Answer(hub.Tags, 500), content, false, 200},
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t, hub.Options{Auth: hub.Open, NoCDN: true})
			c.h.PushBlob("a", d, content)
			c.h.Inject(s.fault.Times(1))
			res, b, err := c.do("GET", "/v2/a/blobs/"+d.String())
			if res == nil {
				t.Fatal(err)
			}
			wantStatus(t, res, s.status)
			if (err != nil) != s.fails {
				t.Errorf("error: want %v, got %v", s.fails, err)
			}
			if s.body != nil && !bytes.Equal(b, s.body) {
				t.Errorf("body: want %d bytes %x, got %d bytes %x", len(s.body), sha256.Sum256(s.body), len(b), sha256.Sum256(b))
			}
			c.h.Mend()
			if _, b = c.must("GET", "/v2/a/blobs/"+d.String()); !bytes.Equal(b, content) {
				t.Errorf("the fault has not ended")
			}
		})
	}
}

func TestAnswersCanLackWhatTheyShouldHave(t *testing.T) {
	c := start(t, hub.Options{Auth: hub.Open, NoCDN: true})
	i := image.New(image.Options{})
	c.h.Push("a", "1", i)
	layer := i.Layers("")[0]
	undo := c.h.Inject(hub.NoDigest())
	if res, _ := c.must("HEAD", "/v2/a/manifests/1"); res.Header.Get("Docker-Content-Digest") != "" {
		t.Errorf("the digest is there")
	}
	undo()
	if res, _ := c.must("HEAD", "/v2/a/manifests/1"); res.Header.Get("Docker-Content-Digest") == "" {
		t.Errorf("the digest is still missing")
	}
	undo = c.h.Inject(hub.WrongDigest())
	for _, path := range []string{"manifests/1", "blobs/" + layer.Digest.String()} {
		res, _ := c.must("GET", "/v2/a/"+path)
		if got := res.Header.Get("Docker-Content-Digest"); got == "" || got == i.Digest.String() || got == layer.Digest.String() {
			t.Errorf("%s: want a wrong digest, got %q", path, got)
		}
	}
	undo()
	c.h.Inject(hub.NoLength().Times(1))
	if res, _ := c.must("GET", "/v2/a/blobs/"+layer.Digest.String()); res.ContentLength != -1 {
		t.Errorf("want no Content-Length, got %d", res.ContentLength)
	}
	c.h.Inject(hub.IgnoreRange().Times(1))
	if res, _ := c.must("GET", "/v2/a/blobs/"+layer.Digest.String(), "Range", "bytes=1-2"); res.StatusCode != 200 {
		t.Errorf("want 200 for a range, got %s", res.Status)
	}
	c.h.Inject(hub.Answer(hub.ManifestGet, 429).With("Retry-After", "7").Times(1))
	res, _ := c.must("GET", "/v2/a/manifests/1")
	wantStatus(t, res, 429)
	if res.Header.Get("Retry-After") != "7" {
		t.Errorf("Retry-After: want 7, got %q", res.Header.Get("Retry-After"))
	}
}

func TestHoldEndsWithItsChannel(t *testing.T) {
	c := start(t, hub.Options{Auth: hub.Open})
	until := make(chan struct{})
	c.h.Inject(hub.Hold(hub.Ping, until))
	done := make(chan int, 1)
	go func() {
		res, err := c.h.Client().Get(c.h.URL() + "/v2/")
		if err != nil {
			done <- 0
			return
		}
		res.Body.Close()
		done <- res.StatusCode
	}()
	for c.h.Counts().Pings == 0 { // until it is there
		time.Sleep(time.Millisecond)
	}
	select {
	case s := <-done:
		t.Fatalf("answered %d before the channel was closed", s)
	default:
	}
	close(until)
	if s := <-done; s != 200 {
		t.Errorf("want 200, got %d", s)
	}
}

func TestDownRefusesAndUpReturnsToTheSameAddress(t *testing.T) {
	c := start(t, hub.Options{Auth: hub.Open})
	was := c.h.URL()
	c.h.Down()
	if _, _, err := c.do("GET", "/v2/"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("want connection refused, got %v", err)
	}
	if err := c.h.Up(); err != nil {
		t.Fatal(err)
	}
	if c.h.URL() != was {
		t.Errorf("address: want %s, got %s", was, c.h.URL())
	}
	res, _ := c.must("GET", "/v2/")
	wantStatus(t, res, 200)
}

func TestABlackHoleNeverAnswers(t *testing.T) {
	c := start(t, hub.Options{Auth: hub.Open})
	c.h.BlackHole(hub.Registry)
	hc := c.h.Client()
	hc.Timeout = 50 * time.Millisecond
	if res, err := hc.Get(c.h.URL() + "/v2/"); err == nil {
		res.Body.Close()
		t.Errorf("want a timeout, got %s", res.Status)
	}
	if n := c.h.Counts().Swallowed; n == 0 {
		t.Error("want the request counted as swallowed, got none")
	}
	if err := c.h.Up(); err != nil {
		t.Fatal(err)
	}
	res, _ := c.must("GET", "/v2/")
	wantStatus(t, res, 200)
}

func TestTLSCanBreakAndBeMended(t *testing.T) {
	c := start(t, hub.Options{Auth: hub.Open, TLS: true})
	c.must("GET", "/v2/")
	c.h.BreakTLS(hub.Registry)
	if res, _, err := c.do("GET", "/v2/"); err == nil || !strings.Contains(err.Error(), "tls") {
		t.Errorf("want a failed handshake, got %v, %v", res, err)
	}
	if err := c.h.Up(); err != nil {
		t.Fatal(err)
	}
	c.must("GET", "/v2/")
}

func TestWhatIsPushedCanBePulled(t *testing.T) {
	c := start(t, hub.Options{Auth: hub.Open, NoCDN: true})
	content := []byte("pushed in two")
	d := digest.FromBytes(content)
	send := func(method, target string, body []byte, header ...string) *http.Response {
		t.Helper()
		req, err := http.NewRequest(method, c.h.URL()+target, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		res, err := c.h.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res
	}
	res := send("POST", "/v2/a/blobs/uploads/", nil)
	wantStatus(t, res, 202)
	res = send("PATCH", res.Header.Get("Location"), content[:6], "Content-Range", "0-5")
	wantStatus(t, res, 202)
	res = send("PUT", res.Header.Get("Location")+"?digest="+d.String(), content[6:])
	wantStatus(t, res, 201)
	if _, b := c.must("GET", res.Header.Get("Location")); !bytes.Equal(b, content) {
		t.Errorf("blob: want %q, got %q", content, b)
	}
	wantStatus(t, send("POST", "/v2/a/blobs/uploads/?digest="+d.String(), []byte("other")), 400)
	i := image.New(image.Options{})
	wantStatus(t, send("PUT", "/v2/a/manifests/1", i.Bytes(), "Content-Type", i.MediaType()), 201)
	res, b := c.must("GET", "/v2/a/manifests/1")
	if !bytes.Equal(b, i.Bytes()) || res.Header.Get("Content-Type") != i.MediaType() {
		t.Errorf("manifest: got %s %s", res.Header.Get("Content-Type"), b)
	}
}

func TestCountersStartAnew(t *testing.T) {
	c := start(t, hub.Options{Auth: hub.Open})
	c.must("GET", "/v2/")
	c.h.ResetCounts()
	if got := c.h.Counts(); !reflect.DeepEqual(got, hub.Counts{}) || len(c.h.Requests()) != 0 {
		t.Errorf("want nothing, got %+v", got)
	}
}
