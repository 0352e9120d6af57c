package oci

import (
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/image-spec/specs-go/v1"
)

func indexOf(names ...string) *Parsed {
	p := &Parsed{Kind: KindIndex}
	for _, name := range names {
		d := descriptor("sha256:"+name, nil)
		if name != "none" {
			os, rest, _ := strings.Cut(name, "/")
			arch, variant, _ := strings.Cut(rest, "/")
			d.Platform = &v1.Platform{OS: os, Architecture: arch, Variant: variant}
		}
		p.Children = append(p.Children, d)
	}
	return p
}

func TestPlatformsManifestIsChosen(t *testing.T) {
	attestation := descriptor("sha256:attestation", &v1.Platform{OS: "linux", Architecture: "amd64"})
	attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	withAttestation := indexOf("linux/amd64")
	withAttestation.Children = append([]v1.Descriptor{attestation}, withAttestation.Children...)
	nested := indexOf("linux/amd64")
	nested.Children[0].MediaType = ociIndex

	for _, c := range []struct {
		name  string
		index *Parsed
		want  string
		got   string // the platform chosen, or what the error says
	}{
		{"exact", indexOf("linux/arm64", "linux/amd64"), "linux/amd64", "linux/amd64"},
		{"exact variant", indexOf("linux/arm/v5", "linux/arm/v7", "linux/arm/v6"), "linux/arm/v7", "linux/arm/v7"},
		{"lower variant", indexOf("linux/arm/v5", "linux/arm/v6"), "linux/arm/v7", "linux/arm/v6"},
		{"no variant is v7", indexOf("linux/arm/v6", "linux/arm"), "linux/arm/v7", "linux/arm"},
		{"arm asked without variant", indexOf("linux/arm/v6", "linux/arm/v7"), "linux/arm", "linux/arm/v7"},
		{"arm64 is v8", indexOf("linux/arm64/v8"), "linux/arm64", "linux/arm64/v8"},
		{"first of equals", indexOf("linux/amd64", "linux/amd64"), "linux/amd64", "linux/amd64"},
		{"higher variant", indexOf("linux/arm/v7"), "linux/arm/v6", "!linux/arm/v7"},
		{"other architecture", indexOf("linux/386"), "linux/amd64", "!linux/386"},
		{"arm for arm64", indexOf("linux/arm/v7"), "linux/arm64", "!linux/arm/v7"},
		{"absent", indexOf("linux/arm64", "windows/amd64", "unknown/unknown"), "linux/amd64", "!linux/arm64, windows/amd64"},
		{"attestation", withAttestation, "linux/amd64", "linux/amd64"},
		{"only attestations", indexOf("unknown/unknown"), "linux/amd64", "!no manifest for a platform"},
		{"nested index", nested, "linux/amd64", "!does not say"},
		{"one without a platform", indexOf("none"), "linux/amd64", "none"},
		{"two without a platform", indexOf("none", "none"), "linux/amd64", "!does not say"},
		{"empty", indexOf(), "linux/amd64", "!no manifest for a platform"},
		{"control characters", indexOf("li\nnux/x"), "linux/amd64", "!li?nux/x"},
	} {
		d, err := SelectPlatform(c.index, c.want)
		if says, fails := strings.CutPrefix(c.got, "!"); fails {
			var e *Error
			if !errors.As(err, &e) || e.Code != CodeManifestUnknown || !strings.Contains(e.Message, says) || strings.Contains(e.Message, "unknown") {
				t.Errorf("%s: %v, %v; want MANIFEST_UNKNOWN with %q", c.name, d, err, says)
			}
			continue
		}
		if err != nil || string(d.Digest) != "sha256:"+c.got {
			t.Errorf("%s: %s, %v; want %s", c.name, d.Digest, err, c.got)
		}
	}
}

func TestPlatformIsReadStrictly(t *testing.T) {
	for s, ok := range map[string]bool{
		"linux/amd64": true, "linux/arm/v7": true, "linux/aarch64": true, "windows/amd64": true,
		"linux": false, "": false, "linux/": false, "/amd64": false, "linux/arm/v7/x": false, "linux amd64": false, "*/*": false,
	} {
		if p, err := ParsePlatform(s); (err == nil) != ok {
			t.Errorf("ParsePlatform(%q) = %+v, %v; want ok %v", s, p, err, ok)
		}
	}
}
