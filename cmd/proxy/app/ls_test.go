package app

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/operator"
)

func TestImagesAreListedForPeople(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	many := []cache.ImagePlatform{{Name: "linux/386", Whole: true}, {Name: "linux/amd64", Whole: true}, {Name: "linux/arm/v7", Whole: true}, {Name: "linux/arm64", Whole: true}, {Name: "linux/s390x"}}
	list := &cache.Images{Size: 3 << 20, Images: []cache.Image{
		{Reference: "docker.io/library/nginx:1.27", Digest: digest.FromString("a"), Platforms: many, Size: 2 << 20, Fetched: now.Add(-48 * time.Hour), Used: now.Add(-time.Minute), Pinned: true},
		{Reference: "ghcr.io/org/app@" + digest.FromString("b").String(), Digest: digest.FromString("b"), Platforms: []cache.ImagePlatform{{Whole: true}}, Size: 1 << 20, Fetched: now, Used: now},
		{Reference: "ghcr.io/org/gone:1", Digest: digest.FromString("c"), Pinned: true},
	}}
	var out bytes.Buffer
	each := func(fn func(cache.Image) error) (int64, error) {
		for _, i := range list.Images {
			if err := fn(i); err != nil {
				return 0, err
			}
		}
		return list.Size, nil
	}
	if err := writeImages(&out, now, false, each); err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		"REFERENCE                                                                                DIGEST                                                                   PLATFORMS                                         SIZE  FETCHED               LAST USED             PINNED",
		"docker.io/library/nginx:1.27                                                             sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb  linux/386, linux/amd64, linux/arm/v7, … (4 of 5)  2MiB  2026-11-23T12:00:00Z  2026-11-25T11:59:00Z  yes",
		"ghcr.io/org/app@sha256:3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d  sha256:3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d  (1 of 1)                                          1MiB  2026-11-25T12:00:00Z  2026-11-25T12:00:00Z  no",
		"ghcr.io/org/gone:1                                                                       sha256:2e7d2c03a9507ae265ecf5b5356885a53393a2029d241394997265a1a25aefc6  (0 of 0)                                          0B    –                     –                     yes",
		"3 images, 3MiB on disk",
		"",
	}, "\n")
	if got := out.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestSignatureTagsAreListedOnlyIfWanted(t *testing.T) {
	hex := digest.FromString("a").Encoded()
	images := []string{"docker.io/library/app:1", "docker.io/library/app:sha256-" + hex + ".sig", "docker.io/library/app:sha256-" + hex + ".att", "docker.io/library/app:sha256-1.sig", "localhost:5000/app:1"}
	each := func(fn func(cache.Image) error) (int64, error) {
		for _, name := range images {
			if err := fn(cache.Image{Reference: name}); err != nil {
				return 0, err
			}
		}
		return 0, nil
	}
	for all, want := range map[bool]string{false: "3 images, 0B on disk; 2 tags of cosign not listed (--all lists them)\n", true: "5 images, 0B on disk\n"} {
		var out bytes.Buffer
		if err := writeImages(&out, time.Now(), all, each); err != nil {
			t.Fatal(err)
		}
		if listed := strings.Contains(out.String(), hex); listed != all || !strings.HasSuffix(out.String(), want) {
			t.Errorf("all is %t: want the end %q, got\n%s", all, want, out.String())
		}
	}
}

func TestWhatStrangersSayOfAnImageIsPrintedHarmlessly(t *testing.T) {
	i := &operator.Inspection{Reference: "docker.io/library/evil:1", Image: operator.InspectedManifest{
		Inspected: operator.Inspected{Kind: cache.KindManifest, Digest: digest.FromString("a"), MediaType: "application/x\x1b[2J", Size: 1},
		Config:    &operator.ImageConfig{Author: "a\nb\x1b[31m", Cmd: []string{"sh", "-c", "echo \u202e"}, Labels: map[string]string{"k\t": "v\r\n"}},
	}}
	var out bytes.Buffer
	if err := writeInspection(&out, i, time.Now()); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(out.String(), "\x1b\r\u202e\t") || strings.Contains(out.String(), "a\nb") {
		t.Errorf("printed %q", out.String())
	}
	if !strings.Contains(out.String(), "k?=v??") {
		t.Errorf("the label is not there:\n%s", out.String())
	}
}

func TestATagThatIsPastItsTimeIsDueUntilThatMatters(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		image cache.RehearsedImage
		want  string
	}{
		{cache.RehearsedImage{Status: cache.RehearsedOK}, "ok"},
		{cache.RehearsedImage{Status: cache.RehearsedStale, Until: now.Add(720 * time.Hour)}, "due"},
		{cache.RehearsedImage{Status: cache.RehearsedStale}, "due"},
		{cache.RehearsedImage{Status: cache.RehearsedStale, Until: now.Add(time.Hour)}, "stale"},
		{cache.RehearsedImage{Status: cache.RehearsedFailed, MissingPlatforms: []string{"linux/arm64"}}, "failed"},
		{cache.RehearsedImage{Status: cache.RehearsedOK, MissingPlatforms: []string{"linux/arm64", "linux/386"}}, "partial: no linux/arm64, linux/386"},
		{cache.RehearsedImage{Status: cache.RehearsedStale, Until: now.Add(48 * time.Hour), MissingPlatforms: []string{"linux/arm64"}}, "due, partial: no linux/arm64"},
	} {
		if got := rehearsedResult(&c.image, now); got != c.want {
			t.Errorf("%+v is %q, want %q", c.image, got, c.want)
		}
	}
}
