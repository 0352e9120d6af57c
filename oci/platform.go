package oci

import (
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// ParsePlatform reads "os/arch" or "os/arch/variant" and gives it normalised:
// "linux/arm64/v8" and "linux/aarch64" are linux/arm64. Nothing is filled in
// from the machine that this runs on.
func ParsePlatform(s string) (v1.Platform, error) {
	if n := strings.Count(s, "/"); n < 1 || n > 2 {
		return v1.Platform{}, Errorf(CodeUnknown, "platform %q is not of the form os/arch or os/arch/variant", s)
	}
	p, err := platforms.Parse(s)
	if err != nil {
		return v1.Platform{}, Errorf(CodeUnknown, "platform %q is not of the form os/arch or os/arch/variant: %w", s, err)
	}
	return platforms.Normalize(p), nil
}

// SelectPlatform returns the manifest of an index that fits want
// ("linux/arm/v7"). Lower variants of the same architecture fit if the
// asked one is missing (arm/v6 for arm/v7), as in containerd; another
// architecture never does, not even 386 for amd64. Attestations are never chosen. If
// nothing fits it returns MANIFEST_UNKNOWN, naming the platforms that are there.
func SelectPlatform(index *Parsed, want string) (v1.Descriptor, error) {
	c, err := ChoosePlatform(index, want)
	if err == nil && !c.Found {
		err = Errorf(CodeManifestUnknown,
			"the index does not say which of its manifests is for %s, and the client takes no index; ask with an Accept that takes one", want)
	}
	return c.Manifest, err
}

// Choice is what an index has for a platform: a manifest, if one is found, or else
// indexes that may have one. If those have none either, the index does not tell.
type Choice struct {
	Found    bool
	Manifest v1.Descriptor
	Nested   []v1.Descriptor
}

// maxNested is how many nested indexes are worth looking into.
const maxNested = 8

// ChoosePlatform is SelectPlatform for a caller that can read nested indexes.
func ChoosePlatform(index *Parsed, want string) (Choice, error) {
	wanted, err := ParsePlatform(want)
	if err != nil {
		return Choice{}, err
	}
	match := platforms.Only(wanted)
	fits := func(p v1.Platform) bool {
		return p.OS == wanted.OS && p.Architecture == wanted.Architecture && match.Match(p)
	}
	var best *v1.Descriptor
	var there []string
	var unnamed []int
	var c Choice
	for i := range index.Children {
		d := &index.Children[i]
		// An architecture must be named: an empty platform says nothing.
		named := d.Platform != nil && d.Platform.Architecture != ""
		if IsIndex(d.MediaType) {
			if len(c.Nested) < maxNested && (!named || fits(platforms.Normalize(*d.Platform))) {
				c.Nested = append(c.Nested, *d)
			}
			continue
		}
		if IsAttestation(*d) {
			continue
		}
		if !named {
			unnamed = append(unnamed, i)
			continue
		}
		p := platforms.Normalize(*d.Platform)
		if name := platformName(p); !slices.Contains(there, name) && len(there) < 64 {
			there = append(there, name)
		}
		if fits(p) && (best == nil || match.Less(p, *best.Platform)) {
			best = d
		}
	}
	switch {
	case best != nil:
		return Choice{Found: true, Manifest: *best}, nil
	case len(unnamed) == 1 && len(there) == 0 && len(c.Nested) == 0:
		// There is no choice.
		return Choice{Found: true, Manifest: index.Children[unnamed[0]]}, nil
	case len(unnamed) > 0, len(c.Nested) > 0:
		return c, nil
	case len(there) == 0:
		return c, Errorf(CodeManifestUnknown,
			"the index names no manifest for a platform, and the client takes no index; ask with an Accept that takes one")
	}
	return c, Errorf(CodeManifestUnknown,
		"the image has no manifest for %s, and the client takes no index; it is there for %s", want, strings.Join(there, ", "))
}

// IsAttestation tells whether d is one of BuildKit's attestation manifests.
func IsAttestation(d v1.Descriptor) bool {
	if d.Platform != nil && (d.Platform.OS == "unknown" || d.Platform.Architecture == "unknown") {
		return true
	}
	return d.Annotations["vnd.docker.reference.type"] == "attestation-manifest"
}

// PlatformName gives a descriptor's platform as people write it, normalised, and
// safe to be put into a message; empty where there is none.
func PlatformName(p *v1.Platform) string {
	if p == nil {
		return ""
	}
	return platformName(platforms.Normalize(*p))
}

// platformName writes a stranger's platform so that it may stand in a message.
func platformName(p v1.Platform) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '?'
		}
		return r
	}, platforms.Format(p))
}
