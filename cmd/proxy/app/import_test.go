package app

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/e2e/image"
)

// layoutFiles gives the files of an image layout. name is what its index says that its
// image is called; empty is nothing.
func layoutFiles(t *testing.T, i *image.Image, name string) (names []string, files map[string][]byte) {
	t.Helper()
	d := i.Descriptor()
	if name != "" {
		d.Annotations = map[string]string{v1.AnnotationRefName: name}
	}
	index, err := json.Marshal(v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{d}})
	if err != nil {
		t.Fatal(err)
	}
	files = map[string][]byte{v1.ImageLayoutFile: []byte(`{"imageLayoutVersion":"1.0.0"}`), v1.ImageIndexFile: index}
	names = []string{v1.ImageLayoutFile, v1.ImageIndexFile}
	add := func(digest string, content []byte) {
		name := "blobs/" + strings.Replace(digest, ":", "/", 1)
		names, files[name] = append(names, name), content
	}
	for d, m := range i.Manifests {
		add(d.String(), m.Bytes)
	}
	for d, b := range i.Blobs {
		add(d.String(), b)
	}
	return names, files
}

func tarOf(t *testing.T, names []string, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range names {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(files[name])), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestImportTakesInAndRefuses works on directories that no process holds.
func TestImportTakesInAndRefuses(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	app := image.Index(image.Options{Seed: 1})
	named, files := layoutFiles(t, app, "docker.io/library/app:1")
	whole := tarOf(t, named, files)
	good := write("app.tar", whole)
	for name, content := range files {
		write("tree/"+name, content)
	}
	tree := filepath.Join(dir, "tree")
	names, files := layoutFiles(t, image.New(image.Options{Seed: 2}), "1")
	nameless := write("nameless.tar", tarOf(t, names, files))
	cut := write("cut.tar", whole[:len(whole)/2])
	third := len(whole) / 3
	sums := ""
	for n, b := range [][]byte{whole[:third], whole[third : 2*third], whole[2*third:]} {
		write(fmt.Sprintf("v/app.tar.%03d", n+1), b)
		write(fmt.Sprintf("gap/app.tar.%03d", n+1+n/2), b)
		sums += fmt.Sprintf("%x  app.tar.%03d\n", sha256.Sum256(b), n+1)
		if n == 1 {
			b = append(bytes.Clone(b[:len(b)-1]), b[len(b)-1]^1)
		}
		write(fmt.Sprintf("w/app.tar.%03d", n+1), b)
	}
	write("v/app.tar.sha256", []byte(sums))
	write("w/app.tar.sha256", []byte(sums))
	at := func(name string) string { return filepath.Join(dir, name) }

	const done = "docker.io/library/app:1"
	blobs := len(app.Manifests) + len(app.Blobs)
	for _, c := range []struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		{[]string{good}, 0, done, ""},
		{[]string{tree}, 0, done, ""},
		{[]string{at("v/app.tar")}, 0, done, ""},
		{[]string{at("v/app.tar.002")}, 0, done, ""},
		{[]string{at("v/app.tar.002"), at("v/app.tar.003"), at("v/app.tar.001")}, 0, done, ""},
		{[]string{good, at("v/app.tar")}, 0, fmt.Sprintf("already there: %d blobs", blobs), ""},
		{[]string{"--name", "app:2", nameless}, 0, "docker.io/library/app:2", ""},
		{[]string{"--name", "quay.io/org/app:3", good}, 0, "quay.io/org/app:3", ""},
		{[]string{"-o", "json", good}, 0, `"reference": "docker.io/library/app:1"`, ""},

		// What was taken in before another is refused stays, and is told.
		{[]string{good, cut}, 1, done, "cut.tar: nothing of it is taken in"},
		{[]string{nameless}, 1, "", "say it: --name"},
		{[]string{cut}, 1, "", "cut.tar: nothing of it is taken in: it is truncated"},
		{[]string{at("w/app.tar.001")}, 1, "", "app.tar.002 is damaged: its SHA-256 is"},
		{[]string{at("gap/app.tar.001")}, 1, "", "app.tar.003 is missing"},
		{[]string{at("none.tar")}, 1, "", "no such file"},
		{[]string{"--name", "ghost.example.test/app:1", nameless}, 1, "", "not configured"},

		{nil, 2, "", "requires at least 1 arg"},
		{[]string{"--name", "app:1", good, tree}, 2, "", "--name is for one archive"},
		{[]string{good, "-"}, 2, "", "stands alone"},
		{[]string{"--name", "No Such Name", nameless}, 2, "", "is no reference"},
	} {
		environ := []string{"ENTREPOT_ADMIN_LISTEN=off", "ENTREPOT_CACHE_DIR=" + filepath.Join(t.TempDir(), "cache")}
		got := runCommand(environ, append([]string{"import"}, c.args...)...)
		if got.code != c.code || !strings.Contains(got.stdout, c.stdout) || !strings.Contains(got.stderr, c.stderr) {
			t.Errorf("import %s: want %d, stdout with %q, stderr with %q, got %+v", strings.Join(c.args, " "), c.code, c.stdout, c.stderr, got)
		}
		if c.code != 0 && c.stdout == "" && got.stdout != "" {
			t.Errorf("import %s: want nothing on stdout, got %q", strings.Join(c.args, " "), got.stdout)
		}
	}
}

// TestImportTellsForProgramsWhatItDid also imports a second time, and over a tag that
// was seen to stand for something else since.
func TestImportTellsForProgramsWhatItDid(t *testing.T) {
	environ := []string{"ENTREPOT_ADMIN_LISTEN=off", "ENTREPOT_CACHE_DIR=" + filepath.Join(t.TempDir(), "cache")}
	take := func(i *image.Image) cache.Imported {
		t.Helper()
		names, files := layoutFiles(t, i, "docker.io/library/app:1")
		path := filepath.Join(t.TempDir(), "app.tar")
		if err := os.WriteFile(path, tarOf(t, names, files), 0o600); err != nil {
			t.Fatal(err)
		}
		got := runCommand(environ, "import", "--replace", "--output", "json", path)
		var done cache.Imported
		if err := json.Unmarshal([]byte(got.stdout), &done); got.code != 0 || err != nil {
			t.Fatalf("%+v, %v", got, err)
		}
		return done
	}
	first := image.Index(image.Options{Seed: 1})
	all := len(first.Manifests) + len(first.Blobs)
	one := take(first)
	if one.Blobs != all || one.Bytes != first.Size() || one.BlobsThere != 0 || len(one.Images) != 1 || one.Images[0].Digest != first.Digest || one.Images[0].Blobs != all {
		t.Errorf("want %d blobs of %d bytes, got %+v", all, first.Size(), one)
	}
	two := take(first)
	if two.Blobs != 0 || two.BlobsThere != all || two.BytesThere != first.Size() || two.Images[0].BlobsThere != all {
		t.Errorf("want all there, got %+v", two)
	}
	take(image.New(image.Options{Seed: 2}))
	if got := runCommand(environ, "history", "app:1"); strings.Count(got.stdout, "import") != 2 {
		t.Errorf("want two imports in the ledger, got %+v", got)
	}
}
