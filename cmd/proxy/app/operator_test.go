package app

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/configs"
)

// TestAShortNameThatNoUpstreamHasNamesTheDefaultOnes asks for a name without a registry where
// docker.io isn't configured.
func TestAShortNameThatNoUpstreamHasNamesTheDefaultOnes(t *testing.T) {
	file := writeFile(t, "entrepot.yml", "default_upstream: reg.test\nupstreams: {docker.io: null, reg.test: {}}\n")
	environ := []string{"ENTREPOT_CONFIG=" + file, "ENTREPOT_ADMIN_LISTEN=off", "ENTREPOT_CACHE_DIR=" + filepath.Join(t.TempDir(), "cache")}
	if got := runCommand(environ, "warm", "--from-log"); got.code != 0 { // begins the cache
		t.Fatalf("%+v", got)
	}
	for _, command := range []string{"explain", "warm --dry-run", "history", "accept"} {
		got := runCommand(environ, append(strings.Fields(command), "team/app:1")...)
		if want := "did you mean reg.test/team/app:1?"; got.code != 1 || !strings.Contains(got.stdout+got.stderr, want) {
			t.Errorf("%s: want 1 and %q, got %+v", command, want, got)
		}
	}
}

// TestOperatorsCommandsExitAlike runs them on a directory that no process holds.
func TestOperatorsCommandsExitAlike(t *testing.T) {
	environ := []string{"ENTREPOT_ADMIN_LISTEN=off", "ENTREPOT_CACHE_DIR=" + filepath.Join(t.TempDir(), "cache")}
	if got := runCommand(environ, "warm", "--from-log"); got.code != 0 { // begins the cache
		t.Fatalf("%+v", got)
	}
	for _, c := range []struct {
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{[]string{"explain", "nginx:1.27"}, 0, "docker.io/library/nginx:1.27: miss (the tag has not been asked for)", ""},
		{[]string{"explain", "-o", "json", "nginx"}, 0, `"reference": "docker.io/library/nginx:latest"`, ""},
		{[]string{"diff"}, 0, "no tag was seen to move since", ""},
		{[]string{"diff", "--since", "7d", "--output", "json"}, 0, `"moves": []`, ""},
		{[]string{"scrub", "--rate", "50MiB"}, 0, "verified: 0 blobs", ""},

		{[]string{"missing"}, 0, "0 images missing", ""},
		{[]string{"missing", "-o", "json"}, 0, `"images": []`, ""},
		{[]string{"missing", "-o", "names"}, 0, "", ""},
		{[]string{"missing", "-o", "xml"}, 2, "", "give table or json, or names"},
		{[]string{"rehearse"}, 0, "0 images: 0 would be served", ""},
		{[]string{"warm", "--from-log", "--last", "1d"}, 0, "0 images, 0 failed", ""},
		{[]string{"warm", "--from-log", "-o", "json"}, 0, `"images": []`, ""},

		{[]string{"warm", "-f", "/none"}, 1, "", "--file: open /none"},
		{[]string{"warm", "-f", "-"}, 1, "", "--file: there is no stdin"},
		{[]string{"warm", "-f", "/dev/null"}, 0, "0 images, 0 failed", "entrepot: /dev/null names no image"},
		{[]string{"purge", "nginx:1", "none:2"}, 1, "", "nothing was removed: "},
		{[]string{"explain", "ghcr.io"}, 1, "", "no cached image matches ghcr.io"},
		{[]string{"pin", "ghcr.io"}, 1, "", "no cached image matches ghcr.io"},
		{[]string{"warm", "--dry-run", "quay.io"}, 1, "", "no cached image matches quay.io"},
		{[]string{"pin", "registry.example:5000"}, 1, "", "no cached image matches registry.example:5000"},
		{[]string{"history", "ghcr.io"}, 2, "", "ghcr.io is a registry and not an image: name an image of it, such as ghcr.io/team/app:1.0; `entrepot ls ghcr.io` lists those that are cached"},
		{[]string{"inspect", "index.docker.io"}, 2, "", "index.docker.io is a registry and not an image: name an image of it, such as docker.io/team/app:1.0"},
		{[]string{"explain", "quay.example.test/app:1"}, 1, "", `registry "quay.example.test" is not configured here`},
		{[]string{"history", "nginx"}, 1, "", "nothing is known of docker.io/library/nginx:latest"},
		{[]string{"accept", "nginx"}, 1, "", "docker.io/library/nginx:latest is no tag that is known here"},
		{[]string{"reload"}, 1, "", "no entrepot runs with these settings"},
		{[]string{"explain", "nginx", "--admin-listen", "off"}, 1, "", "admin.listen is off, so that there is nothing to ask"},
		{[]string{"diff", "--cache-dir", "/dev/null/cache"}, 1, "", "no cache in /dev/null/cache; name the directory of one (--cache-dir, ENTREPOT_CACHE_DIR, cache.dir)"},
		{[]string{"warm", "--from-log", "--cache-dir", "/dev/null/cache"}, 1, "", "set cache.dir (--cache-dir, ENTREPOT_CACHE_DIR) to a directory"},

		{[]string{"explain"}, 2, "", "requires at least 1 arg(s)"},
		{[]string{"explain", "No Such Name"}, 2, "", `"No Such Name" is no reference of an image, such as`},
		{[]string{"history", "nginx@sha256:" + strings.Repeat("a", 64)}, 2, "", "names a digest, which never changes; name a tag"},
		{[]string{"accept", "nginx@sha256:" + strings.Repeat("a", 64)}, 2, "", "names a digest, which never changes; name a tag"},
		{[]string{"diff", "--since", "soon"}, 2, "", `"soon" is no time; give a duration such as 24h`},
		{[]string{"warm"}, 2, "", "name images, or a file that does by --file, or give --from-log"},
		{[]string{"warm", "No Such Name"}, 2, "", `"No Such Name" is no reference of an image, such as`},
		{[]string{"warm", "nginx", "--platform", "amd64"}, 2, "", `--platform: "amd64" is no platform, such as linux/amd64`},
		{[]string{"warm", "nginx", "--jobs", "65"}, 2, "", "--jobs: 65 is not between 1 and 64"},
		{[]string{"warm", "nginx", "--last", "7d"}, 2, "", "--last goes with --from-log"},
		{[]string{"warm", "nginx", "--format", "csv"}, 2, "", "give one of auto, list, compose, kubernetes, dockerfile"},
		{[]string{"rehearse", "nginx", "--last", "7d"}, 2, "", "--last is for what clients have pulled"},
		{[]string{"rehearse", "--last", "soon"}, 2, "", `is no time; give a duration such as 24h`},
		{[]string{"scrub", "--rate", "fast"}, 2, "", `"fast" is no size`},
	} {
		got := runCommand(environ, c.args...)
		if got.code != c.code || !strings.Contains(got.stdout, c.stdout) || !strings.Contains(got.stderr, c.stderr) {
			t.Errorf("entrepot %s: want %d, stdout with %q, stderr with %q, got %+v", strings.Join(c.args, " "), c.code, c.stdout, c.stderr, got)
		}
		if c.code != 0 && got.stdout != "" {
			t.Errorf("entrepot %s: want nothing on stdout, got %q", strings.Join(c.args, " "), got.stdout)
		}
		if usage := strings.Contains(got.stderr, "--help' for usage"); usage != (c.code == 2) {
			t.Errorf("entrepot %s: points to the usage: %v, exit code %d", strings.Join(c.args, " "), usage, c.code)
		}
	}
}

