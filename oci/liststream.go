package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// maxListElement bounds the bytes of one element of a list, and of one string or
	// number that is skipped.
	maxListElement = 4 << 20
	// maxSkippedDepth bounds how deep values nest that are skipped.
	maxSkippedDepth = 1000
)

// ReadTags reads a registry's list of tags (distribution-spec, "Listing Tags") as a
// stream and calls add for each tag. It drops what isn't a tag, and skips the other
// members, which may be megabytes. The result says whether the document has the member
// "tags", which may be null, or nothing but a name: some registries leave an empty list out.
//
// buffered gets the number of bytes that are read and not decoded yet, whenever that
// grows. Errors of add, buffered and r end the reading and are returned as they are.
func ReadTags(r io.Reader, buffered func(int64) error, add func(string) error) (isList bool, err error) {
	tag := ""
	return readList(r, buffered, "tags", "name", func(dec *json.Decoder) (bool, error) {
		tag = ""
		if err := decodeElement(dec, &tag); err != nil || tag == "" || !IsTag(tag) {
			return false, err
		}
		return true, add(tag)
	})
}

// ReadDescriptors reads an index (image-spec) as ReadTags reads tags. It drops
// descriptors that cannot be asked for here, see Descriptors.
func ReadDescriptors(r io.Reader, buffered func(int64) error, add func(v1.Descriptor) error) (isIndex bool, err error) {
	var d v1.Descriptor
	return readList(r, buffered, "manifests", "", func(dec *json.Decoder) (bool, error) {
		d = v1.Descriptor{}
		if err := decodeElement(dec, &d); err != nil || d.Size < 0 || checkDigest(string(d.Digest)) != nil {
			return false, err
		}
		d.Data = nil
		return true, add(d)
	})
}

// decodeElement decodes an element into v. Parts that don't fit v's type are left out.
func decodeElement(dec *json.Decoder, v any) error {
	err := dec.Decode(v)
	if misfit := (*json.UnmarshalTypeError)(nil); errors.As(err, &misfit) {
		return nil
	}
	return err
}

// readList reads a JSON object and calls element for each element of the list that is
// its member key; element reads it from the decoder and reports whether it's useful.
// found says whether the object has that member, also if the rest cannot be read, or is an
// empty list, in that the member alone is all it has.
func readList(r io.Reader, buffered func(int64) error, key, alone string, element func(*json.Decoder) (bool, error)) (found bool, err error) {
	w := &window{src: r, buffered: buffered}
	dec := json.NewDecoder(w)
	w.offset = dec.InputOffset
	dec.UseNumber()
	defer func() {
		if err != nil && w.err != nil {
			err = w.err // says more than that the JSON ends
		}
	}()
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return false, orElse(err, errNoObject)
	}
	isAlone, others := false, false
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return found, err
		}
		member, _ := name.(string) // the decoder takes no other
		if !strings.EqualFold(member, key) {
			isAlone, others = isAlone || member == alone, others || member != alone
			if err := skipValue(dec); err != nil {
				return found, err
			}
			continue
		}
		found = true
		if err := readElements(dec, element); err != nil {
			return found, err
		}
	}
	if _, err := dec.Token(); err != nil {
		return found, err
	}
	// The object is complete, whatever may follow it or have happened to the connection
	// then; clients don't look either.
	_, _ = dec.Token()
	w.err = nil
	return found || isAlone && !others, nil
}

var errNoObject = errors.New("it isn't a JSON object")

func orElse(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// readElements reads a list, or null.
func readElements(dec *json.Decoder, element func(*json.Decoder) (bool, error)) error {
	t, err := dec.Token()
	if err != nil || t == nil {
		return err
	}
	if t != json.Delim('[') {
		return errors.New("there is no list where one belongs")
	}
	for dropped := 0; dec.More(); {
		used, err := element(dec)
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
	_, err = dec.Token()
	return err
}

// skipValue reads a value of any kind and keeps nothing of it.
func skipValue(dec *json.Decoder) error {
	for depth := 0; ; {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return nil
		}
		if depth > maxSkippedDepth {
			return fmt.Errorf("values nest deeper than %d", maxSkippedDepth)
		}
	}
}

// window bounds the bytes that a decoder has read from src and not decoded yet.
type window struct {
	src      io.Reader
	buffered func(int64) error
	offset   func() int64 // up to which the decoder has decoded
	read     int64
	most     int64
	err      error // of src, buffered, or the window itself; not io.EOF
}

func (w *window) Read(b []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.src.Read(b)
	w.read += int64(n)
	pending := w.read - w.offset()
	switch {
	case err != nil && err != io.EOF:
		w.err = err
	case pending > maxListElement:
		n, w.err = 0, fmt.Errorf("an element of a list has more than %d bytes", maxListElement)
	case pending > w.most && w.buffered != nil:
		w.most = pending
		if w.err = w.buffered(pending); w.err != nil {
			n = 0
		}
	}
	if w.err != nil {
		err = w.err
	}
	return n, err
}
