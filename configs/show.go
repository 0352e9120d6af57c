package configs

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// YAML gives the configuration as a file that Load takes, secrets hidden.
// Keys whose being empty says nothing are left out; built-in upstreams that
// were dropped are null.
func (c *Config) YAML() ([]byte, error) {
	shown := *c
	shown.Upstreams = maps.Clone(c.Upstreams)
	for name := range Default().Upstreams {
		if c.Upstreams[name] == nil {
			shown.Upstreams[name] = nil
		}
	}
	var tree yaml.Node
	if err := tree.Encode(shown); err != nil {
		return nil, fmt.Errorf("write the configuration as YAML: %w", err)
	}
	shortenDurations(&tree, reflect.ValueOf(shown))
	useDoubleQuotes(&tree)
	var text bytes.Buffer
	e := yaml.NewEncoder(&text)
	e.SetIndent(2)
	if err := cmp.Or(e.Encode(&tree), e.Close()); err != nil {
		return nil, fmt.Errorf("write the configuration as YAML: %w", err)
	}
	return text.Bytes(), nil
}

// shortenDurations writes each duration of v as formatDuration does, in the tree that YAML made of v.
func shortenDurations(n *yaml.Node, v reflect.Value) {
	if d, ok := v.Interface().(time.Duration); ok {
		n.Value = formatDuration(d)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			shortenDurations(n, v.Elem())
		}
	case reflect.Slice:
		for i, c := range n.Content {
			shortenDurations(c, v.Index(i))
		}
	case reflect.Struct, reflect.Map:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i].Value, n.Content[i+1]
			if v.Kind() == reflect.Map {
				shortenDurations(value, v.MapIndex(reflect.ValueOf(key)))
			} else if field, ok := fieldOf(v, key); ok {
				shortenDurations(value, field)
			}
		}
	}
}

// useDoubleQuotes writes the texts below n that need quotes with double ones.
func useDoubleQuotes(n *yaml.Node) {
	if n.Style == yaml.SingleQuotedStyle {
		n.Style = yaml.DoubleQuotedStyle
	}
	for _, c := range n.Content {
		useDoubleQuotes(c)
	}
}

// plain returns a YAML value without quotes.
func plain(text string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: text} }

// YAMLToJSON returns the JSON of a configuration that YAML has written, with the keys in the
// same order.
func YAMLToJSON(text []byte) (json.RawMessage, error) {
	tree, _, err := Documents(text)
	if err != nil {
		return nil, fmt.Errorf("write the configuration as JSON: %w", err)
	}
	var b bytes.Buffer
	if err := writeJSON(&b, tree); err != nil {
		return nil, fmt.Errorf("write the configuration as JSON: %w", err)
	}
	return b.Bytes(), nil
}

// writeJSON writes n, which has no aliases, as JSON.
func writeJSON(b *bytes.Buffer, n *yaml.Node) error {
	write := func(v any) error {
		text, err := json.Marshal(v)
		b.Write(text)
		return err
	}
	var brackets string
	switch n.Kind {
	case yaml.MappingNode:
		brackets = "{}"
	case yaml.SequenceNode:
		brackets = "[]"
	default:
		var v any
		if err := n.Decode(&v); err != nil {
			return err
		}
		return write(v)
	}
	b.WriteByte(brackets[0])
	for i, c := range n.Content {
		isValue := n.Kind == yaml.MappingNode && i%2 == 1
		switch {
		case isValue:
			b.WriteByte(':')
		case i > 0:
			b.WriteByte(',')
		}
		var err error
		if n.Kind == yaml.MappingNode && !isValue {
			err = write(c.Value)
		} else {
			err = writeJSON(b, c)
		}
		if err != nil {
			return err
		}
	}
	b.WriteByte(brackets[1])
	return nil
}

// formatDuration writes a duration as people do: 720h, not 720h0m0s.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
