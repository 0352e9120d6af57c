package client

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/entrepot-dev/entrepot/configs"
)

// planK3s makes the cache the first endpoint of all registries in registries.yaml.
func planK3s(s Site) ([]*File, error) {
	ready, err := s.ready("registries.yaml")
	if err != nil {
		return nil, err
	}
	f, err := plan(s.at("/etc/rancher/k3s/registries.yaml"), ready, func(old string) (string, error) { return mergeRegistries(old, s) })
	if err != nil {
		return nil, err
	}
	f.Restart = "restart k3s (systemctl restart k3s, or k3s-agent on an agent)"
	return []*File{f}, nil
}

// mirrorsYAML is the key of registries.yaml that the doctor changes.
const mirrorsYAML = "mirrors"

// mergeRegistries puts the cache before the other endpoints of "*" and of those mirrored
// registries that have endpoints of their own. It changes only the lines of mirrors, whose
// comments it keeps: other lines have passwords, which must not be read as something else
// because they were written anew.
func mergeRegistries(old string, s Site) (string, error) {
	root, err := readRegistries(old)
	if err != nil {
		return "", err
	}
	lines := strings.SplitAfter(old, "\n")
	from, to, err := mirrorsLines(lines, root)
	if err != nil {
		return "", err
	}
	// The section is read on its own, so that its comments are those between its lines.
	section := mapping()
	if from < to {
		if section, err = readRegistries(strings.Join(lines[from:to], "")); err != nil {
			return "", err
		}
	}
	mirrors, err := mappingAt(section, mirrorsYAML)
	if err != nil {
		return "", errors.New("mirrors in it is no mapping")
	}
	changed, err := addCache(mirrors, s)
	if err != nil {
		return "", err
	}
	if !changed {
		return old, nil
	}
	var written bytes.Buffer
	e := yaml.NewEncoder(&written)
	e.SetIndent(2)
	if err := cmp.Or(e.Encode(section), e.Close()); err != nil {
		return "", err
	}
	before := strings.Join(lines[:from], "")
	if before != "" && !strings.HasSuffix(before, "\n") {
		before += "\n"
	}
	text := before + written.String() + strings.Join(lines[to:], "")
	// Check that the file now says what was meant, and nothing else has changed.
	*at(root, mirrorsYAML) = *mirrors
	if now, err := readRegistries(text); err != nil || !same(now, root) {
		return "", errors.New("it could not be changed without changing something else")
	}
	return text, nil
}

// readRegistries returns the mapping that registries.yaml consists of; an empty one for an empty
// file. Its errors don't quote the text, which may hold passwords.
func readRegistries(text string) (*yaml.Node, error) {
	root, second, err := configs.Documents([]byte(text))
	switch {
	case err != nil:
		return nil, fmt.Errorf("it is no YAML mapping (%s)", configs.SyntaxError([]byte(text), err))
	case second != nil:
		return nil, errors.New("it has 2 documents or more")
	case root == nil:
		return mapping(), nil
	case root.Kind != yaml.MappingNode:
		return nil, errors.New("it is no YAML mapping")
	}
	if deep := configs.TooDeep(root); deep != nil {
		return nil, fmt.Errorf("line %d: lists and keys lie more than %d deep in each other", deep.Line, configs.MaxNesting)
	}
	return root, checkNodes(root)
}

// checkNodes returns an error if n has anchors, aliases, or one key twice. Without aliases the
// tree is no larger than the text.
func checkNodes(n *yaml.Node) error {
	if n.Anchor != "" || n.Kind == yaml.AliasNode {
		return errors.New("it has anchors")
	}
	seen := map[string]bool{}
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			if c.Kind == yaml.ScalarNode && seen[c.Value] {
				return fmt.Errorf("line %d: a key is there twice", c.Line)
			}
			seen[c.Value] = true
		}
		if err := checkNodes(c); err != nil {
			return err
		}
	}
	return nil
}

