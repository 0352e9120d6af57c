package app

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// result is what a run of the command has printed.
type result struct {
	code           int
	stdout, stderr string
}

// runCommand runs the command in this process, with nothing of its environment.
func runCommand(environ []string, args ...string) result {
	var stdout, stderr bytes.Buffer
	p := process{
		args: args, environ: environ, stdout: &stdout, stderr: &stderr,
		signals: func() (<-chan os.Signal, func()) { return nil, func() {} },
	}
	code := p.run()
	return result{code, stdout.String(), stderr.String()}
}

// writeFile writes a file of the test and gives its path.
func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExitCodes(t *testing.T) {
	good := writeFile(t, "good.yml", "listen: \":5000\"\n")
	bad := writeFile(t, "bad.yml", "lisen: \":5000\"\n")
	for _, c := range []struct {
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{[]string{"--help"}, 0, "Usage:", ""},
		{[]string{"help", "serve"}, 0, "shutdown_timeout", ""},
		{[]string{"serve", "--help"}, 0, "Examples:", ""},
		{[]string{"--version"}, 0, "entrepot ", ""},
		{[]string{"version"}, 0, "entrepot ", ""},
		{[]string{"completion", "bash"}, 0, "entrepot", ""},
		{[]string{"config", "check", good}, 0, good + ": ok\n", ""},
		{[]string{"config", "check"}, 0, "the defaults and the environment: ok", ""},
		{[]string{"config", "check", "--config", good}, 0, good + ": ok\n", ""},
		{[]string{"config", "show"}, 0, "listen: :5000\n", ""},

		{[]string{"config", "check", bad}, 1, "", "entrepot: " + bad + ":1:1: lisen: unknown key; did you mean listen?\n"},
		{[]string{"config", "check", "/none.yml"}, 1, "", "/none.yml does not exist"},
		{[]string{"config", "show", "--config", bad}, 1, "", "lisen: unknown key"},
		{[]string{"serve", "--config", bad}, 1, "", "lisen: unknown key"},
		{[]string{"--config", bad}, 1, "", "lisen: unknown key"},
		{[]string{"--listen", "5000"}, 2, "", `flag --listen: listen: "5000" is no address`},
		{[]string{"serve", "--log-level", "trace"}, 2, "", "flag --log-level: log.level"},
		{[]string{"config", "show", "--admin-listen", "5001"}, 2, "", "flag --admin-listen: admin.listen"},
		{[]string{"serve", "--config", bad, "--log-level", "trace"}, 1, "", "lisen: unknown key"},

		{[]string{"nosuch"}, 2, "", `unknown command "nosuch"`},
		{[]string{"serv"}, 2, "", "Did you mean this?"},
		{[]string{"--nosuch"}, 2, "", "unknown flag: --nosuch"},
		{[]string{"serve", "extra"}, 2, "", `unknown command "extra"`},
		{[]string{"config", "check", good, bad}, 2, "", "accepts at most 1 arg"},
		{[]string{"config"}, 2, "", "entrepot config needs one of check, show"},
		{[]string{"config", "chekc"}, 2, "", "chekc"},
		{[]string{"gc", "docker.io"}, 2, "", "gc takes no reference: it removes what no image uses; to remove images, use `entrepot purge docker.io`"},
		{[]string{"help", "nosuch"}, 2, "", `unknown command "nosuch"`},
		{[]string{"help", "config", "nosuch"}, 2, "", `unknown command "nosuch"`},
		{[]string{"completion"}, 2, "", "entrepot completion needs one of bash, fish, powershell, zsh"},
		{[]string{"completion", "tcsh"}, 2, "", `unknown command "tcsh"`},
		{[]string{"healthcheck", "--timeout", "soon"}, 2, "", `invalid argument "soon" for --timeout: it takes a duration such as 30s, 10m or 2h`},
		{[]string{"stats", "--top", "many"}, 2, "", `invalid argument "many" for --top: it takes a whole number`},
		{[]string{"stats", "--top", "-1"}, 2, "", `invalid argument "-1" for --top`},
		{[]string{"--config"}, 2, "", "needs an argument"},
	} {
		got := runCommand(nil, c.args...)
		if got.code != c.code || !strings.Contains(got.stdout, c.stdout) || !strings.Contains(got.stderr, c.stderr) {
			t.Errorf("entrepot %s: want %d, stdout with %q, stderr with %q, got %+v", strings.Join(c.args, " "), c.code, c.stdout, c.stderr, got)
		}
		if c.code == 0 && got.stderr != "" {
			t.Errorf("entrepot %s: want nothing on stderr, got %q", strings.Join(c.args, " "), got.stderr)
		}
		if usage := strings.Contains(got.stderr, "--help' for usage"); usage != (c.code == 2) {
			t.Errorf("entrepot %s: points to the usage: %v, exit code %d", strings.Join(c.args, " "), usage, c.code)
		}
	}
}

func TestEveryCommandHasHelpWithAnExample(t *testing.T) {
	root := newRoot(&process{})
	for _, c := range root.Commands() {
		if c.Name() == "version" || c.Name() == "completion" || c.Name() == "help" {
			continue
		}
		for _, c := range append(c.Commands(), c) {
			if c.Short == "" || (c.Runnable() && !c.HasSubCommands() && c.Example == "") {
				t.Errorf("%s: want a short help and an example", c.CommandPath())
			}
		}
	}
	if root.Example == "" {
		t.Error("entrepot itself has no example")
	}
}

func TestConfigFileComesFromTheEnvironmentUnlessAFlagGivesIt(t *testing.T) {
	fromEnv := writeFile(t, "env.yml", "listen: \":1001\"\n")
	fromFlag := writeFile(t, "flag.yml", "listen: \":1002\"\n")
	environ := []string{"ENTREPOT_CONFIG=" + fromEnv}
	if got := runCommand(environ, "config", "show"); !strings.Contains(got.stdout, "listen: :1001\n") {
		t.Errorf("want the file of the environment, got %+v", got)
	}
	if got := runCommand(environ, "config", "show", "-c", fromFlag); !strings.Contains(got.stdout, "listen: :1002\n") {
		t.Errorf("want the file of the flag, got %+v", got)
	}
}

func TestFlagsSetTheirKeys(t *testing.T) {
	got := runCommand([]string{"ENTREPOT_LISTEN=:1001"}, "config", "show",
		"--listen", ":1002", "--admin-listen", "off", "--cache-dir", "/srv/cache", "--log-level", "debug", "--offline")
	for _, want := range []string{"listen: :1002\n", "listen: \"off\"\n", "dir: /srv/cache\n", "level: debug\n", "offline: true\n"} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("want %q in\n%s%s", want, got.stdout, got.stderr)
		}
	}
}

func TestConfigShowHidesSecrets(t *testing.T) {
	file := writeFile(t, "entrepot.yml", "upstreams: {ghcr.io: {credentials: {username: alice, password: hunter2}}}\n")
	got := runCommand([]string{
		"ENTREPOT_UPSTREAMS_DOCKER_IO_CREDENTIALS_USERNAME=bob",
		"ENTREPOT_UPSTREAMS_DOCKER_IO_CREDENTIALS_PASSWORD=hunter2",
	}, "config", "show", "--config", file)
	if got.code != 0 || strings.Contains(got.stdout+got.stderr, "hunter2") || strings.Count(got.stdout, `password: "***"`) != 2 {
		t.Errorf("want two passwords as stars, got %+v", got)
	}
}
