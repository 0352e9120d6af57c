package oci

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/image-spec/specs-go/v1"
)

// streamTags reads tags one byte at a time, so that each may come in pieces.
func streamTags(doc string) (string, bool, error) {
	var tags []string
	ok, err := ReadTags(iotest.OneByteReader(strings.NewReader(doc)), nil, func(t string) error { tags = append(tags, t); return nil })
	return strings.Join(tags, " "), ok, err
}

func TestTagsAreReadAsAStream(t *testing.T) {
	for doc, want := range map[string]string{
		`{"name":"a","tags":["a","",null,"-b","../c",1,["x"],{"y":[]},"1.0"]}`: "a 1.0",
		`{"tags":null}`:            "",
		`{"name":"a"}`:             "", // some leave an empty list out
		`{"tags":["a"]}x`:          "a",
		`{"tags":["a"]} {}`:        "a",
		` {"tags" : [ ] } ` + "\n": "",
		`{"child":["x"],"manifest":{"sha256:x":{"tag":["t"],"n":1e999}},"name":"a","tags":["b"]}`: "b",
		`{"tags":["a"],"next":{"deep":[[[{}]]]}}`:                                                 "a",
	} {
		if got, ok, err := streamTags(doc); err != nil || !ok || got != want {
			t.Errorf("%s: want %q, got %q, %v, %v", doc, want, got, ok, err)
		}
	}
	for _, doc := range []string{`{}`, `{"errors":[{"code":"X"}]}`, `{"name":"a","errors":[]}`, `{"x":{"tags":["a"]}}`} {
		if got, ok, err := streamTags(doc); err != nil || ok || got != "" {
			t.Errorf("%s: want no list, got %q, %v, %v", doc, got, ok, err)
		}
	}
	for _, doc := range []string{``, `null`, `[]`, `"a"`, `<html>`, `{"tags":{}}`, `{"tags":"a"}`, `{"tags":["a"`, `{"tags":["a"]`,
		`{"x":` + strings.Repeat("[", 2000), `{"tags":[` + strings.Repeat(`"",`, maxDropped+1) + `"a"]}`} {
		if got, ok, err := streamTags(doc); err == nil {
			t.Errorf("%.40s: got %q, %v, want an error", doc, got, ok)
		}
	}
}

func TestDescriptorsAreReadAsAStream(t *testing.T) {
	var got []v1.Descriptor
	ok, err := ReadDescriptors(strings.NewReader(`{"schemaVersion":2,"manifests":[{},null,"x",{"digest":"`+a256+`","size":-1},
		{"digest":"`+b256+`","size":2,"data":"eHg=","annotations":{"n":1,"s":"x"}}]}`), nil, func(d v1.Descriptor) error { got = append(got, d); return nil })
	if err != nil || !ok || len(got) != 1 || string(got[0].Digest) != b256 || got[0].Data != nil || got[0].Annotations["s"] != "x" {
		t.Errorf("want %s alone, got %+v, %v, %v", b256, got, ok, err)
	}
}

func TestAListEndsWithTheErrorsOfThoseItDependsOn(t *testing.T) {
	broken := errors.New("broken")
	if _, err := ReadTags(io.MultiReader(strings.NewReader(`{"tags":["a","b`), iotest.ErrReader(broken)), nil, func(string) error { return nil }); !errors.Is(err, broken) {
		t.Errorf("want the source's error, got %v", err)
	}
	if ok, err := ReadTags(io.MultiReader(strings.NewReader(`{"tags":["a"]}`), iotest.ErrReader(broken)), nil, func(string) error { return nil }); !ok || err != nil {
		t.Errorf("all is there: %v, %v", ok, err)
	}
	if _, err := ReadTags(strings.NewReader(`{"tags":["a"]}`), nil, func(string) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("want add's error, got %v", err)
	}
	if _, err := ReadTags(strings.NewReader(`{"tags":["a"]}`), func(int64) error { return broken }, func(string) error { return nil }); !errors.Is(err, broken) {
		t.Errorf("want buffered's error, got %v", err)
	}
}

// However long a list is and whatever stands beside it, little of it is in memory at a time.
func TestALongListTakesLittleMemoryWhileItIsRead(t *testing.T) {
	const n = 200_000
	read, write := io.Pipe()
	go func() {
		_, _ = io.WriteString(write, `{"manifest":{`)
		for i := range n {
			_, _ = fmt.Fprintf(write, `"sha256:%064d":{"imageSizeBytes":"1","tag":["t%d"]},`, i, i)
		}
		_, _ = io.WriteString(write, `"x":{}},"tags":[`)
		for i := range n {
			_, _ = fmt.Fprintf(write, `"t%d",`, i)
		}
		_, _ = io.WriteString(write, `"t"]}`)
		_ = write.Close()
	}()
	var most int64
	tags := 0
	ok, err := ReadTags(read, func(n int64) error { most = n; return nil }, func(string) error { tags++; return nil })
	if err != nil || !ok || tags != n+1 {
		t.Errorf("got %d tags, %v, %v", tags, ok, err)
	}
	if most > 64<<10 {
		t.Errorf("%d bytes were waiting to be decoded", most)
	}
	// One element is bounded too.
	for _, doc := range []string{`{"tags":["`, `{"x":"`, `{"tags":[` + strings.Repeat(" ", 10)} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := ReadTags(io.MultiReader(strings.NewReader(doc), endlessly(" ")), nil, func(string) error { return nil })
		runtime.ReadMemStats(&after)
		if err == nil || after.TotalAlloc-before.TotalAlloc > 40<<20 {
			t.Errorf("%s: got %v, and %d bytes were allocated", doc, err, after.TotalAlloc-before.TotalAlloc)
		}
	}
}

// endlessly is a reader of the same byte for ever.
type endlessly string

func (e endlessly) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = e[0]
	}
	return len(b), nil
}
