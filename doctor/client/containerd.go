package client

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

const (
	containerdConfig = "/etc/containerd/config.toml"
	// hostsDir is where hosts.toml files are where nothing else is set.
	hostsDir = "/etc/containerd/certs.d"
)

// planContainerd makes the cache the first host of all registries, and has config.toml
// name the directory that says so.
func planContainerd(s Site) ([]*File, error) {
	config, dir, err := planHostsDir(s)
	if err != nil {
		return nil, err
	}
	var files []*File
	add := func(dir, name string) error {
		ready, err := s.ready("containerd/_default/hosts.toml")
		if err != nil {
			return err
		}
		f, err := plan(filepath.Join(dir, name, "hosts.toml"), ready, func(old string) (string, error) { return mergeHosts(old, s.URL) })
		if err == nil {
			files = append(files, f)
		}
		return err
	}
	if err := add(s.at(dir), "_default"); err != nil {
		return nil, err
	}
	// A registry with a file of its own has no use for the default.
	for _, name := range s.Upstreams {
		if _, err := os.Stat(filepath.Join(s.at(dir), name, "hosts.toml")); err == nil {
			if err := add(s.at(dir), name); err != nil {
				return nil, err
			}
		}
	}
	if config != nil {
		files = append(files, config)
	}
	return files, nil
}

// HostsDir gives the directory of hosts.toml files of the site, as config.toml names it.
func HostsDir(s Site) string {
	if _, dir, err := planHostsDir(s); err == nil {
		return s.at(dir)
	}
	return s.at(hostsDir)
}

// mergeHosts puts url before the other hosts of a hosts.toml.
func mergeHosts(old, url string) (string, error) {
	type hosts struct {
		Host map[string]map[string]any `toml:"host"`
	}
	var was hosts
	if err := toml.Unmarshal([]byte(old), &was); err != nil {
		return "", fmt.Errorf("it is no TOML (%w)", err)
	}
	if h, ok := was.Host[url]; ok {
		if list, ok := h["capabilities"].([]any); ok && (!slices.Contains(list, any("pull")) || !slices.Contains(list, any("resolve"))) {
			return "", fmt.Errorf("the host %s in it has not the capabilities pull and resolve", url)
		}
		return old, nil
	}
	lines := strings.Split(old, "\n")
	section := []string{fmt.Sprintf("[host.%q]", url), `  capabilities = ["pull", "resolve"]`, ""}
	at := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(strings.TrimSpace(l), "[") })
	text := join(old, strings.Join(section[:2], "\n")+"\n")
	if at >= 0 {
		text = strings.Join(insert(lines, at, section...), "\n")
	}
	var is hosts
	if err := toml.Unmarshal([]byte(text), &is); err != nil || is.Host[url] == nil {
		return "", errors.New("the host could not be added")
	}
	return text, sameElse(old, text, func(m map[string]any) {
		if h, ok := m["host"].(map[string]any); ok {
			delete(h, url)
			if len(h) == 0 {
				delete(m, "host")
			}
		}
	})
}

// criTables are the plugins that read config_path, by the version of config.toml.
var criTables = map[int]string{2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.images"}

// configPath is a line that sets it to nothing.
var configPath = regexp.MustCompile(`^\s*config_path\s*=\s*["']{2}\s*(#.*)?$`)

// planHostsDir gives config.toml where it has to change, and the directory that it names
// for hosts.toml files.
func planHostsDir(s Site) (*File, string, error) {
	path := s.at(containerdConfig)
	old, err := read(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		old = nil
	case err != nil:
		return nil, "", err
	}
	var was struct {
		Version  int      `toml:"version"`
		Disabled []string `toml:"disabled_plugins"`
		Plugins  map[string]struct {
			Registry map[string]any `toml:"registry"`
		} `toml:"plugins"`
	}
	if err := toml.Unmarshal(old, &was); err != nil {
		return nil, "", &Unmerged{Path: path, Why: fmt.Sprintf("it is no TOML (%v)", err), Text: criSection(2)}
	}
	isEmpty := strings.TrimSpace(string(old)) == ""
	version := was.Version
	if isEmpty {
		version = 2 // which newer ones take as well
	}
	f := &File{Path: path, Old: old, Exists: err == nil, New: old, Restart: "restart containerd (systemctl restart containerd); no container is stopped by that"}
	if slices.ContainsFunc(was.Disabled, func(p string) bool { return p == "cri" || p == "io.containerd.grpc.v1.cri" }) {
		f.Notes = []string{"the CRI plugin is disabled there: nerdctl reads " + hostsDir + " all the same, and ctr where --hosts-dir names it"}
		return f, hostsDir, nil
	}
	table, ok := criTables[version]
	if !ok {
		return nil, "", &Unmerged{Path: path, Why: fmt.Sprintf("it has version %d, which has no config_path", version), Text: "version = 2\n\n" + criSection(2)}
	}
	registry := was.Plugins[table].Registry
	if dirs, _ := registry["config_path"].(string); dirs != "" {
		first, _, _ := strings.Cut(dirs, ":")
		return f, first, nil
	}
	if list, _ := registry["mirrors"].(map[string]any); len(list) > 0 {
		return nil, "", &Unmerged{Path: path, Why: "it has registry.mirrors, beside which config_path must not be set: containerd would not start",
			Text: "# instead of registry.mirrors and registry.configs:\n" + criSection(version)}
	}
	text := ""
	switch lines := strings.Split(string(old), "\n"); {
	case isEmpty:
		text = "version = 2\n\n" + criSection(version)
	default:
		text = setConfigPath(lines, string(old), table, version)
	}
	is := was
	is.Plugins = nil
	if err := toml.Unmarshal([]byte(text), &is); err != nil || is.Plugins[table].Registry["config_path"] != hostsDir {
		return nil, "", &Unmerged{Path: path, Why: "config_path could not be set", Text: criSection(version)}
	}
	f.New, f.Ready = []byte(text), criSection(version)
	if isEmpty {
		f.Ready = text
	}
	return f, hostsDir, nil
}

func criSection(version int) string {
	return fmt.Sprintf("[plugins.%q.registry]\n  config_path = %q\n", criTables[version], hostsDir)
}

// setConfigPath sets it in the table that is there, or adds one.
func setConfigPath(lines []string, old, table string, version int) string {
	want := fmt.Sprintf("[plugins.%q.registry]", table)
	at := slices.IndexFunc(lines, func(line string) bool {
		code, _, _ := strings.Cut(line, "#")
		return strings.ReplaceAll(strings.ReplaceAll(strings.TrimSpace(code), " ", ""), "'", `"`) == want
	})
	if at < 0 {
		return join(old, criSection(version))
	}
	line := fmt.Sprintf("config_path = %q", hostsDir)
	for i := at + 1; i < len(lines) && !strings.HasPrefix(strings.TrimSpace(lines[i]), "["); i++ {
		if configPath.MatchString(lines[i]) {
			indent := lines[i][:strings.Index(lines[i], "config_path")]
			lines[i] = indent + line
			return strings.Join(lines, "\n")
		}
	}
	indent := lines[at][:strings.Index(lines[at], "[")]
	return strings.Join(insert(lines, at+1, indent+"  "+line), "\n")
}
