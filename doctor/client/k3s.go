package client

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

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

// mergeRegistries puts the cache before the other endpoints of "*" and of those mirrored
// registries that have endpoints of their own. No other line is changed: there are passwords
// in some, and what is written anew may be read as something else.
func mergeRegistries(old string, s Site) (string, error) {
	// Each alias is copied: ten levels of ten aliases would fill the memory.
	if _, err := configs.CheckYAML([]byte(old), 8); err != nil {
		return "", fmt.Errorf("it cannot be read: %w", err)
	}
	comments := yaml.CommentMap{}
	var doc yaml.MapSlice
	if err := yaml.UnmarshalWithOptions([]byte(old), &doc, yaml.CommentToMap(comments), yaml.UseOrderedMap()); err != nil {
		// Without the lines themselves, which may hold passwords.
		return "", fmt.Errorf("it is no YAML mapping (%s)", yaml.FormatError(err, false, false))
	}
	mirrors, at := yaml.MapSlice{}, -1
	for i, item := range doc {
		if item.Key == mirrorsYAML {
			at = i
			if item.Value == nil {
				break
			}
			m, ok := item.Value.(yaml.MapSlice)
			if !ok {
				return "", errors.New("mirrors in it is no mapping")
			}
			mirrors = m
		}
	}
	changed, all := false, false
	for i, item := range mirrors {
		name, _ := item.Key.(string)
		all = all || name == "*"
		if name != "*" && !slices.Contains(s.Upstreams, name) {
			continue
		}
		settings, ok := item.Value.(yaml.MapSlice)
		if !ok && item.Value != nil {
			return "", fmt.Errorf("mirrors of %s in it are no mapping", name)
		}
		more, did, err := withEndpoint(settings, s.URL)
		if err != nil {
			return "", fmt.Errorf("mirrors of %s in it: %w", name, err)
		}
		mirrors[i].Value, changed = more, changed || did
	}
	if !all {
		mirrors = append(mirrors, yaml.MapItem{Key: "*", Value: yaml.MapSlice{{Key: "endpoint", Value: []any{s.URL}}}})
		changed = true
	}
	if !changed {
		return old, nil
	}
	from, to, err := mirrorsLines(old, at >= 0)
	if err != nil {
		return "", err
	}
	if at < 0 {
		doc = append(doc, yaml.MapItem{Key: mirrorsYAML, Value: mirrors})
	} else {
		doc[at].Value = mirrors
	}
	section, err := yaml.MarshalWithOptions(yaml.MapSlice{{Key: mirrorsYAML, Value: mirrors}}, yaml.WithComment(inside(comments)), yaml.IndentSequence(true))
	if err != nil {
		return "", err
	}
	lines := strings.SplitAfter(old, "\n")
	before := strings.Join(lines[:from], "")
	if before != "" && !strings.HasSuffix(before, "\n") {
		before += "\n"
	}
	text := before + string(section) + strings.Join(lines[to:], "")
	// What it says now is what was meant.
	var is yaml.MapSlice
	if err := yaml.UnmarshalWithOptions([]byte(text), &is, yaml.UseOrderedMap()); err != nil || fmt.Sprint(is) != fmt.Sprint(doc) {
		return "", errors.New("it could not be changed without changing something else")
	}
	return text, nil
}

// mirrorsYAML is the key of registries.yaml.
const mirrorsYAML = "mirrors"

// mirrorsLines gives where the lines of mirrors begin and end, counted from zero, or where
// it is not there, the end of the text, twice.
func mirrorsLines(text string, there bool) (from, to int, err error) {
	for _, t := range lexer.Tokenize(text) {
		if t.Type == token.AnchorType || t.Type == token.AliasType {
			return 0, 0, errors.New("it has anchors")
		}
	}
	file, err := parser.ParseBytes([]byte(text), 0)
	if err != nil {
		return 0, 0, errors.New("it is no YAML mapping")
	}
	if len(file.Docs) != 1 {
		return 0, 0, fmt.Errorf("it has %d documents", len(file.Docs))
	}
	root, ok := file.Docs[0].Body.(*ast.MappingNode)
	if !ok || root.IsFlowStyle {
		return 0, 0, errors.New("its keys do not begin lines")
	}
	lines := strings.SplitAfter(text, "\n")
	from, to = -1, len(lines)
	for _, v := range root.Values {
		at := v.Key.GetToken().Position.Line - 1
		if from >= 0 {
			to = at
			break
		}
		if v.Key.GetToken().Value == mirrorsYAML {
			from = at
		}
	}
	if from < 0 && there {
		return 0, 0, errors.New("its keys do not begin lines")
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

// inside gives the comments below the key mirrors, and beside it.
func inside(comments yaml.CommentMap) yaml.CommentMap {
	list := yaml.CommentMap{}
	for path, some := range comments {
		switch {
		case path == "$."+mirrorsYAML:
			some = slices.DeleteFunc(slices.Clone(some), func(c *yaml.Comment) bool { return c.Position != yaml.CommentLinePosition })
		case !strings.HasPrefix(path, "$."+mirrorsYAML+"."):
			continue
		}
		list[path] = some
	}
	return list
}

// withEndpoint puts url before the other endpoints of a mirror.
func withEndpoint(settings yaml.MapSlice, url string) (_ yaml.MapSlice, changed bool, err error) {
	for i, item := range settings {
		if item.Key != "endpoint" {
			continue
		}
		list, ok := item.Value.([]any)
		if !ok && item.Value != nil {
			return nil, false, errors.New("endpoint is no list")
		}
		if len(list) > 0 {
			if first, ok := list[0].(string); ok && strings.TrimSuffix(first, "/") == url {
				return settings, false, nil
			}
		}
		settings[i].Value = append([]any{url}, list...)
		return settings, true, nil
	}
	return append(settings, yaml.MapItem{Key: "endpoint", Value: []any{url}}), true, nil
}
