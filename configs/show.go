package configs

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
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
	text, err := yaml.MarshalWithOptions(shown,
		yaml.IndentSequence(true),
		yaml.CustomMarshaler(func(d time.Duration) ([]byte, error) { return []byte(formatDuration(d)), nil }),
	)
	if err != nil {
		return nil, fmt.Errorf("write the configuration as YAML: %w", err)
	}
	return text, nil
}

// YAMLToJSON returns the JSON of a configuration that YAML has written.
func YAMLToJSON(text []byte) (json.RawMessage, error) {
	b, err := yaml.YAMLToJSON(text)
	if err != nil {
		return nil, fmt.Errorf("write the configuration as JSON: %w", err)
	}
	return b, nil
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
