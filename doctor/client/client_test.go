package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
	"go.yaml.in/yaml/v3"
)

// site is one whose files are below a directory of the test.
func site(t *testing.T) Site {
	t.Helper()
	t.Setenv("DOCKER_HOST", "") // no daemon of this machine
	return Site{URL: "http://10.0.0.5:5000", Upstreams: []string{"docker.io", "ghcr.io"}, Root: t.TempDir()}
}

// put writes a file of the site.
func put(t *testing.T, s Site, path, text string) {
	t.Helper()
	path = s.at(path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o640)); err != nil {
		t.Fatal(err)
	}
}

// planned plans, writes what is to be written, and checks that nothing is left to do.
func planned(t *testing.T, name string, s Site) map[string]string {
	t.Helper()
	files, err := Plan(t.Context(), name, s)
	if err != nil {
		t.Fatal(err)
	}
	is := map[string]string{}
	for _, f := range files {
		is[strings.TrimPrefix(f.Path, s.Root)] = string(f.New)
		backup, err := f.Write(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if kept, err := os.ReadFile(backup); backup != "" && (err != nil || string(kept) != string(f.Old)) {
			t.Errorf("%s: want what was there, got %q, %v", backup, kept, err)
		}
		if (backup != "") != (f.Exists && f.Changes()) {
			t.Errorf("%s: backup %q", f.Path, backup)
		}
	}
	again, err := Plan(t.Context(), name, s)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range again {
		if f.Changes() {
			t.Errorf("%s: a second run would change it again:\n%s\nto\n%s", f.Path, f.Old, f.New)
		}
	}
	return is
}

func TestFilesThatAreNotThereAreMadeOfTheReadyOnes(t *testing.T) {
	for name, c := range map[string]struct {
		path  string
		parse func([]byte, any) error
		parts []string
	}{
		"docker":     {"/etc/docker/daemon.json", json.Unmarshal, []string{`"registry-mirrors": ["http://10.0.0.5:5000"]`}},
		"containerd": {"/etc/containerd/certs.d/_default/hosts.toml", toml.Unmarshal, []string{`[host."http://10.0.0.5:5000"]`}},
		"podman":     {"/etc/containers/registries.conf.d/50-entrepot.conf", toml.Unmarshal, []string{`location = "10.0.0.5:5000/docker.io"`, `location = "10.0.0.5:5000/ghcr.io"`, "insecure = true", "unqualified-search"}},
		"buildkit":   {"/etc/buildkit/buildkitd.toml", toml.Unmarshal, []string{"[registry.\"ghcr.io\"]\n  mirrors = [\"10.0.0.5:5000\"]", "[registry.\"10.0.0.5:5000\"]\n  http = true"}},
		"k3s":        {"/etc/rancher/k3s/registries.yaml", yaml.Unmarshal, []string{`- "http://10.0.0.5:5000"`}},
	} {
		t.Run(name, func(t *testing.T) {
			s := site(t)
			text := planned(t, name, s)[c.path]
			for _, part := range c.parts {
				if !strings.Contains(text, part) {
					t.Errorf("want %q in\n%s", part, text)
				}
			}
			if strings.Contains(text, "cache:5000") {
				t.Errorf("the address is not filled in:\n%s", text)
			}
			var v map[string]any
			if err := c.parse([]byte(text), &v); err != nil {
				t.Errorf("%v in\n%s", err, text)
			}
			s.URL = "https://cache.example.test"
			s.Root = t.TempDir()
			text = planned(t, name, s)[c.path]
			if strings.Contains(text, "http://") || strings.Contains(text, "insecure = true") || strings.Contains(text, "http = true") || !strings.Contains(text, "cache.example.test") {
				t.Errorf("it is to be asked by https:\n%s", text)
			}
		})
	}
	if _, err := Plan(t.Context(), "rkt", site(t)); err == nil || !strings.Contains(err.Error(), "docker, containerd, podman, buildkit, k3s") {
		t.Errorf("want the names that are known, got %v", err)
	}
}

func TestWhatIsThereIsKept(t *testing.T) {
	const url = "http://10.0.0.5:5000"
	for name, c := range map[string]struct{ client, path, old, want string }{
		"daemon.json with other keys": {"docker", "/etc/docker/daemon.json",
			"{\n  \"log-driver\": \"journald\",\n  \"registry-mirrors\": [\"https://old.test\"],\n  \"data-root\": \"/srv\"\n}\n",
			"{\n  \"log-driver\": \"journald\",\n  \"registry-mirrors\": [\"" + url + "\",\"https://old.test\"],\n  \"data-root\": \"/srv\"\n}\n"},
		"daemon.json without mirrors": {"docker", "/etc/docker/daemon.json",
			"{\n  \"log-driver\": \"journald\"\n}\n", "{\n  \"registry-mirrors\": [\"" + url + "\"],\n  \"log-driver\": \"journald\"\n}\n"},
		"daemon.json that is empty": {"docker", "/etc/docker/daemon.json", "{}\n", "{\n  \"registry-mirrors\": [\"" + url + "\"]\n}\n"},
		"daemon.json that has it":   {"docker", "/etc/docker/daemon.json", `{"registry-mirrors":["` + url + `/"]}`, `{"registry-mirrors":["` + url + `/"]}`},
		"daemon.json that has it last": {"docker", "/etc/docker/daemon.json",
			`{"registry-mirrors":["https://old.test","` + url + `"]}`, `{"registry-mirrors":["` + url + `","https://old.test"]}`},
		"hosts.toml with another host": {"containerd", "/etc/containerd/certs.d/docker.io/hosts.toml",
			"# ours\nserver = \"https://registry-1.docker.io\"\n\n[host.\"https://old.test\"]\n  capabilities = [\"pull\"]\n",
			"# ours\nserver = \"https://registry-1.docker.io\"\n\n[host.\"" + url + "\"]\n  capabilities = [\"pull\", \"resolve\"]\n\n[host.\"https://old.test\"]\n  capabilities = [\"pull\"]\n"},
		"hosts.toml without a host": {"containerd", "/etc/containerd/certs.d/_default/hosts.toml", "server = \"https://x.test\"\n",
			"server = \"https://x.test\"\n\n[host.\"" + url + "\"]\n  capabilities = [\"pull\", \"resolve\"]\n"},
		"config.toml of version 2": {"containerd", "/etc/containerd/config.toml", "version = 2\n[grpc]\n  address = \"/x\"\n",
			"version = 2\n[grpc]\n  address = \"/x\"\n\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"/etc/containerd/certs.d\"\n"},
		"config.toml of version 3 with an empty path": {"containerd", "/etc/containerd/config.toml",
			"version = 3\n[plugins.'io.containerd.cri.v1.images']\n  [plugins.'io.containerd.cri.v1.images'.registry]\n    config_path = '' # none\n",
			"version = 3\n[plugins.'io.containerd.cri.v1.images']\n  [plugins.'io.containerd.cri.v1.images'.registry]\n    config_path = \"/etc/containerd/certs.d\"\n"},
		"config.toml with the table alone": {"containerd", "/etc/containerd/config.toml",
			"version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"/etc/containerd/certs.d\"\n"},
		"config.toml without CRI": {"containerd", "/etc/containerd/config.toml", "disabled_plugins = [\"cri\"]\n", "disabled_plugins = [\"cri\"]\n"},
		"buildkitd.toml with mirrors": {"buildkit", "/etc/buildkit/buildkitd.toml",
			"debug = true\n[registry.\"docker.io\"]\n  mirrors = [\"old.test\"] # ours\n[registry.\"ghcr.io\"]\n  http = false\n[registry.\"10.0.0.5:5000\"]\n  http = true\n",
			"debug = true\n[registry.\"docker.io\"]\n  mirrors = [\"10.0.0.5:5000\", \"old.test\"] # ours\n[registry.\"ghcr.io\"]\n  mirrors = [\"10.0.0.5:5000\"]\n  http = false\n[registry.\"10.0.0.5:5000\"]\n  http = true\n"},
		"registries.yaml with others": {"k3s", "/etc/rancher/k3s/registries.yaml",
			"# ours\nmirrors:\n  docker.io:\n    endpoint:\n      - https://old.test\nconfigs:\n  old.test:\n    tls:\n      ca_file: /ca.pem\n",
			"# ours\nmirrors:\n  docker.io:\n    endpoint:\n      - " + url + "\n      - https://old.test\n  \"*\":\n    endpoint:\n      - " + url + "\nconfigs:\n  old.test:\n    tls:\n      ca_file: /ca.pem\n"},
		"registries.yaml with passwords": {"k3s", "/etc/rancher/k3s/registries.yaml",
			"---\n# all\nconfigs: # here\n  'a:1':\n    auth: {username: \"1e3\", password: 0o17} # theirs\n\n# ours\nmirrors: # of all\n  ghcr.io: # first\n    endpoint: ['https://old.test']\n\n# more\nother: [1_0]",
			"---\n# all\nconfigs: # here\n  'a:1':\n    auth: {username: \"1e3\", password: 0o17} # theirs\n\n# ours\nmirrors: # of all\n  ghcr.io: # first\n    endpoint:\n      - " + url + "\n      - https://old.test\n  \"*\":\n    endpoint:\n      - " + url + "\n\n# more\nother: [1_0]"},
		"registries.yaml with comments": {"k3s", "/etc/rancher/k3s/registries.yaml",
			"mirrors:\n  # the hub\n  docker.io: # hub\n    # list\n    endpoint: # endpoints\n      # first\n      - https://a.test # a\n    rewrite:\n      \"^(.*)\": \"x/$1\" # as is\n\n# last\nconfigs: {}\n",
			"mirrors:\n  # the hub\n  docker.io: # hub\n    # list\n    endpoint: # endpoints\n      - " + url + "\n      # first\n      - https://a.test # a\n    rewrite:\n      \"^(.*)\": \"x/$1\" # as is\n  \"*\":\n    endpoint:\n      - " + url + "\n\n# last\nconfigs: {}\n"},
		"registries.yaml without mirrors": {"k3s", "/etc/rancher/k3s/registries.yaml",
			"configs:\n  a:\n    auth:\n      password: \"1e3\"", "configs:\n  a:\n    auth:\n      password: \"1e3\"\nmirrors:\n  \"*\":\n    endpoint:\n      - " + url + "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			s := site(t)
			put(t, s, c.path, c.old)
			if got := planned(t, c.client, s)[c.path]; got != c.want {
				t.Errorf("want\n%s\ngot\n%s", c.want, got)
			}
		})
	}
}

