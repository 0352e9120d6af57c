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
	ready, err := s.ready("containerd/_default/hosts.toml")
	if err != nil {
		return nil, err
	}
	files, err := planHosts(s, dir, hostsFile{ready: ready, capabilities: []string{"pull", "resolve"}})
	if err != nil {
		return nil, err
	}
	if config != nil {
		files = append(files, config)
	}
	return files, nil
}

// hostsFile is what a hosts.toml has to say about the cache.
type hostsFile struct {
	// ready is the text of a new file, which ends with the table of the cache.
	ready string
	// capabilities are those of the cache.
	capabilities []string
	// refused is a capability that the client does not know; it would ignore the whole file. May be empty.
	refused string
}

// planHosts plans the hosts.toml files below dir: the one for all registries, and one for each upstream that
// has a directory of its own, because the client then ignores the default.
func planHosts(s Site, dir string, h hostsFile) ([]*File, error) {
	var tls []string
	if !s.isPlain() {
		for _, name := range hostDirs(s.host()) {
			if tls = certificateLines(s, filepath.Join(dir, name)); len(tls) > 0 {
				break
			}
		}
	}
	section := append([]string{fmt.Sprintf("[host.%q]", s.URL), fmt.Sprintf(`  capabilities = ["%s"]`, strings.Join(h.capabilities, `", "`))}, indented(tls)...)
	ready := h.ready
	if len(tls) > 0 {
		ready += strings.Join(indented(tls), "\n") + "\n"
	}
	var files []*File
	add := func(name string) error {
		text := ready
		// A hosts.toml replaces the certificate files beside it, which the registry itself may need.
		if lines := certificateLines(s, filepath.Join(dir, name)); len(lines) > 0 {
			text = strings.Join(lines, "\n") + "\n\n" + ready
		}
		f, err := plan(filepath.Join(s.at(dir), name, "hosts.toml"), text, func(old string) (string, error) { return mergeHosts(old, s.URL, section, h) })
		if err == nil {
			files = append(files, f)
		}
		return err
	}
	if err := add("_default"); err != nil {
		return nil, err
	}
	for _, upstream := range s.Upstreams {
		for _, name := range hostDirs(upstream) {
			if _, err := os.Stat(filepath.Join(s.at(dir), name)); err != nil {
				continue
			}
			if err := add(name); err != nil {
				return nil, err
			}
			break
		}
	}
	return files, nil
}

// hostDirs gives the names that the directory of a registry may have, in the order in which clients look for
// them (hostPaths in containerd's core/remotes/docker/config).
func hostDirs(host string) []string {
	if at := strings.LastIndex(host, ":"); at > 0 {
		return []string{host[:at] + "_" + host[at+1:] + "_", host}
	}
	return []string{host}
}

// certificateLines gives the lines of a hosts.toml that name the certificate files in a directory of a
// registry, NAME.crt of authorities and NAME.cert with NAME.key of the client.
func certificateLines(s Site, dir string) []string {
	entries, err := os.ReadDir(s.at(dir))
	if err != nil {
		return nil
	}
	var authorities, pairs []string
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch filepath.Ext(path) {
		case ".crt":
			authorities = append(authorities, fmt.Sprintf("%q", path))
		case ".cert":
			pairs = append(pairs, fmt.Sprintf("[%q, %q]", path, strings.TrimSuffix(path, ".cert")+".key"))
		}
	}
	var lines []string
	if len(authorities) > 0 {
		lines = append(lines, "ca = ["+strings.Join(authorities, ", ")+"]")
	}
	if len(pairs) > 0 {
		lines = append(lines, "client = ["+strings.Join(pairs, ", ")+"]")
	}
	return lines
}

func indented(lines []string) []string {
	var in []string
	for _, line := range lines {
		in = append(in, "  "+line)
	}
	return in
}

// HostsDir gives the directory of hosts.toml files of the site, as config.toml names it.
func HostsDir(s Site) string {
	if _, dir, err := planHostsDir(s); err == nil {
		return s.at(dir)
	}
	return s.at(hostsDir)
}

// hostTable matches the first table of a host. Clients ask hosts in the order of the file.
var hostTable = regexp.MustCompile(`(?m)^\s*\[\s*host\s*\.\s*["']([^"']+)["']\s*\]`)

// mergeHosts puts section, the table of the cache at url, before the other hosts of a hosts.toml.
func mergeHosts(old, url string, section []string, want hostsFile) (string, error) {
	type hosts struct {
		Host map[string]map[string]any `toml:"host"`
	}
	var was hosts
	if err := toml.Unmarshal([]byte(old), &was); err != nil {
		return "", fmt.Errorf("it is no TOML (%w)", err)
	}
	if want.refused != "" {
		for _, h := range was.Host {
			if list, ok := h["capabilities"].([]any); ok && slices.Contains(list, any(want.refused)) {
				return "", fmt.Errorf("this client does not know the capability %s in it, and ignores the whole file", want.refused)
			}
		}
	}
	if h, ok := was.Host[url]; ok {
		if list, ok := h["capabilities"].([]any); ok {
			for _, c := range want.capabilities {
				if !slices.Contains(list, any(c)) {
					return "", fmt.Errorf("the host %s in it lacks the capability %s", url, c)
				}
			}
		}
		if first := hostTable.FindStringSubmatch(old); first != nil && first[1] != url {
			return "", fmt.Errorf("the host %s in it comes before %s", first[1], url)
		}
		return old, nil
	}
	lines := strings.Split(old, "\n")
	at := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(strings.TrimSpace(l), "[") })
	text := join(old, strings.Join(section, "\n")+"\n")
	if at >= 0 {
		text = strings.Join(insert(lines, at, append(slices.Clone(section), "")...), "\n")
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
