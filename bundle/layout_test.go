package bundle

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// made gives contents that are in order.
func made(t *testing.T) *Contents {
	t.Helper()
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	c := &Contents{
		Images: []Image{
			{Upstream: "docker.io", Repository: "library/b", Digest: digest.FromString("b"), MediaType: "x", Fetched: at},
			{Upstream: "docker.io", Repository: "library/a", Tag: "1", Digest: digest.FromString("a"), MediaType: "x", Fetched: at.Add(time.Hour)},
		},
		Contents: []Content{
			{Digest: digest.FromString("b"), Size: 1, MediaType: "application/<b>", In: []string{"docker.io/library/b"}, Present: true},
			{Digest: digest.FromString("a"), Size: 1, MediaType: "application/a", In: []string{"docker.io/library/a"}, Present: true},
		},
	}
	if err := c.seal(); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestSumIsThatOfTheDocumentWithoutIt(t *testing.T) {
	c := made(t)
	b, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	end := `,"digest":"` + c.Digest.String() + `"}`
	if got := string(b[len(b)-len(end):]); got != end {
		t.Fatalf("want the digest at the end, got %s", got)
	}
	if want := digest.FromString(string(b[:len(b)-len(end)]) + "}"); c.Digest != want {
		t.Errorf("want %s, got %s", want, c.Digest)
	}
	if !c.Created.Equal(c.Images[0].Fetched) || c.Images[0].Repository != "library/a" {
		t.Errorf("want the newest time, and the images in order, got %+v", c)
	}
	var read Contents
	if err := json.Unmarshal(b, &read); err != nil {
		t.Fatal(err)
	}
	if sum, err := read.Sum(); err != nil || sum != c.Digest {
		t.Errorf("read again: want %s, got %s, %v", c.Digest, sum, err)
	}
	read.Contents[0].Size++
	if sum, _ := read.Sum(); sum == c.Digest {
		t.Error("a size has changed, and not the digest")
	}
}