// TestAWrongFlagIsToldBeforeAnythingIsDone is about the flag that all of them have.
func TestAWrongFlagIsToldBeforeAnythingIsDone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	commands := 0
	for _, c := range documentedCommands(newRoot(&process{})) {
		if c.Flags().Lookup("output") == nil || c.Flags().Lookup("cache-dir") == nil {
			continue
		}
		commands++
		path := strings.Fields(c.CommandPath())
		got := runCommand([]string{"ENTREPOT_ADMIN_LISTEN=off", "ENTREPOT_CACHE_DIR=" + dir}, append(path[1:], "--output", "xml")...)
		if got.code != exitUsage || !strings.Contains(got.stderr, `invalid argument "xml" for "-o, --output" flag: give table or json`) &&
			!strings.Contains(got.stderr, `invalid argument "xml" for "--output" flag: give table or json`) {
			t.Errorf("%s --output xml: want %d and what to give, got %+v", c.CommandPath(), exitUsage, got)
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Fatalf("%s --output xml has made the directory of the cache: %v", c.CommandPath(), err)
		}
	}
	if commands < 5 {
		t.Errorf("only %d commands print in formats", commands)
	}
}

func TestAWrongCommandLineIsToldBeforeAnythingIsDone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	for _, c := range []struct{ line, stderr string }{
		{"warm --jobs 0 nginx", "--jobs: 0 is not between 1 and"},
		{"warm --platform amd64 nginx", `"amd64" is no platform`},
		{"rehearse --format none nginx", "--format"},
		{"export --bundle bundle.tar", "name the images to export, a --file that names them, or --all"},
		{"export --bundle bundle.tar --all nginx", "--all is of all images"},
		{"export --bundle bundle.tar --platform amd64 nginx", `"amd64" is no platform`},
		{"export --bundle bundle.tar N:x:y", "is no reference of an image"},
		{"export nginx", "name the bundle: --bundle bundle.tar"},
		{"export -o xml nginx", "give table or json, and name the bundle by --bundle"},
		{"import", "requires at least 1 arg(s)"},
		{"import - bundle.tar", "- is standard input, and stands alone"},
		{"import --name nginx a.tar b.tar", "--name is for one archive"},
		{"inspect --raw --verify nginx", "--raw prints the manifest's bytes alone"},
		{"purge", "say what to purge"},
		{"purge nginx No:Such:Name", "is no reference of an image"},
		{"purge nginx --upstream quay.io", "a reference goes with neither --older-than nor --upstream"},
		{"purge --older-than soon", `"soon" is no duration`},
		{"purge --older-than 0s", "is no duration that is over"},
		{"gc all", "gc takes no reference"},
		{"pin", "requires at least 1 arg(s)"},
		{"pin nginx No:Such:Name", "is no reference of an image"},
	} {
		got := runCommand([]string{"ENTREPOT_ADMIN_LISTEN=off", "ENTREPOT_CACHE_DIR=" + dir}, strings.Fields(c.line)...)
		if got.code != exitUsage || !strings.Contains(got.stderr, c.stderr) || got.stdout != "" {
			t.Errorf("entrepot %s: want %d and %q, got %+v", c.line, exitUsage, c.stderr, got)
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Fatalf("entrepot %s has made the directory of the cache: %v", c.line, err)
		}
	}
}

