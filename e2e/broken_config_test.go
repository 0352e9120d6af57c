package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

// TestABrokenConfigurationFileDisablesOnlyItself breaks the file beside a running proxy in
// several ways, and wants every command that asks the proxy to reach it.
func TestABrokenConfigurationFileDisablesOnlyItself(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	img := image.New(image.Options{})
	h.Push("library/app", "1.0", img)
	pullRaw(t, p, "library/app", img)
	get(t, p, tagPath)
	good, err := os.ReadFile(p.Config())
	if err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(t.TempDir(), "bundle.tar")
	for name, c := range map[string]struct{ text, want string }{
		"an unknown key":     {string(good) + "cach: 3\n", "cach"},
		"a wrong value":      {string(good) + "platforms: [amd64]\n", "platforms"},
		"no YAML at the end": {string(good) + "\t: [\n", "this is no valid YAML"},
		"no YAML at all":     {"this: [is: no\n", "this is no valid YAML"},
		"no admin address":   {strings.Replace(string(good), strings.TrimPrefix(p.AdminURL(), "http://"), "127.0.0.1:1", 1) + "cach: 3\n", "cach"},
	} {
		if err := os.WriteFile(p.Config(), []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"ls"}, {"stats"}, {"pin", "app:1.0"}, {"unpin", "app:1.0"}, {"explain", "app:1.0"}, {"inspect", "app:1.0"},
			{"history", "app:1.0"}, {"diff"}, {"rehearse", "app:1.0"}, {"warm", "app:1.0"}, {"gc"}, {"scrub"}, {"export", "app:1.0", "--bundle", bundle}, {"import", bundle}} {
			got := operate(t, p, append(args, "--cache-dir", p.Dir)...)
			if got.code != 0 || !strings.Contains(got.err, c.want) || !strings.Contains(got.err, "is asked all the same") {
				t.Errorf("%s: %s: want its work and a warning, got %+v", name, args, got)
			}
		}
		if err := os.Remove(bundle); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if name != "no YAML at all" { // which leaves no trace of the cache directory
			operate(t, p, "ls").want(t, 0, "docker.io/library/app:1.0", c.want)
			operate(t, p, "reload").want(t, 1, c.want, "the configuration stays as it was")
			operate(t, p, "doctor").want(t, 1, c.want, "the running entrepot uses what it read before", "admin listener", "cache directory", "upstream", "is held by the running entrepot")
		}
		if name != "no admin address" && name != "no YAML at all" {
			operate(t, p, "healthcheck", "--ready").want(t, 0, "ok", c.want)
		}
	}
	// A file that is gone says nothing of where the proxy is, but somebody else may.
	if err := os.Remove(p.Config()); err != nil {
		t.Fatal(err)
	}
	operate(t, p, "ls").want(t, 1, "does not exist")
	operate(t, p, "ls", "--cache-dir", p.Dir).want(t, 0, "docker.io/library/app:1.0", "does not exist")
	// Nobody answers, and a directory needs all of the configuration.
	if err := os.WriteFile(p.Config(), append(good, "cach: 3\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Stop(t)
	operate(t, p, "ls").want(t, 1, "cach", "no running entrepot can be asked instead")
	operate(t, p, "doctor").want(t, 1, "cach", "cache directory", "nobody holds it")
	if err := os.WriteFile(p.Config(), good, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestCommandsFindAProxyWhoseAddressWasEdited has the file name another address than the
// one that the running proxy has.
func TestCommandsFindAProxyWhoseAddressWasEdited(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	img := image.New(image.Options{})
	h.Push("library/app", "1.0", img)
	get(t, p, tagPath)
	good, err := os.ReadFile(p.Config())
	if err != nil {
		t.Fatal(err)
	}
	moved := strings.Replace(string(good), strings.TrimPrefix(p.AdminURL(), "http://"), "127.0.0.1:1", 1)
	if moved == string(good) {
		t.Fatal("the configuration has no address to edit")
	}
	if err := os.WriteFile(p.Config(), []byte(moved), 0o600); err != nil {
		t.Fatal(err)
	}
	operate(t, p, "ls").want(t, 0, "docker.io/library/app:1.0")
	operate(t, p, "reload").want(t, 0, "needs a restart: admin.listen")
	// Another proxy's commands are not misled by it.
	_, other := start(t, believing)
	operate(t, other, "ls").want(t, 0, "0 images")
	if err := os.WriteFile(p.Config(), good, 0o600); err != nil {
		t.Fatal(err)
	}
}
