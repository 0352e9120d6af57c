package rewrite

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/distribution/reference"

	"github.com/entrepot-dev/entrepot/oci"
)

func TestPathMayAskAsOfADate(t *testing.T) {
	endOf := func(y int, m time.Month, d int) time.Time {
		return time.Date(y, m, d, 23, 59, 59, 999_999_999, time.UTC)
	}
	for prefix, want := range map[string]time.Time{
		"@2026-11-01":                     endOf(2026, 11, 1),
		"%402026-11-01":                   endOf(2026, 11, 1),
		"@2024-02-29":                     endOf(2024, 2, 29),
		"@2026-11-01T12:30:00Z":           time.Date(2026, 11, 1, 12, 30, 0, 0, time.UTC),
		"@2026-11-01T12%3A30%3A00Z":       time.Date(2026, 11, 1, 12, 30, 0, 0, time.UTC),
		"@2026-11-01T12:30:00.5+02:00":    time.Date(2026, 11, 1, 10, 30, 0, 500_000_000, time.UTC),
		"at-2026-11-01":                   endOf(2026, 11, 1),
		"at-2026-11-01t12-30-00z":         time.Date(2026, 11, 1, 12, 30, 0, 0, time.UTC),
		"at-2026-11-01t00-00-00z":         time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC),
		"at-2026-11-01t12-30-00z/ghcr.io": time.Date(2026, 11, 1, 12, 30, 0, 0, time.UTC),
	} {
		for _, path := range []string{"/manifests/20", "/manifests/" + sum256, "/blobs/" + sum256, "/tags/list", "/referrers/" + sum256} {
			uri := "/v2/" + prefix + "/docker.io/library/node" + path
			got, err := ParseRequest(uri)
			plain, _ := ParseRequest("/v2/docker.io/library/node" + path)
			if strings.HasSuffix(prefix, "/ghcr.io") {
				plain, _ = ParseRequest("/v2/ghcr.io/docker.io/library/node" + path)
			}
			if err != nil || !got.AsOf.Equal(want) || got.Name != plain.Name || got.Resource != plain.Resource || got.Reference() != plain.Reference() {
				t.Errorf("ParseRequest(%q)\n got %+v, %v\nwant %v, else as %+v", uri, got, err, want, plain)
			}
		}
	}
}

func TestPathThatAsksAsOfNoDateIsRefused(t *testing.T) {
	for _, prefix := range []string{
		"@", "@today", "@2026-11", "@2026-13-01", "@2026-02-30", "@2026-11-01T12:30", "@2026-11-01t12-30-00z", "@20261101", "@2026-11-01 ", "@-1",
		"@1969-12-31T00:00:00Z", "@1969-12-31", "@0001-01-01", "at-2026-13-01", "at-2026-11-01t25-00-00z", "at-0000-00-00",
	} {
		_, err := ParseRequest("/v2/" + strings.ReplaceAll(prefix, " ", "%20") + "/library/node/manifests/20")
		var e *oci.Error
		if !errors.As(err, &e) || e.Code != oci.CodeNameInvalid || !strings.Contains(e.Message, "no date") {
			t.Errorf("%q: %v; want NAME_INVALID and what a date is", prefix, err)
		}
	}
	// What is after it is read as ever, and only once.
	for _, uri := range []string{"/v2/@2026-11-01/manifests/20", "/v2/@2026-11-01/@2026-11-01/app/manifests/20", "/v2/@2026-11-01//app/manifests/20", "/v2/docker.io/@2026-11-01/app/manifests/20"} {
		if req, err := ParseRequest(uri); err == nil {
			t.Errorf("%q: %+v; want an error", uri, req)
		}
	}
}

func TestNamesThatOnlyLookLikeADateAreNames(t *testing.T) {
	for _, name := range []string{"at-2026-11-01", "at-home/app", "at-2026/app", "at-2026-11-01-beta/app", "docker.io/at-2026-11-01/app", "atlas/app", "at-2026-11-0x/app"} {
		got, err := ParseRequest("/v2/" + name + "/manifests/20")
		if err != nil || !got.AsOf.IsZero() || got.Name != name {
			t.Errorf("%q: %+v, %v; want a name", name, got, err)
		}
	}
}

func TestNamesAsOfADateCanBeWrittenInAReference(t *testing.T) {
	for _, prefix := range []string{"at-2026-11-01", "at-2026-11-01t12-30-00z"} {
		text := "cache:5000/" + prefix + "/docker.io/library/node:20"
		r, err := reference.ParseNamed(text)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		got, err := ParseRequest("/v2/" + reference.Path(r) + "/manifests/20")
		if err != nil || got.AsOf.IsZero() || got.Name != "docker.io/library/node" {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	if r, err := reference.Parse("cache:5000/@2026-11-01/docker.io/library/node:20"); err == nil {
		t.Errorf("distribution/reference takes the other form, too: %v", r)
	}
}

func TestAskingAsOfADateCostsOthersNothing(t *testing.T) {
	uri := "/v2/at-home/app/manifests/latest"
	if n := testing.AllocsPerRun(100, func() {
		if req, err := ParseRequest(uri); err != nil || !req.AsOf.IsZero() {
			t.Fatal(req, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a request, want 0", n)
	}
}
