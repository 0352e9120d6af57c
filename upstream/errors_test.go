package upstream

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

func TestEachStatusOfTheUpstreamIsToldAsWhatItMeans(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		code   oci.Code
		want   int
		words  []string
	}{
		"absent":                   {404, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`, oci.CodeManifestUnknown, 404, []string{"reg/a/b:latest", "upstream reg"}},
		"absent, without words":    {404, ``, oci.CodeManifestUnknown, 404, []string{"reg/a/b:latest"}},
		"no repository":            {404, `{"errors":[{"code":"NAME_UNKNOWN"}]}`, oci.CodeNameUnknown, 404, []string{"reg/a/b:latest", "upstream reg"}},
		"refused":                  {403, `{"errors":[{"code":"DENIED","message":"blocked"}]}`, oci.CodeDenied, 403, []string{"upstreams.reg.credentials", "blocked"}},
		"refused, without a realm": {401, ``, oci.CodeDenied, 403, []string{"does not exist or needs credentials", "upstreams.reg.credentials"}},
		"limited":                  {429, `{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit. https://x.test/?X-Signature=1"}]}`, oci.CodeTooManyRequests, 429, []string{"pull rate limit"}},
		"broken":                   {500, `stack trace`, oci.CodeUnavailable, 502, []string{"reg.test", "500"}},
		"behind it":                {502, ``, oci.CodeUnavailable, 502, []string{"502"}},
		"overloaded":               {503, ``, oci.CodeUnavailable, 503, []string{"503"}},
		"slow behind it":           {504, ``, oci.CodeUnavailable, 504, []string{"504"}},
		"a name it does not take":  {400, `{"errors":[{"code":"NAME_INVALID","message":"too deep"}]}`, oci.CodeNameInvalid, 400, []string{"too deep"}},
		"a bad request":            {400, ``, oci.CodeUnavailable, 502, []string{"400"}},
		"gone":                     {410, ``, oci.CodeUnavailable, 502, []string{"410"}},
		"a teapot":                 {418, ``, oci.CodeUnavailable, 502, []string{"418"}},
		"not modified":             {304, ``, oci.CodeUnavailable, 502, []string{"304"}},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.host("reg.test:443", func(rw http.ResponseWriter, req *http.Request) {
					if req.URL.Path == "/v2/" {
						return
					}
					rw.WriteHeader(c.status)
					_, _ = io.WriteString(rw, c.body)
				})
				_, err := w.registry(Options{}).Manifest(t.Context(), "a/b", "latest")
				wantError(t, err, c.code, c.want, c.words...)
				if c.status != 404 && oci.IsAbsent(err) {
					t.Errorf("a %d is told as absence: %v", c.status, err)
				}
			})
		})
	}
}

func TestHostsThatCanNotBeReachedAreNamed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		_, err := w.registry(Options{}).Manifest(t.Context(), "a", "latest")
		wantError(t, err, oci.CodeUnavailable, 502, "reg.test", "refuses the connection")
		if got := value(t, w.metrics.UpstreamErrors, "reg", "connect"); got != tries {
			t.Errorf("%v connect errors counted, want %d", got, tries)
		}
		if got := value(t, w.metrics.UpstreamRequests, "reg", "manifest", "error"); got != tries {
			t.Errorf("%v requests counted, want %d", got, tries)
		}
	})
}

func TestRetryAfterIsReadAsSecondsOrDate(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Second)
	for _, c := range []struct {
		value, date string
		want        time.Duration
	}{
		{"", "", 0}, {"7", "", 7 * time.Second}, {"-7", "", 0}, {"soon", "", 0}, {"999999999", "", 24 * time.Hour}, {"99999999999999999999", "", 0},
		{now.Add(-time.Hour).Add(time.Minute).Format(http.TimeFormat), now.Add(-time.Hour).Format(http.TimeFormat), time.Minute},
		{now.Add(-time.Hour).Format(http.TimeFormat), "", 0},
		{fmt.Sprint(now.Add(-time.Hour).Unix()), "", 0},
		{fmt.Sprint(now.Add(100 * time.Hour).Unix()), "", 24 * time.Hour},
	} {
		if got := retryAfter(http.Header{"Retry-After": {c.value}, "Date": {c.date}}); got != c.want {
			t.Errorf("Retry-After %q with Date %q is %s, want %s", c.value, c.date, got, c.want)
		}
	}
}

func TestAStrangersWordsAreCleaned(t *testing.T) {
	for in, want := range map[string]string{
		"plain words":                        "plain words",
		"a\r\nSet-Cookie:\tx\x1b[31m":        "a Set-Cookie: x [31m",
		"see https://x.test/?X-Signature=1.": "see",
		strings.Repeat("a", 300):             strings.Repeat("a", 200) + "…",
		strings.Repeat("é", 150) + "\xff":    strings.Repeat("é", 100) + "…",
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzReadSaid(f *testing.F) {
	for _, s := range []string{`{"errors":[{"code":"DENIED","message":"no"}]}`, `{"errors":[]}`, `[`, `{"errors":[{"message":"https://a?b\n"}]}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := readSaid(nil, strings.NewReader(s))
		if len(got.message) > 210 || strings.ContainsAny(got.message, "\r\n\x00\x1b?") || strings.Contains(got.message, "://") {
			t.Fatalf("readSaid(%q) says %q", s, got.message)
		}
	})
}