// mirrorsLines returns where the lines of mirrors begin and end, counted from zero. Both are the
// end of the text if root has no such key.
func mirrorsLines(lines []string, root *yaml.Node) (from, to int, err error) {
	if root.Style&yaml.FlowStyle != 0 {
		return 0, 0, errors.New("its keys do not begin lines")
	}
	from, to = -1, len(lines)
	for i := 0; i+1 < len(root.Content); i += 2 {
		key := root.Content[i]
		if key.Line > len(lines) { // YAML ends lines with other characters too
			return 0, 0, errors.New("some of its lines don't end with a newline")
		}
		if from >= 0 {
			to = key.Line - 1
			break
		}
		if key.Value == mirrorsYAML {
			if key.Column != 1 {
				return 0, 0, errors.New("its keys do not begin lines")
			}
			from = key.Line - 1
		}
	}
	if from < 0 {
		return to, to, nil
	}
	// The comments above the next key are that key's.
	for to > from+1 && (strings.TrimSpace(lines[to-1]) == "" || strings.HasPrefix(lines[to-1], "#")) {
		to--
	}
	return from, to, nil
}

// addCache puts the cache into mirrors, and reports whether that changed anything.
func addCache(mirrors *yaml.Node, s Site) (changed bool, err error) {
	all := false
	for i := 0; i+1 < len(mirrors.Content); i += 2 {
		name := mirrors.Content[i].Value
		all = all || name == "*"
		if name != "*" && !slices.Contains(s.Upstreams, name) {
			continue
		}
		settings, err := mappingAt(mirrors, name)
		if err != nil {
			return false, fmt.Errorf("mirrors of %s in it are no mapping", name)
		}
		did, err := addEndpoint(settings, s.URL)
		if err != nil {
			return false, fmt.Errorf("mirrors of %s in it: %w", name, err)
		}
		changed = changed || did
	}
	if all {
		return changed, nil
	}
	settings, err := mappingAt(mirrors, "*")
	if err != nil {
		return false, err
	}
	return addEndpoint(settings, s.URL)
}

// addEndpoint puts url before the other endpoints of a mirror, and reports whether it wasn't
// there yet.
func addEndpoint(settings *yaml.Node, url string) (changed bool, err error) {
	list := at(settings, "endpoint")
	switch {
	case list.Kind == yaml.SequenceNode:
	case isNull(list):
		*list = yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
	default:
		return false, errors.New("endpoint is no list")
	}
	if len(list.Content) > 0 && strings.TrimSuffix(list.Content[0].Value, "/") == url {
		return false, nil
	}
	list.Style &^= yaml.FlowStyle
	for _, c := range list.Content {
		c.Style &^= yaml.SingleQuotedStyle | yaml.DoubleQuotedStyle // the encoder quotes what needs it
	}
	list.Content = slices.Insert(list.Content, 0, text(url))
	return true, nil
}

func mapping() *yaml.Node { return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"} }

func text(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s} }

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// at returns the value of a key of a mapping. It adds the key, with null, if it isn't there.
func at(m *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return m.Content[i+1]
		}
	}
	name, value := text(key), &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null"}
	if key == "*" {
		name.Style = yaml.DoubleQuotedStyle
	}
	m.Content = append(m.Content, name, value)
	return value
}

// mappingAt is at for a value that is a mapping. It makes one of null. Others are an error.
func mappingAt(m *yaml.Node, key string) (*yaml.Node, error) {
	value := at(m, key)
	if isNull(value) {
		*value = *mapping()
	}
	if value.Kind != yaml.MappingNode {
		return nil, errors.New("it is no mapping")
	}
	if len(value.Content) == 0 {
		value.Style &^= yaml.FlowStyle
	}
	return value, nil
}

// same reports whether two trees say the same, however they are written.
func same(a, b *yaml.Node) bool {
	return a.Kind == b.Kind && a.Value == b.Value && a.ShortTag() == b.ShortTag() && slices.EqualFunc(a.Content, b.Content, same)
}