func TestWhatCanNotBeMergedIsLeftAlone(t *testing.T) {
	for name, c := range map[string]struct{ client, path, old, why string }{
		"no JSON":           {"docker", "/etc/docker/daemon.json", "{", "no JSON object"},
		"mirrors no list":   {"docker", "/etc/docker/daemon.json", `{"registry-mirrors": "x"}`, "is no list"},
		"no TOML":           {"containerd", "/etc/containerd/certs.d/_default/hosts.toml", "[", "no TOML"},
		"no referrers":      {"docker", "/etc/docker/certs.d/_default/hosts.toml", "[host.\"http://10.0.0.5:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n", "lacks the capability referrers"},
		"another first":     {"docker", "/etc/docker/certs.d/_default/hosts.toml", "# [host.\"http://x.test\"]\n[host.\"https://old.test\"]\n[host.\"http://10.0.0.5:5000\"]\n", "https://old.test in it comes before"},
		"push alone":        {"containerd", "/etc/containerd/certs.d/_default/hosts.toml", "[host.\"http://10.0.0.5:5000\"]\n  capabilities = [\"push\"]\n", "lacks the capability pull"},
		"old config.toml":   {"containerd", "/etc/containerd/config.toml", "[plugins.cri]\n", "version 0"},
		"deprecated config": {"containerd", "/etc/containerd/config.toml", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\n  endpoint = [\"https://x.test\"]\n", "would not start"},
		"inline table":      {"buildkit", "/etc/buildkit/buildkitd.toml", "registry = { \"docker.io\" = { http = true } }\n", "could not be changed"},
		"no YAML":           {"k3s", "/etc/rancher/k3s/registries.yaml", "configs: {a: {auth: {password: hunter2\n", "no YAML"},
		"no newlines":       {"k3s", "/etc/rancher/k3s/registries.yaml", "configs: {}\rother: {}\rmirrors: {}\r", "newline"},
		"a starred text":    {"k3s", "/etc/rancher/k3s/registries.yaml", "configs: {a: {auth: {password: *hunter2}}}\n", "no anchor above it"},
		"a key twice":       {"k3s", "/etc/rancher/k3s/registries.yaml", "configs:\n  a: {}\n  a: {}\n", "line 3: a key is there twice"},
		"very deep":         {"k3s", "/etc/rancher/k3s/registries.yaml", "configs: " + strings.Repeat("[", 200) + strings.Repeat("]", 200) + "\n", "100 deep"},
		"mirrors a list":    {"k3s", "/etc/rancher/k3s/registries.yaml", "mirrors: [1]\n", "no mapping"},
		"mirrors twice":     {"docker", "/etc/docker/daemon.json", `{"registry-mirrors": ["https://a.test"], "registry-mirrors": ["https://b.test"]}`, "more than once"},
		"two documents":     {"k3s", "/etc/rancher/k3s/registries.yaml", "mirrors: {}\n---\nconfigs: {a: {auth: {password: hunter2}}}\n", "2 documents"},
		"an alias":          {"k3s", "/etc/rancher/k3s/registries.yaml", "mirrors:\n  docker.io: &d\n    endpoint: [\"https://a.test\"]\n  ghcr.io: *d\n", "anchors"},
		"braces":            {"k3s", "/etc/rancher/k3s/registries.yaml", "{mirrors: {}, configs: {}}\n", "begin lines"},
	} {
		t.Run(name, func(t *testing.T) {
			s := site(t)
			put(t, s, c.path, c.old)
			_, err := Plan(t.Context(), c.client, s)
			unmerged := (*Unmerged)(nil)
			if !errors.As(err, &unmerged) || !strings.Contains(err.Error(), c.why) || unmerged.Text == "" {
				t.Errorf("want %q and what to put in, got %v", c.why, err)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a secret is shown: %v", err)
			}
		})
	}
}

func TestOtherRegistriesOfPodmanAreHeeded(t *testing.T) {
	s := site(t)
	put(t, s, "/etc/containers/registries.conf", "unqualified-search-registries = [\"quay.io\"]\n[[registry]]\nlocation = \"docker.io\"\n")
	files, err := Plan(t.Context(), "podman", s)
	if err != nil {
		t.Fatal(err)
	}
	if text := string(files[0].New); strings.Contains(text, searchKey) {
		t.Errorf("it would change where names without a registry are looked for:\n%s", text)
	}
	if notes := strings.Join(files[0].Notes, " "); !strings.Contains(notes, "[[registry]] of docker.io") {
		t.Errorf("want a note on the other one, got %q", notes)
	}
}

func TestWriteKeepsModeAndLinkAndRefusesWhatHasChanged(t *testing.T) {
	s := site(t)
	put(t, s, "/srv/daemon.json", "{}\n")
	if err := os.MkdirAll(s.at("/etc/docker"), 0o755); err != nil {
		t.Fatal(err)
	}
	link := s.at("/etc/docker/daemon.json")
	if err := os.Symlink(s.at("/srv/daemon.json"), link); err != nil {
		t.Fatal(err)
	}
	stale, err := Plan(t.Context(), "docker", s)
	if err != nil {
		t.Fatal(err)
	}
	planned(t, "docker", s)
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v, %v", info, err)
	}
	info, err := os.Stat(link)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("want mode 640, got %v, %v", info.Mode(), err)
	}
	if _, err := stale[len(stale)-1].Write(time.Now()); err == nil || !strings.Contains(err.Error(), "has changed") {
		t.Errorf("want a refusal of what has changed meanwhile, got %v", err)
	}
	left, err := filepath.Glob(s.at("/srv/*"))
	if err != nil || len(left) != 2 {
		t.Errorf("want the file and one backup, got %v", left)
	}
}

