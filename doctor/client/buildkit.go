package client

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// planBuildKit adds the cache to the mirrors of each registry of buildkitd.toml.
func planBuildKit(s Site) ([]*File, error) {
	ready, err := s.ready("buildkitd.toml")
	if err != nil {
		return nil, err
	}
	const first = "[registry."
	head, _, _ := strings.Cut(ready, first)
	text := head
	for _, name := range s.Upstreams {
		text += mirrorSection(name, s.host()) + "\n"
	}
	if s.isPlain() {
		text += "# The cache speaks plain http here.\n" + plainSection(s.host())
	}
	f, err := plan(s.at("/etc/buildkit/buildkitd.toml"), text, func(old string) (string, error) { return mergeBuildKit(old, s) })
	if err != nil {
		return nil, err
	}
	f.Restart = "restart buildkitd (systemctl restart buildkit); a builder of buildx is made anew: docker buildx create --buildkitd-config " + f.Path
	return []*File{f}, nil
}

func mirrorSection(name, host string) string {
	return fmt.Sprintf("[registry.%q]\n  mirrors = [%q]\n", name, host)
}

func plainSection(host string) string { return fmt.Sprintf("[registry.%q]\n  http = true\n", host) }

// buildkitd is what is read of buildkitd.toml.
type buildkitd struct {
	Registry map[string]struct {
		Mirrors []string `toml:"mirrors"`
		HTTP    bool     `toml:"http"`
	} `toml:"registry"`
}

func mergeBuildKit(old string, s Site) (string, error) {
	var was buildkitd
	if err := toml.Unmarshal([]byte(old), &was); err != nil {
		return "", fmt.Errorf("it is no TOML (%w)", err)
	}
	text, host := old, s.host()
	for _, name := range s.Upstreams {
		r, ok := was.Registry[name]
		switch {
		case len(r.Mirrors) > 0 && r.Mirrors[0] == host:
		case !ok:
			text = join(text, mirrorSection(name, host))
		default:
			if more := prepend(text, name, host); more != text {
				text = more
			} else {
				text = underTable(text, name, fmt.Sprintf("  mirrors = [%q]", host))
			}
		}
	}
	if r, ok := was.Registry[host]; s.isPlain() && !r.HTTP {
		if ok {
			text = underTable(text, host, "  http = true")
		} else {
			text = join(text, plainSection(host))
		}
	}
	var is buildkitd
	if err := toml.Unmarshal([]byte(text), &is); err != nil {
		return "", errors.New("it could not be changed")
	}
	for _, name := range s.Upstreams {
		if m := is.Registry[name].Mirrors; len(m) == 0 || m[0] != host {
			return "", fmt.Errorf("the mirrors of %s could not be changed", name)
		}
	}
	if s.isPlain() && !is.Registry[host].HTTP {
		return "", fmt.Errorf("http of %s could not be changed", host)
	}
	return text, sameElse(old, text, func(m map[string]any) {
		registries, _ := m["registry"].(map[string]any)
		for _, name := range append(slices.Clone(s.Upstreams), host) {
			r, _ := registries[name].(map[string]any)
			delete(r, "mirrors")
			delete(r, "http")
			if len(r) == 0 {
				delete(registries, name)
			}
		}
		if len(registries) == 0 {
			delete(m, "registry")
		}
	})
}

// header finds the line that begins the table of a registry.
func header(lines []string, name string) int {
	want := []string{fmt.Sprintf("[registry.%q]", name), "[registry.'" + name + "']", "[registry." + name + "]"}
	return slices.IndexFunc(lines, func(line string) bool {
		code, _, _ := strings.Cut(line, "#")
		return slices.Contains(want, strings.ReplaceAll(code, " ", ""))
	})
}

// underTable puts a line below the header of a registry's table.
func underTable(text, name, line string) string {
	lines := strings.Split(text, "\n")
	if at := header(lines, name); at >= 0 {
		lines = insert(lines, at+1, line)
	}
	return strings.Join(lines, "\n")
}

// mirrorsLine begins the list of mirrors.
var mirrorsLine = regexp.MustCompile(`^\s*mirrors\s*=\s*\[`)

// prepend puts host before the other mirrors of a registry.
func prepend(text, name, host string) string {
	lines := strings.Split(text, "\n")
	at := header(lines, name)
	if at < 0 {
		return text
	}
	for i := at + 1; i < len(lines) && !strings.HasPrefix(strings.TrimSpace(lines[i]), "["); i++ {
		if begin := mirrorsLine.FindString(lines[i]); begin != "" {
			lines[i] = begin + fmt.Sprintf("%q, ", host) + strings.TrimLeft(lines[i][len(begin):], " ")
			break
		}
	}
	return strings.Join(lines, "\n")
}

// sameElse says whether two TOML files say the same but for what drop takes out.
func sameElse(a, b string, drop func(map[string]any)) error {
	x, y := map[string]any{}, map[string]any{}
	if err := errors.Join(toml.Unmarshal([]byte(a), &x), toml.Unmarshal([]byte(b), &y)); err != nil {
		return errors.New("it could not be changed")
	}
	drop(x)
	drop(y)
	if !reflect.DeepEqual(x, y) {
		return errors.New("it could not be changed without changing something else")
	}
	return nil
}
