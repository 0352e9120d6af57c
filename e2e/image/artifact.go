package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// The media types of a Helm chart and of a cosign signature.
const (
	MediaTypeHelmConfig    = "application/vnd.cncf.helm.config.v1+json"
	MediaTypeHelmChart     = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
	MediaTypeCosignPayload = "application/vnd.dev.cosign.simplesigning.v1+json"
	annotationSignature    = "dev.cosignproject.cosign/signature"
)

// Artifact makes an OCI manifest with an artifact type, the empty config and
// one layer of size bytes. A subject makes it a referrer.
func Artifact(seed uint64, artifactType string, size int, subject *v1.Descriptor) *Image {
	i := empty()
	layer := i.blob(digest.SHA256, "application/octet-stream", random(seed, artifactType, size))
	layer.Annotations = map[string]string{v1.AnnotationTitle: fmt.Sprintf("artifact-%d.bin", seed)}
	return i.root(digest.SHA256, v1.MediaTypeImageManifest, v1.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    v1.MediaTypeImageManifest,
		ArtifactType: artifactType,
		Config:       i.blob(digest.SHA256, v1.MediaTypeEmptyJSON, []byte("{}")),
		Layers:       []v1.Descriptor{layer},
		Subject:      subject,
		Annotations:  map[string]string{v1.AnnotationCreated: "2024-01-01T00:00:00Z"},
	})
}

// HelmChart makes a chart as "helm push" does: a config with the chart's
// metadata and a .tgz with Chart.yaml, values.yaml and one template.
func HelmChart(seed uint64, name, version string) *Image {
	chart := fmt.Sprintf("apiVersion: v2\nname: %s\nversion: %s\ndescription: made for tests\ntype: application\n", name, version)
	template := fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}\ndata:\n  seed: %q\n", fmt.Sprint(seed))
	files := [][2]string{
		{"Chart.yaml", chart},
		{"values.yaml", "replicas: 1\n"},
		{"templates/configmap.yaml", template},
	}
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	tw := tar.NewWriter(zw)
	for _, f := range files {
		err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name + "/" + f[0], Mode: 0o644, Size: int64(len(f[1]))})
		if err == nil {
			_, err = tw.Write([]byte(f[1]))
		}
		if err != nil {
			panic(fmt.Sprintf("image: chart: %v", err))
		}
	}
	if err := tw.Close(); err != nil {
		panic(fmt.Sprintf("image: chart: %v", err))
	}
	if err := zw.Close(); err != nil {
		panic(fmt.Sprintf("image: chart: %v", err))
	}
	cfg, err := json.Marshal(map[string]string{
		"name": name, "version": version, "description": "made for tests", "apiVersion": "v2", "type": "application",
	})
	if err != nil {
		panic(fmt.Sprintf("image: chart: %v", err))
	}
	i := empty()
	return i.root(digest.SHA256, v1.MediaTypeImageManifest, v1.Manifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		Config:      i.blob(digest.SHA256, MediaTypeHelmConfig, cfg),
		Layers:      []v1.Descriptor{i.blob(digest.SHA256, MediaTypeHelmChart, packed.Bytes())},
		Annotations: map[string]string{v1.AnnotationTitle: name, v1.AnnotationVersion: version},
	})
}

// Signature makes what "cosign sign" puts beside the signed image under
// SignatureTag: a manifest whose layer is the signed payload. The signature in
// it is random bytes and verifies against no key.
func Signature(seed uint64, signed v1.Descriptor, reference string) *Image {
	payload, err := json.Marshal(map[string]any{
		"critical": map[string]any{
			"identity": map[string]string{"docker-reference": reference},
			"image":    map[string]string{"docker-manifest-digest": signed.Digest.String()},
			"type":     "cosign container image signature",
		},
		"optional": nil,
	})
	if err != nil {
		panic(fmt.Sprintf("image: signature: %v", err))
	}
	i := empty()
	layer := i.blob(digest.SHA256, MediaTypeCosignPayload, payload)
	layer.Annotations = map[string]string{annotationSignature: fmt.Sprintf("%x", random(seed, "signature", 64))}
	cfg := fmt.Sprintf(`{"architecture":"","created":"0001-01-01T00:00:00Z","os":"","rootfs":{"type":"layers","diff_ids":[%q]},"config":{}}`, layer.Digest)
	return i.root(digest.SHA256, v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    i.blob(digest.SHA256, v1.MediaTypeImageConfig, []byte(cfg)),
		Layers:    []v1.Descriptor{layer},
	})
}

// SignatureTag is where cosign keeps the signatures of d.
func SignatureTag(d digest.Digest) string { return ReferrersTag(d) + ".sig" }

// ReferrersTag is the tag under which clients look for the referrers of d where
// a registry has no referrers API (distribution-spec, "Referrers Tag Schema").
func ReferrersTag(d digest.Digest) string {
	alg, hex := d.Algorithm().String(), d.Encoded()
	tag := alg[:min(len(alg), 32)] + "-" + hex[:min(len(hex), 64)]
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '_', r == '-':
			return r
		}
		return '-'
	}, tag)
}

// Referrers makes the index that answers "who refers to it": by the referrers
// API or under ReferrersTag.
func Referrers(referrers ...v1.Descriptor) *Image {
	if referrers == nil {
		referrers = []v1.Descriptor{}
	}
	return empty().root(digest.SHA256, v1.MediaTypeImageIndex, v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageIndex,
		Manifests: referrers,
	})
}
