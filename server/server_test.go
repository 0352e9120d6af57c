package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/oci"
)

// ask makes a request. header is "Name: value" lines.
func ask(t *testing.T, method, url string, header ...string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	tr := &http.Transport{DisableCompression: true}
	defer tr.CloseIdleConnections()
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: body: %v", method, url, err)
	}
	return resp, body
}

func TestAnswersOfTheAPI(t *testing.T) {
	_, base := start(t, newShelf())
	etag := `"` + string(manifestSum) + `"`
	blob := blobPath(blobDigest)
	blobTag := `"` + string(blobDigest) + `"`
	for _, c := range []struct {
		name, path string
		send       []string
		status     int
		want       map[string]string // headers; "-" for absent
		body       string
	}{
		{"ping", "/v2/", nil, 200, map[string]string{"Content-Type": "application/json", "Cache-Status": "-"}, "{}"},
		{"ping without slash", "/v2", nil, 200, nil, "{}"},
		{"ping with a stray Authorization", "/v2/", []string{"Authorization: Basic eDp5"}, 200, nil, "{}"},
		{"ping with ns", "/v2/?ns=docker.io", nil, 200, map[string]string{"OCI-Namespace": "docker.io"}, "{}"},
		{"manifest by tag", "/v2/library/nginx/manifests/1", nil, 200, map[string]string{
			"Content-Type": v1.MediaTypeImageManifest, "Docker-Content-Digest": string(manifestSum), "ETag": etag,
			"Vary": "-", "Cache-Status": `entrepot; hit; detail="docker.io"`, "OCI-Namespace": "-",
		}, string(manifestBody)},
		{"manifest of a short name", "/v2/nginx/manifests/1", nil, 200, nil, string(manifestBody)},
		{"manifest by digest", "/v2/library/nginx/manifests/" + string(manifestSum), nil, 200, nil, string(manifestBody)},
		{"manifest by ns", "/v2/org/app/manifests/1?ns=ghcr.io", nil, 200, map[string]string{
			"OCI-Namespace": "ghcr.io", "Cache-Status": `entrepot; hit; detail="ghcr.io"`,
		}, string(manifestBody)},
		{"manifest by prefix", "/v2/ghcr.io/org/app/manifests/1", nil, 200, nil, string(manifestBody)},
		{"index by tag", "/v2/nginx/manifests/index", nil, 200, map[string]string{"Vary": "Accept"}, string(manifestBody)},
		{"index by digest", "/v2/index/manifests/" + string(manifestSum), nil, 200, map[string]string{"Vary": "-"}, string(manifestBody)},
		{"negotiated manifest", "/v2/nginx/manifests/chosen", nil, 200, map[string]string{"Vary": "Accept"}, string(manifestBody)},
		{"manifest that the client has", "/v2/nginx/manifests/1", []string{"If-None-Match: " + etag}, 304, map[string]string{
			"ETag": etag, "Docker-Content-Digest": string(manifestSum),
		}, ""},
		{"manifest that the client has, unquoted", "/v2/nginx/manifests/1", []string{"If-None-Match: " + string(manifestSum)}, 304, nil, ""},
		{"manifest that the client has not", "/v2/nginx/manifests/1", []string{`If-None-Match: "x"`}, 200, nil, string(manifestBody)},
		{"manifest for schema 1 only", "/v2/nginx/manifests/1", []string{"Accept: " + oci.MediaTypeDockerSchema1Signed}, 406, nil, "UNSUPPORTED"},
		{"no manifest", "/v2/nginx/manifests/none", nil, 404, map[string]string{"ETag": "-", "Docker-Content-Digest": "-"}, "MANIFEST_UNKNOWN"},
		{"no tag of that form", "/v2/nginx/manifests/.x", nil, 404, nil, "TAG_INVALID"},
		{"no digest of that form", "/v2/nginx/manifests/sha256:x", nil, 400, nil, "DIGEST_INVALID"},
		{"no name of that form", "/v2/Nginx/manifests/1", nil, 400, nil, "NAME_INVALID"},
		{"dots stay refused", "/v2/a/../nginx/manifests/1", nil, 400, nil, "NAME_INVALID"},
		{"ns that is not configured", "/v2/nginx/manifests/1?ns=quay.io", nil, 404, map[string]string{"OCI-Namespace": "-"}, "docker.io, ghcr.io"},
		{"blob", blob, nil, 200, map[string]string{
			"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "ETag": blobTag, "Docker-Content-Digest": string(blobDigest),
			"Location": blob,
		}, string(blobBytes)},
		{"blob by prefix and ns", "/v2/docker.io/library/nginx/blobs/" + string(blobDigest) + "?ns=docker.io", nil, 200, map[string]string{
			"Location": "/v2/docker.io/library/nginx/blobs/" + string(blobDigest) + "?ns=docker.io",
		}, string(blobBytes)},
		{"empty blob", blobPath(emptyDigest), nil, 200, nil, ""},
		{"no blob", blobPath(manifestSum), nil, 404, map[string]string{"Accept-Ranges": "-", "Location": "-"}, "BLOB_UNKNOWN"},
		{"blob that the client has", blob, []string{"If-None-Match: W/" + blobTag}, 304, map[string]string{"Location": "-"}, ""},
		{"range", blob, []string{"Range: bytes=3-5"}, 206, map[string]string{"Content-Range": "bytes 3-5/1000000", "Location": "-"}, "345"},
		{"open range", blob, []string{"Range: bytes=999998-"}, 206, map[string]string{"Content-Range": "bytes 999998-999999/1000000"}, "89"},
		{"range of all", blob, []string{"Range: bytes=0-"}, 206, map[string]string{"Content-Range": "bytes 0-999999/1000000"}, string(blobBytes)},
		{"suffix range", blob, []string{"Range: bytes=-2"}, 206, map[string]string{"Content-Range": "bytes 999998-999999/1000000"}, "89"},
		{"suffix longer than the blob", blob, []string{"Range: bytes=-2000000"}, 206, map[string]string{"Content-Range": "bytes 0-999999/1000000"}, string(blobBytes)},
		{"range over the end", blob, []string{"Range: bytes=999999-2000000"}, 206, map[string]string{"Content-Range": "bytes 999999-999999/1000000"}, "9"},
		{"range beyond the end", blob, []string{"Range: bytes=1000000-"}, 416, map[string]string{"Content-Range": "bytes */1000000", "ETag": "-"}, "RANGE_INVALID"},
		{"range of nothing", blob, []string{"Range: bytes=-0"}, 416, map[string]string{"Content-Range": "bytes */1000000"}, "RANGE_INVALID"},
		{"several ranges", blob, []string{"Range: bytes=0-1,3-4"}, 206, map[string]string{"Content-Range": "-", "ETag": blobTag, "Accept-Ranges": "bytes"}, "Content-Range: bytes 3-4/1000000\r\n\r\n34\r\n--"},
		{"several ranges that are one", blob, []string{"Range: bytes=0-1,1-3"}, 206, map[string]string{"Content-Range": "bytes 0-3/1000000", "Content-Type": "application/octet-stream"}, "0123"},
		{"several ranges of which the blob has one", blob, []string{"Range: bytes=1000000-,7-8"}, 206, map[string]string{"Content-Range": "bytes 7-8/1000000"}, "78"},
		{"several ranges of which the blob has none", blob, []string{"Range: bytes=1000000-,-0"}, 416, map[string]string{"Content-Range": "bytes */1000000"}, "RANGE_INVALID"},
		{"several ranges, one malformed", blob, []string{"Range: bytes=0-1,3-2"}, 200, nil, string(blobBytes)},
		{"several ranges of an empty blob", blobPath(emptyDigest), []string{"Range: bytes=0-0,2-3"}, 200, nil, ""},
		{"several ranges if it is another", blob, []string{"Range: bytes=0-1,3-4", `If-Range: "x"`}, 200, nil, string(blobBytes)},
		{"several ranges if it is the same", blob, []string{"Range: bytes=0-1,3-4", "If-Range: " + blobTag}, 206, nil, "\r\n\r\n01\r\n"},
		{"several ranges of what the client has", blob, []string{"Range: bytes=0-1,3-4", "If-None-Match: " + blobTag}, 304, nil, ""},
		{"too many ranges", blob, []string{"Range: bytes=" + strings.Repeat("0-,", 1025)}, 400, map[string]string{"ETag": "-"}, "RANGE_INVALID"},
		{"many overlapping ranges", blob, []string{"Range: bytes=" + strings.Repeat("0-,", 1024)}, 206, map[string]string{"Content-Range": "bytes 0-999999/1000000"}, string(blobBytes)},
		{"several ranges of a manifest", "/v2/library/nginx/manifests/1", []string{"Range: bytes=0-1,3-4"}, 206, nil, "Content-Type: " + v1.MediaTypeImageManifest + "\r\nContent-Range: bytes 3-4/"},
		{"too many ranges of a manifest", "/v2/library/nginx/manifests/1", []string{"Range: bytes=" + strings.Repeat("0-,", 1025)}, 400, nil, "RANGE_INVALID"},
		{"malformed range", blob, []string{"Range: bytes=5-3"}, 200, nil, string(blobBytes)},
		{"range if it is the same", blob, []string{"Range: bytes=0-1", "If-Range: " + blobTag}, 206, nil, "01"},
		{"range if it is another", blob, []string{"Range: bytes=0-1", `If-Range: "x"`}, 200, nil, string(blobBytes)},
		{"range if a weak tag", blob, []string{"Range: bytes=0-1", "If-Range: W/" + blobTag}, 200, nil, string(blobBytes)},
		{"range if a date", blob, []string{"Range: bytes=0-1", "If-Range: Tue, 24 Nov 2026 00:00:00 GMT"}, 200, nil, string(blobBytes)},
		{"range of an empty blob", blobPath(emptyDigest), []string{"Range: bytes=0-"}, 200, nil, ""},
		{"tags", "/v2/nginx/tags/list", nil, 200, map[string]string{"Link": "-"}, `{"name":"nginx","tags":["1","1.27","latest","v2"]}` + "\n"},
		{"tags, first page", "/v2/nginx/tags/list?n=2", nil, 200, map[string]string{"Link": `</v2/nginx/tags/list?n=2&last=1.27>; rel="next"`}, `["1","1.27"]`},
		{"tags, with ns and escapes", "/v2/library%2Fnginx/tags/list?n=1&ns=docker.io", nil, 200, map[string]string{"Link": `</v2/library%2Fnginx/tags/list?n=1&last=1&ns=docker.io>; rel="next"`}, `"name":"library/nginx"`},
		{"tags, last page", "/v2/nginx/tags/list?n=2&last=1.27", nil, 200, map[string]string{"Link": "-"}, `["latest","v2"]`},
		{"tags, unknown last", "/v2/nginx/tags/list?last=b", nil, 200, nil, `["latest","v2"]`},
		{"tags, none", "/v2/nginx/tags/list?n=0", nil, 200, map[string]string{"Link": "-"}, `"tags":[]`},
		{"tags, after all", "/v2/nginx/tags/list?n=5&last=z", nil, 200, nil, `"tags":[]`},
		{"tags, n that is none", "/v2/nginx/tags/list?n=-1", nil, 400, nil, "PAGINATION_NUMBER_INVALID"},
		{"referrers", "/v2/nginx/referrers/" + string(manifestSum), nil, 200, map[string]string{
			"Content-Type": v1.MediaTypeImageIndex, "OCI-Filters-Applied": "-",
		}, "application/sbom"},
		{"referrers of a type", "/v2/nginx/referrers/" + string(manifestSum) + "?artifactType=application%2Fsig", nil, 200, map[string]string{
			"OCI-Filters-Applied": "artifactType",
		}, `"size":10,"artifactType":"application/sig"}]}`},
		{"no referrers", "/v2/nginx/referrers/" + string(manifestSum) + "?artifactType=none", nil, 200, nil, `"manifests":[]`},
		{"catalog", "/v2/_catalog?n=2", nil, 200, map[string]string{
			"Link": `</v2/_catalog?n=2&last=docker.io%2Flibrary%2Fnginx>; rel="next"`,
		}, `{"repositories":["docker.io/library/alpine","docker.io/library/nginx"]}` + "\n"},
		{"catalog of one upstream", "/v2/_catalog?ns=ghcr.io", nil, 200, nil, `["org/app"]`},
		{"catalog of no upstream", "/v2/_catalog?ns=quay.io", nil, 200, nil, `"repositories":[]`},
		{"root", "/", nil, 200, map[string]string{"Content-Type": "text/plain; charset=utf-8"}, "Entrepot"},
		{"unknown path", "/v1/x", nil, 404, map[string]string{"Content-Type": "application/json"}, "UNSUPPORTED"},
		{"unknown path of the API", "/v2/nginx", nil, 404, nil, "UNSUPPORTED"},
		{"upload", "/v2/nginx/blobs/uploads/x", nil, 404, nil, "BLOB_UPLOAD_UNKNOWN"},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp, body := ask(t, "GET", base+c.path, c.send...)
			if resp.StatusCode != c.status {
				t.Fatalf("status %d, want %d; body %.300s", resp.StatusCode, c.status, body)
			}
			if c.status == 200 && len(body) != len(c.body) && len(c.body) > 1000 || !strings.Contains(string(body), c.body) || c.body == "" && len(body) > 0 {
				t.Errorf("body %.300q, want %.300q", body, c.body)
			}
			for name, want := range c.want {
				got := strings.Join(resp.Header.Values(name), ", ")
				if want == "-" && len(resp.Header.Values(name)) > 0 || want != "-" && got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			if strings.HasPrefix(c.path, "/v2") && resp.Header.Get("Docker-Distribution-Api-Version") != "registry/2.0" {
				t.Errorf("no Docker-Distribution-Api-Version in %v", resp.Header)
			}
			if c.status >= 400 {
				var e errorBody
				if err := json.Unmarshal(body, &e); err != nil || len(e.Errors) != 1 || e.Errors[0].Message == "" {
					t.Errorf("body is no error JSON: %s", body)
				}
			}

			// HEAD is GET but for the body; ranges are for GET alone.
			head, none := ask(t, "HEAD", base+c.path, c.send...)
			if len(none) > 0 {
				t.Errorf("HEAD has a body: %q", none)
			}
			if len(c.send) > 0 && strings.HasPrefix(c.send[0], "Range") {
				if head.StatusCode != 200 && head.StatusCode != 304 {
					t.Errorf("HEAD with a Range: want 200 or 304, got %d", head.StatusCode)
				}
				return
			}
			if c.status == 304 {
				// Neither has a length; the client tells it in two ways.
				resp.ContentLength = head.ContentLength
			}
			resp.Header.Del("Date")
			head.Header.Del("Date")
			if head.StatusCode != resp.StatusCode || head.ContentLength != resp.ContentLength || !maps.EqualFunc(head.Header, resp.Header, slices.Equal) {
				t.Errorf("HEAD differs\n got %d %d %v\nwant %d %d %v", head.StatusCode, head.ContentLength, head.Header, resp.StatusCode, resp.ContentLength, resp.Header)
			}
		})
	}
}

