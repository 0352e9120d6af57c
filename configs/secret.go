package configs

import "go.yaml.in/yaml/v3"

// Secret is a string that is never printed: every way of formatting or
// encoding it gives stars. Reveal is the only way to its value.
type Secret string

// hidden is what is shown in the place of a secret.
const hidden = "***"

// Reveal gives the secret itself, for the one who logs in with it.
func (s Secret) Reveal() string { return string(s) }

// String gives stars, or nothing for no secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return hidden
}

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return `"` + s.String() + `"` }

// MarshalText hides the secret from every text encoding.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalYAML hides the secret from YAML.
func (s Secret) MarshalYAML() (any, error) {
	return &yaml.Node{Kind: yaml.ScalarNode, Style: yaml.DoubleQuotedStyle, Value: s.String()}, nil
}
