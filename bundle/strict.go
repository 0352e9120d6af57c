package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/entrepot-dev/entrepot/oci"
)

// What has no digest or name where one belongs ends the reading of a document at once:
// a list of millions of nothings is short, and would take much memory.

var (
	errNoName   = errors.New("a name is empty, or none")
	errNoConfig = errors.New("an image has no config")
)

// UnmarshalJSON reads an image, which has a digest.
func (i *Image) UnmarshalJSON(b []byte) error {
	type plain Image
	if err := json.Unmarshal(b, (*plain)(i)); err != nil {
		return err
	}
	if _, err := oci.ParseDigest(i.Digest.String()); err != nil {
		return fmt.Errorf("an image: %w", err)
	}
	return nil
}

// UnmarshalJSON reads content, which has a digest.
func (c *Content) UnmarshalJSON(b []byte) error {
	type plain Content
	in := (*names)(&c.In)
	if err := json.Unmarshal(b, &struct {
		*plain
		In *names `json:"in"`
	}{(*plain)(c), in}); err != nil {
		return err
	}
	if _, err := oci.ParseDigest(c.Digest.String()); err != nil {
		return fmt.Errorf("content: %w", err)
	}
	return nil
}

// UnmarshalJSON reads an image, which has a config.
func (i *savedImage) UnmarshalJSON(b []byte) error {
	type plain savedImage
	if err := json.Unmarshal(b, (*plain)(i)); err != nil {
		return err
	}
	if i.Config == "" {
		return errNoConfig
	}
	return nil
}

// names are a list of names, of which none is empty.
type names []string

// UnmarshalJSON reads the list, or null.
func (n *names) UnmarshalJSON(b []byte) error {
	*n = nil
	if string(b) == "null" {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		return errNoName
	}
	*n = names{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		name, _ := t.(string)
		if name == "" {
			return errNoName
		}
		*n = append(*n, name)
	}
	return nil
}
