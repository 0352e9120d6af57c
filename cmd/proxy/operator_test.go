package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOperatorsCommandsExitAlike runs them on a directory that no process holds.
func TestOperatorsCommandsExitAlike(t *testing.T) {
	environ := []string{"ENTREPOT_ADMIN_LISTEN=off", "ENTREPOT_CACHE_DIR=" + filepath.Join(t.TempDir(), "cache")}
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

		{[]string{"explain", "quay.example.test/app:1"}, 1, "", `registry "quay.example.test" is not configured here`},
		{[]string{"history", "nginx"}, 1, "", "nothing is known of docker.io/library/nginx:latest"},
		{[]string{"accept", "nginx"}, 1, "", "docker.io/library/nginx:latest is no tag that is known here"},
		{[]string{"reload"}, 1, "", "no entrepot runs with these settings"},
		{[]string{"explain", "nginx", "--admin-listen", "off"}, 1, "", "admin.listen is off, so that there is nothing to ask"},
		{[]string{"diff", "--cache-dir", "/dev/null/cache"}, 1, "", "set cache.dir (--cache-dir, ENTREPOT_CACHE_DIR) to a directory"},

		{[]string{"explain"}, 2, "", "accepts 1 arg(s), received 0"},
		{[]string{"explain", "No Such Name"}, 2, "", `"No Such Name" is no reference of an image, such as`},
		{[]string{"history", "nginx@sha256:" + strings.Repeat("a", 64)}, 2, "", "names a digest, which never changes; name a tag"},
		{[]string{"accept", "nginx@sha256:" + strings.Repeat("a", 64)}, 2, "", "names a digest, which never changes; name a tag"},
		{[]string{"diff", "--since", "soon"}, 2, "", `"soon" is no time; give a duration such as 24h`},
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
