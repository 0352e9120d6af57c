package rewrite

import (
	"bytes"
	"strings"

	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
)

// Limits on Accept headers. What is beyond them is not read.
const (
	maxAcceptBytes  = 8 << 10
	maxAcceptRanges = 64
)

// Accept is what a client says that it takes. It is a comparable value; the
// zero value stands for an absent header and takes everything.
type Accept struct {
	// takes and refuses are sets of the known media types and wildcards;
	// refused are those with a weight of zero.
	takes, refuses acceptSet
	// others lists the remaining media types in lower case, each between
	// commas: ",a/b,c/d,".
	others string
}

type acceptSet uint16

const (
	acceptOCIManifest acceptSet = 1 << iota
	acceptOCIIndex
	acceptDockerManifest
	acceptDockerList
	acceptSchema1
	acceptSchema1Signed
	acceptArtifact
	acceptAnyApplication
	acceptAny

	acceptIndexes   = acceptOCIIndex | acceptDockerList
	acceptManifests = acceptOCIManifest | acceptDockerManifest | acceptSchema1 | acceptSchema1Signed | acceptArtifact
	acceptSchema1s  = acceptSchema1 | acceptSchema1Signed
	acceptWildcards = acceptAny | acceptAnyApplication
)

// ParseAccept reads the values of a request's Accept headers. It never fails:
// what is malformed is passed over, parameters but the weight are ignored, a
// weight of zero refuses, and no usable value at all counts as an absent
// header (RFC 9110 section 12.5.1; clients differ in what they write).
func ParseAccept(headers ...[]byte) Accept {
	var a Accept
	ranges, size := 0, 0
	for _, h := range headers {
		if size += len(h); size > maxAcceptBytes {
			break
		}
		for len(h) > 0 && ranges < maxAcceptRanges {
			var element []byte
			element, h = cutUnquoted(h, ',')
			if a.add(element) {
				ranges++
			}
		}
	}
	return a
}

// AcceptOf gives the Accept of a client that names these media types.
func AcceptOf(mediaTypes ...string) Accept {
	var a Accept
	for _, t := range mediaTypes {
		a.add([]byte(t))
	}
	return a
}

func (a *Accept) add(element []byte) bool {
	mediaType, params := cutUnquoted(element, ';')
	mediaType = bytes.TrimSpace(mediaType)
	if !oci.IsMediaType(mediaType) {
		return false
	}
	refused := false
	for len(params) > 0 {
		var p []byte
		p, params = cutUnquoted(params, ';')
		name, value, _ := bytes.Cut(bytes.TrimSpace(p), []byte("="))
		if len(name) == 1 && (name[0] == 'q' || name[0] == 'Q') {
			refused = isZeroWeight(value)
		}
	}
	known := acceptBit(mediaType)
	switch {
	case known != 0 && refused:
		a.refuses |= known
	case known != 0:
		a.takes |= known
	case !refused && !a.takesOther(string(mediaType)):
		if a.others == "" {
			a.others = ","
		}
		a.others += strings.ToLower(string(mediaType)) + ","
	}
	return true
}

// AnyOrEmpty tells whether the header was absent or takes anything ("*/*").
func (a Accept) AnyOrEmpty() bool {
	return a.isAbsent() || a.takes&acceptAny != 0
}

// Takes tells whether the client names mediaType, or a wildcard that holds it.
func (a Accept) Takes(mediaType string) bool {
	if bit := acceptBit([]byte(mediaType)); bit != 0 {
		return a.takesBit(bit)
	}
	return a.AnyOrEmpty() || a.takesOther(mediaType) ||
		a.takes&acceptAnyApplication != 0 && strings.HasPrefix(mediaType, "application/")
}

// TakesIndex tells whether the client is to be given an index as it is. Only a
// client that names manifests of a single image and neither kind of index is
// not: one that names one kind of index is given the other too, and one that
// names nothing that a registry has (a browser, "application/json") gets what
// is stored, for an error would help nobody.
func (a Accept) TakesIndex() bool {
	if a.takesBit(acceptOCIIndex) || a.takesBit(acceptDockerList) {
		return true
	}
	return a.takes&acceptManifests == 0 && a.refuses&acceptIndexes == 0
}

// OnlySchema1 tells whether the client takes nothing but Docker's schema 1,
// which nobody should be given any more.
func (a Accept) OnlySchema1() bool {
	return a.takes != 0 && a.takes&^acceptSchema1s == 0 && a.others == ""
}

func (a Accept) isAbsent() bool {
	return a.takes == 0 && a.refuses == 0 && a.others == ""
}

func (a Accept) takesBit(bit acceptSet) bool {
	if a.refuses&bit != 0 {
		return false
	}
	return a.isAbsent() || a.takes&(bit|acceptWildcards) != 0
}

func (a Accept) takesOther(mediaType string) bool {
	return a.others != "" && strings.Contains(a.others, ","+strings.ToLower(mediaType)+",")
}

func acceptBit(mediaType []byte) acceptSet {
	switch string(mediaType) { // does not allocate
	case v1.MediaTypeImageManifest:
		return acceptOCIManifest
	case v1.MediaTypeImageIndex:
		return acceptOCIIndex
	case oci.MediaTypeDockerManifest:
		return acceptDockerManifest
	case oci.MediaTypeDockerManifestList:
		return acceptDockerList
	case oci.MediaTypeDockerSchema1:
		return acceptSchema1
	case oci.MediaTypeDockerSchema1Signed:
		return acceptSchema1Signed
	case oci.MediaTypeOCIArtifactManifest:
		return acceptArtifact
	case "application/*":
		return acceptAnyApplication
	case "*/*", "*": // "*" alone is what some Java clients send
		return acceptAny
	}
	for _, c := range mediaType {
		if 'A' <= c && c <= 'Z' {
			return acceptBit(bytes.ToLower(mediaType))
		}
	}
	return 0
}

// isZeroWeight tells whether a q value says "not at all": 0, 0., 0.0 to 0.000.
// A malformed one counts as 1.
func isZeroWeight(q []byte) bool {
	q = bytes.TrimSpace(q)
	if len(q) == 0 || q[0] != '0' || len(q) > 1 && q[1] != '.' {
		return false
	}
	for _, c := range q[1:] {
		if c != '.' && c != '0' {
			return false
		}
	}
	return true
}

// cutUnquoted cuts b at the first sep that is not inside a quoted string.
func cutUnquoted(b []byte, sep byte) (before, after []byte) {
	quoted := false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			i++
		case c == sep && !quoted:
			return b[:i], b[i+1:]
		}
	}
	return b, nil
}