func TestRegistriesThatWouldFillTheMemoryAreRefused(t *testing.T) {
	bomb := "a: &a [x,x]\n"
	for c := 'b'; c < 'z'; c++ {
		bomb += fmt.Sprintf("%[1]c: &%[1]c [*%[2]c,*%[2]c]\n", c, c-1)
	}
	for _, old := range []string{bomb, strings.Repeat("[", 100_000), strings.Repeat("{a: ", 25_000), strings.Repeat("- ", 50_000), strings.Repeat("? ", 50_000)} {
		if _, err := mergeRegistries(old, Site{URL: "http://cache:5000"}); err == nil || len(err.Error()) > 300 {
			t.Errorf("%.20q: want it refused in a sentence, got %v", old, err)
		}
	}
}

func TestSpellingsOfOneCacheAreOneMirror(t *testing.T) {
	const at = "http://localhost:5000"
	for _, first := range []string{"http://localhost:5000", "http://127.0.0.1:5000", "http://localhost:5000/", "http://[::1]:5000", "HTTP://LOCALHOST:5000/"} {
		old := `{"registry-mirrors": ["` + first + `", "https://old.test"]}`
		if got, err := mergeDaemon(old, at); err != nil || got != old {
			t.Errorf("%s is another mirror than %s: %s, %v", first, at, got, err)
		}
		if got, err := mergeDaemon(`{"registry-mirrors": ["https://old.test", "`+first+`"]}`, at); err != nil || got != `{"registry-mirrors": ["`+at+`","https://old.test"]}` {
			t.Errorf("%s is in it twice: %s, %v", first, got, err)
		}
	}
	for _, other := range []string{"http://localhost:5001", "https://localhost:5000", "http://127.0.0.2:5000", "http://cache:5000"} {
		if isSameMirror(other, at) {
			t.Errorf("%s is the same mirror as %s", other, at)
		}
	}
}
