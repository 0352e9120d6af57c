package client

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
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
// registries that have endpoints of their own.
func mergeRegistries(old string, s Site) (string, error) {
	comments := yaml.CommentMap{}
	var doc yaml.MapSlice
	if err := yaml.UnmarshalWithOptions([]byte(old), &doc, yaml.CommentToMap(comments), yaml.UseOrderedMap()); err != nil {
		// Without the lines themselves, which may hold passwords.
		return "", fmt.Errorf("it is no YAML mapping (%s)", yaml.FormatError(err, false, false))
	}
	mirrors, at := yaml.MapSlice{}, -1
	for i, item := range doc {
		if item.Key == "mirrors" {
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
	if at < 0 {
		doc = append(doc, yaml.MapItem{Key: "mirrors", Value: mirrors})
	} else {
		doc[at].Value = mirrors
	}
	text, err := yaml.MarshalWithOptions(doc, yaml.WithComment(comments), yaml.IndentSequence(true))
	if err != nil {
		return "", err
	}
	// What it says now is what was meant, comments or not.
	var is yaml.MapSlice
	if err := yaml.UnmarshalWithOptions(text, &is, yaml.UseOrderedMap()); err != nil || fmt.Sprint(is) != fmt.Sprint(doc) {
		return "", errors.New("it could not be changed without changing something else")
	}
	return string(text), nil
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