func TestPushIsRefusedInWordsWithoutReadingIt(t *testing.T) {
	_, base := start(t, newShelf())
	for _, c := range []struct{ method, path string }{
		{"POST", "/v2/nginx/blobs/uploads/"},
		{"POST", "/v2/nginx/blobs/uploads/?mount=x&from=y"},
		{"PATCH", "/v2/nginx/blobs/uploads/id"},
		{"PUT", "/v2/nginx/manifests/1"},
		{"DELETE", "/v2/nginx/manifests/1"},
		{"DELETE", "/v2/NO NAME/x"},
		{"PUT", "/v2/"},
	} {
		req, err := http.NewRequest(c.method, base+strings.ReplaceAll(c.path, " ", "%20"), io.LimitReader(endless{}, 1<<40))
		if err != nil {
			t.Fatal(err)
		}
		if c.method != "PUT" {
			req.Body = nil
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			// The answer was out before the connection was closed under the
			// client's writing; whether it still reads it is up to the client.
			if c.method == "PUT" {
				continue
			}
			t.Fatalf("%s %s: %v", c.method, c.path, err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 405 || resp.Header.Get("Allow") != "GET, HEAD" || !bytes.Contains(body, []byte(`"UNSUPPORTED"`)) || !resp.Close {
			t.Errorf("%s %s: %d, Allow %q, closes %v, %s", c.method, c.path, resp.StatusCode, resp.Header.Get("Allow"), resp.Close, body)
		}
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

func TestOutcomeIsToldInHeaders(t *testing.T) {
	for _, c := range []struct {
		outcome      cache.Outcome
		status, age  string
		warningHolds string
	}{
		{cache.Outcome{Status: cache.Hit, Age: 7 * time.Second, TTL: 53 * time.Second}, `entrepot; hit; ttl=53; detail="docker.io"`, "7", ""},
		{cache.Outcome{Status: cache.Miss, Forwarded: 200, Stored: true}, `entrepot; fwd=miss; fwd-status=200; stored; detail="docker.io"`, "", ""},
		{cache.Outcome{Status: cache.Miss, Forwarded: 206}, `entrepot; fwd=miss; fwd-status=206; detail="docker.io"`, "", ""},
		{cache.Outcome{Status: cache.Collapsed}, `entrepot; fwd=miss; collapsed; detail="docker.io"`, "", ""},
		{cache.Outcome{Status: cache.Stale, Forwarded: 503, Age: time.Second, Reason: "r"}, `entrepot; fwd=stale; fwd-status=503; detail="docker.io: r"`, "1",
			"299 - \"docker.io could not be asked (r): this is what it said 1s ago\""},
		{cache.Outcome{Status: cache.Revalidated, Forwarded: 200, TTL: time.Minute}, `entrepot; fwd=stale; fwd-status=200; ttl=60; detail="docker.io"`, "", ""},
		{cache.Outcome{Status: cache.Stale, Age: 3 * time.Minute, TTL: -2 * time.Minute, Reason: "timed\r\nout \"x\""},
			`entrepot; hit; ttl=-120; detail="docker.io: timed??out 'x'"`, "180", "299 - \"docker.io could not be asked (timed??out 'x'): this is what it said 3m0s ago\""},
	} {
		s := newShelf()
		s.outcome = c.outcome
		_, base := start(t, s)
		resp, _ := ask(t, "GET", base+"/v2/nginx/manifests/1")
		if got := resp.Header.Get("Cache-Status"); got != c.status {
			t.Errorf("%+v: Cache-Status\n got %s\nwant %s", c.outcome, got, c.status)
		}
		if got := resp.Header.Get("Age"); got != c.age {
			t.Errorf("%+v: Age %q, want %q", c.outcome, got, c.age)
		}
		warnings := resp.Header.Values("Warning")
		if c.warningHolds == "" && len(warnings) > 0 || c.warningHolds != "" && !slices.Equal(warnings, []string{`110 - "Response is Stale"`, c.warningHolds}) {
			t.Errorf("%+v: Warning %q, want %q", c.outcome, warnings, c.warningHolds)
		}
	}
}

func TestErrorsAreToldByTheirCode(t *testing.T) {
	for _, c := range []struct {
		err         error
		status      int
		code, retry string
	}{
		{&oci.Error{Code: oci.CodeTooManyRequests, Message: "m", RetryAfter: 1500 * time.Millisecond}, 429, "TOOMANYREQUESTS", "2"},
		{&oci.Error{Code: oci.CodeTooManyRequests, Message: "m", RetryAfter: time.Second, Guessed: true}, 429, "TOOMANYREQUESTS", ""},
		{&oci.Error{Code: oci.CodeUnavailable, Status: 504, Message: "m", Err: errors.New("secret")}, 504, "UNAVAILABLE", ""},
		{&oci.Error{Code: oci.CodeUnauthorized, Message: "m"}, 403, "DENIED", ""},
		{&oci.Error{Code: oci.CodeUnsupported, Message: "m"}, 400, "UNSUPPORTED", ""},
		{&oci.Error{Code: oci.CodeManifestUnknown, Message: "m", Detail: map[string]string{"a": "b"}}, 404, "MANIFEST_UNKNOWN", ""},
		{&oci.Error{Code: oci.CodeManifestUnknown, Message: "m", Detail: func() {}}, 404, "MANIFEST_UNKNOWN", ""},
		{errors.New("open /secret: no"), 500, "UNKNOWN", ""},
	} {
		s := newShelf()
		s.err = c.err
		_, base := start(t, s)
		for _, path := range []string{"/v2/nginx/manifests/1", blobPath(blobDigest), "/v2/nginx/tags/list", "/v2/nginx/referrers/" + string(blobDigest), "/v2/_catalog"} {
			resp, body := ask(t, "GET", base+path)
			if resp.StatusCode != c.status || !bytes.Contains(body, []byte(c.code)) || resp.Header.Get("Retry-After") != c.retry || bytes.Contains(body, []byte("secret")) {
				t.Errorf("%v on %s: %d %s, Retry-After %q", c.err, path, resp.StatusCode, body, resp.Header.Get("Retry-After"))
			}
			if resp.Header.Get("Www-Authenticate") != "" {
				t.Errorf("a challenge was sent: %v", resp.Header)
			}
		}
	}
}

func TestPanicBecomesA500AndTheServerLives(t *testing.T) {
	s := newShelf()
	s.panics = true
	_, base := start(t, s)
	for range 2 {
		if resp, body := ask(t, "GET", base+"/v2/nginx/manifests/1"); resp.StatusCode != 500 || bytes.Contains(body, []byte("shelf")) {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	}
}

func TestHintIsTheSpanThatIsSentFirst(t *testing.T) {
	s := newShelf()
	_, base := start(t, s)
	for header, want := range map[string]oci.Span{
		"X: y":                   oci.Whole,
		"Range: bytes=3-5":       {From: 3, To: 6},
		"Range: bytes=9-":        {From: 9, To: oci.Open},
		"Range: bytes=-9":        {From: -9, To: oci.Open},
		"Range: bytes=5-6,1-2":   {From: 5, To: 7},
		"Range: bytes=2-9999999": {From: 2, To: 10000000},
	} {
		s.hints = nil
		ask(t, "GET", base+blobPath(blobDigest), header)
		if len(s.hints) != 1 || s.hints[0] != want {
			t.Errorf("%s: hint %v, want %v", header, s.hints, want)
		}
	}
}

func TestUpstreamsOwnStatusIsToldWithAnError(t *testing.T) {
	for _, c := range []struct {
		outcome cache.Status
		err     *oci.Error
		status  int
		want    string
	}{
		{cache.Miss, &oci.Error{Code: oci.CodeDenied, Message: "m", Answered: 401}, 403, `entrepot; fwd=miss; fwd-status=401; detail="docker.io"`},
		{cache.Collapsed, &oci.Error{Code: oci.CodeUnavailable, Status: 502, Message: "m", Answered: 500}, 502, `entrepot; fwd=miss; collapsed; fwd-status=500; detail="docker.io"`},
		{cache.Miss, &oci.Error{Code: oci.CodeUnavailable, Status: 502, Message: "m"}, 502, `entrepot; fwd=miss; detail="docker.io"`},
		{cache.Negative, &oci.Error{Code: oci.CodeManifestUnknown, Message: "m", Answered: 404}, 404, `entrepot; hit; detail="docker.io"`},
	} {
		s := newShelf()
		s.outcome, s.err = cache.Outcome{Status: c.outcome}, c.err
		_, base := start(t, s)
		resp, _ := ask(t, "GET", base+"/v2/nginx/manifests/1")
		if got := resp.Header.Get("Cache-Status"); got != c.want || resp.StatusCode != c.status {
			t.Errorf("%+v: %d %s, want %d %s", c.err, resp.StatusCode, got, c.status, c.want)
		}
	}
}
