package rewrite

import (
	"strings"
	"testing"

	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
)

const (
	dockerManifest = oci.MediaTypeDockerManifest
	dockerList     = oci.MediaTypeDockerManifestList
	ociManifest    = v1.MediaTypeImageManifest
	ociIndex       = v1.MediaTypeImageIndex
)

func TestAcceptSaysWhatTheClientTakes(t *testing.T) {
	for _, c := range []struct {
		name       string
		headers    []string
		index      bool
		any        bool
		schema1    bool
		takes      []string
		takesNever []string
	}{
		{"absent", nil, true, true, false, []string{dockerManifest, ociIndex, "a/b"}, nil},
		{"empty", []string{""}, true, true, false, []string{ociIndex}, nil},
		{"any", []string{"*/*"}, true, true, false, []string{ociIndex, "a/b"}, nil},
		{"any, last", []string{dockerManifest + ", */*;q=0.1"}, true, true, false, []string{ociIndex, "a/b"}, nil},
		{"any application", []string{"application/*"}, true, false, false, []string{ociIndex, "application/x"}, []string{"text/plain"}},
		{"containerd", []string{strings.Join([]string{dockerManifest, dockerList, ociManifest, ociIndex, "*/*"}, ", ")}, true, true, false, []string{dockerList, ociIndex}, nil},
		{"schema 2 only", []string{dockerManifest}, false, false, false, []string{dockerManifest}, []string{dockerList, ociIndex, ociManifest, "a/b"}},
		{"single manifests only", []string{dockerManifest, ociManifest}, false, false, false, []string{dockerManifest, ociManifest}, []string{dockerList, ociIndex}},
		{"a list is kin to an index", []string{dockerManifest + "," + dockerList}, true, false, false, []string{dockerList}, []string{ociIndex}},
		{"several headers", []string{dockerManifest, ociIndex}, true, false, false, []string{dockerManifest, ociIndex}, nil},
		{"parameters", []string{dockerManifest + `;x="a,b;q=0";q=0.5 ,` + ociIndex + "; charset=utf-8"}, true, false, false, []string{dockerManifest, ociIndex}, []string{"b"}},
		{"refused index", []string{"*/*, " + ociIndex + ";q=0, " + dockerList + ";q=0.000"}, false, true, false, []string{dockerManifest}, []string{ociIndex, dockerList}},
		{"refused manifest", []string{ociIndex + ", " + dockerManifest + "; Q=0."}, true, false, false, []string{ociIndex}, []string{dockerManifest}},
		{"weights that are none", []string{dockerManifest + ";q=x," + ociIndex + ";q="}, true, false, false, []string{dockerManifest, ociIndex}, nil},
		{"upper case", []string{strings.ToUpper(dockerManifest) + ", Application/X"}, false, false, false, []string{dockerManifest, "application/x"}, []string{ociIndex}},
		{"kin to nothing", []string{"application/json"}, true, false, false, []string{"application/json"}, []string{ociIndex}},
		{"a browser", []string{"text/html,application/xhtml+xml,*/*;q=0.8"}, true, true, false, []string{ociIndex, "text/html"}, nil},
		{"schema 1 only", []string{oci.MediaTypeDockerSchema1 + "," + oci.MediaTypeDockerSchema1Signed}, false, false, true, nil, []string{dockerManifest, ociIndex}},
		{"schema 1 too", []string{oci.MediaTypeDockerSchema1Signed + "," + dockerManifest}, false, false, false, []string{dockerManifest}, nil},
		{"rubbish", []string{",;,/,a/,/b,a/b/c,\"x/y\",\x00/\x01"}, true, true, false, []string{ociIndex}, nil},
		{"quote without end", []string{`a/b;x="` + ociIndex}, true, false, false, []string{"a/b"}, []string{ociIndex}},
	} {
		var headers [][]byte
		for _, h := range c.headers {
			headers = append(headers, []byte(h))
		}
		a := ParseAccept(headers...)
		if a.TakesIndex() != c.index || a.AnyOrEmpty() != c.any || a.OnlySchema1() != c.schema1 {
			t.Errorf("%s: index %v, any %v, only schema 1 %v; want %v, %v, %v", c.name, a.TakesIndex(), a.AnyOrEmpty(), a.OnlySchema1(), c.index, c.any, c.schema1)
		}
		for _, m := range c.takes {
			if !a.Takes(m) {
				t.Errorf("%s: does not take %s", c.name, m)
			}
		}
		for _, m := range c.takesNever {
			if a.Takes(m) {
				t.Errorf("%s: takes %s", c.name, m)
			}
		}
	}
}

func TestAcceptOfIsTheHeaderOfThoseTypes(t *testing.T) {
	if got, want := AcceptOf(dockerManifest, "a/b"), ParseAccept([]byte(dockerManifest+", a/b")); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestAcceptIsReadWithinBounds(t *testing.T) {
	many := strings.Repeat("a/b,", maxAcceptRanges) + ociManifest
	if ParseAccept([]byte(many)).Takes(ociManifest) {
		t.Errorf("read more than %d ranges", maxAcceptRanges)
	}
	large := []byte("a/b,")
	if ParseAccept(large, make([]byte, maxAcceptBytes), []byte(ociManifest)).Takes(ociManifest) {
		t.Errorf("read more than %d bytes", maxAcceptBytes)
	}
}

func TestCommonAcceptDoesNotAllocate(t *testing.T) {
	header := []byte(strings.Join([]string{dockerManifest, dockerList, ociManifest, ociIndex, "*/*"}, ", "))
	headers := [][]byte{header}
	if n := testing.AllocsPerRun(100, func() {
		if a := ParseAccept(headers...); !a.TakesIndex() {
			t.Fatal("index not taken")
		}
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func FuzzParseAccept(f *testing.F) {
	for _, seed := range []string{"", "*/*", dockerManifest + ";q=0.5, " + ociIndex, `a/b;x="\",";q=0`, ",,;;==", "application/*;q=0"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, header []byte) {
		a := ParseAccept(header)
		if a != ParseAccept(header) {
			t.Error("not the same twice")
		}
		if len(a.others) > 2*maxAcceptBytes {
			t.Errorf("keeps %d bytes", len(a.others))
		}
		for _, m := range strings.Split(strings.Trim(a.others, ","), ",") {
			if m != "" && (!oci.IsMediaType(m) || !a.Takes(m)) {
				t.Errorf("keeps %q of %q", m, header)
			}
		}
	})
}