// TestAStrangerAtTheAddressIsNoEntrepot has another program listen where the admin
// listener would.
func TestAStrangerAtTheAddressIsNoEntrepot(t *testing.T) {
	stranger := httptest.NewServer(http.NotFoundHandler())
	defer stranger.Close()
	address := strings.TrimPrefix(stranger.URL, "http://")
	environ := []string{"ENTREPOT_ADMIN_LISTEN=" + address, "ENTREPOT_CACHE_DIR=" + filepath.Join(t.TempDir(), "cache")}
	if got := runCommand(environ, "warm", "--from-log"); got.code != 0 { // begins the cache
		t.Fatalf("%+v", got)
	}
	if got := runCommand(environ, "explain", "nginx"); got.code != 0 || !strings.Contains(got.stdout, "has not been asked for") {
		t.Errorf("want the directory looked at, got %+v", got)
	}
	if got := runCommand(environ, "reload"); got.code != 1 || !strings.Contains(got.stderr, "no entrepot runs with these settings: what listens at "+address+" is none") {
		t.Errorf("want it said, got %+v", got)
	}
	if got := runCommand(environ, "explain", "nginx", "--admin-listen", address); got.code != 1 || !strings.Contains(got.stderr, "ask the entrepot at "+address) {
		t.Errorf("of an address that is named: want a failure, got %+v", got)
	}
}

func TestAnUpstreamOfWhichClientsHaveWhatIsTheirsIsPrivate(t *testing.T) {
	p := &parts{mirrors: map[string]*mirror{
		"private.example.test": {configured: &configs.Upstream{Access: configs.AccessPassthrough}},
		"docker.io":            {configured: &configs.Upstream{Access: configs.AccessShared}},
	}}
	for name, want := range map[string]bool{"private.example.test": true, "docker.io": false, "unknown.example.test": false} {
		if got := p.isPrivate(name); got != want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}
