package oci

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/opencontainers/image-spec/specs-go/v1"
)

// Descriptors is a list of descriptors in a stranger's JSON. Those that can not
// be asked for here, for their digest or size, are dropped while it is read: a
// descriptor in memory is seventy times as large as the "{}" that may stand for
// one, and what has a digest is no smaller than that. Embedded content is
// dropped too. A list of little else is an error.
type Descriptors []v1.Descriptor

// UnmarshalJSON reads a list, or null, which changes nothing.
func (ds *Descriptors) UnmarshalJSON(b []byte) error {
	var d v1.Descriptor // one for all: "{}" by the million shall not allocate
	return eachElement(b, func() { *ds = Descriptors{} }, func(dec *json.Decoder) (bool, error) {
		d = v1.Descriptor{}
		if err := dec.Decode(&d); err != nil {
			return false, err
		}
		if d.Size < 0 || checkDigest(string(d.Digest)) != nil {
			return false, nil
		}
		d.Data = nil
		*ds = append(*ds, d)
		return true, nil
	})
}

// maxDropped is how many elements of a list may be of no use. A list of more is no
// list of a registry, and each costs the time of reading it.
const maxDropped = 10_000

// eachElement calls begin and then, for each element of the JSON list b, next,
// which reads it and tells whether it is of use. It does nothing where b is null.
func eachElement(b []byte, begin func(), next func(*json.Decoder) (bool, error)) error {
	if string(b) == "null" {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		return fmt.Errorf("there is no list where one belongs")
	}
	begin()
	for dropped := 0; dec.More(); {
		used, err := next(dec)
		if err != nil {
			return err
		}
		if !used {
			dropped++
		}
		if dropped > maxDropped {
			return fmt.Errorf("more than %d elements of a list are not what belongs there", maxDropped)
		}
	}
	return nil
}
