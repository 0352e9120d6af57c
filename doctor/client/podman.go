package client

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// dropIn is the file of ours that Podman, CRI-O, Skopeo and Buildah read.
const dropIn = "/etc/containers/registries.conf.d/50-entrepot.conf"

// planPodman writes a file of our own beside those that are there.
func planPodman(s Site) ([]*File, error) {
	ready, err := s.ready("registries.conf")
	if err != nil {
		return nil, err
	}
	const section = "[[registry]]\n"
	head, rest, ok := strings.Cut(ready, section)
	pattern, _, more := strings.Cut(rest, section)
	if !ok || !more {
		return nil, fmt.Errorf("the ready file registries.conf has no two sections")
	}
	if !s.isPlain() {
		pattern = without(pattern, "insecure = ")
	}
	others, taken, err := s.otherRegistries()
	if err != nil {
		return nil, err
	}
	if slices.Contains(others, searchKey) {
		head = strings.TrimRight(without(head, searchKey), "\n") + "\n\n"
	}
	text := head
	var notes []string
	for i, name := range s.Upstreams {
		if i > 0 {
			text += "\n"
		}
		// Podman takes no colon in a path. Entrepot takes an underscore for it.
		inPath := strings.ReplaceAll(pattern, "/docker.io", "/"+strings.Replace(name, ":", "_", 1))
		text += section + strings.TrimRight(strings.ReplaceAll(inPath, "docker.io", name), "\n") + "\n"
		if path, ok := taken[name]; ok {
			notes = append(notes, fmt.Sprintf("%s has a [[registry]] of %s already: the one that is read last counts, by the names of the files", path, name))
		}
	}
	f, err := plan(s.at(dropIn), text, func(string) (string, error) { return text, nil })
	if err != nil {
		return nil, err
	}
	f.Notes = notes
	return []*File{f}, nil
}

// searchKey says where images are looked for whose names have no registry.
const searchKey = "unqualified-search-registries"

// without drops the lines that begin so.
func without(text, begin string) string {
	var kept strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(strings.TrimSpace(line), begin) {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// otherRegistries gives the keys that the other files of the same kind set, and which of
// them have which registries.
func (s Site) otherRegistries() (keys []string, registries map[string]string, err error) {
	paths, err := filepath.Glob(s.at("/etc/containers/registries.conf.d/*.conf"))
	if err != nil {
		return nil, nil, err
	}
	registries = map[string]string{}
	for _, path := range append([]string{s.at("/etc/containers/registries.conf")}, paths...) {
		text, err := read(path)
		if err != nil || path == s.at(dropIn) {
			continue // not there, or not ours to judge
		}
		var file map[string]any
		if toml.Unmarshal(text, &file) != nil {
			continue
		}
		for key := range file {
			keys = append(keys, key)
		}
		list, _ := file["registry"].([]any)
		for _, one := range list {
			r, _ := one.(map[string]any)
			for _, key := range []string{"prefix", "location"} {
				if name, ok := r[key].(string); ok {
					registries[name] = path
					break
				}
			}
		}
	}
	return keys, registries, nil
}
