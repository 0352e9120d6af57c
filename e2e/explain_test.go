package e2e

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// TestExplainSaysWhatIsHere asks the running process by its own command, before
// a pull, after it, past the tag's time, and for what nobody mirrors.
func TestExplainSaysWhatIsHere(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	i := image.Index(image.Options{Seed: 1})
	h.Push("library/app", "1.0", i)
	explain := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), proxy.Binary(t), append([]string{"explain", "--admin-listen", strings.TrimPrefix(p.AdminURL(), "http://")}, args...)...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
		out, _ := cmd.CombinedOutput() // what it says of a failure is looked at too
		return string(out)
	}
	want := func(out string, parts ...string) {
		t.Helper()
		for _, part := range parts {
			if !strings.Contains(out, part) {
				t.Errorf("want %q in:\n%s", part, out)
			}
		}
	}
	want(explain("app:1.0"), "docker.io/library/app:1.0: miss", "has not been asked for")

	amd64 := i.Platforms["linux/amd64"]
	get(t, p, "/v2/library/app/manifests/1.0")
	get(t, p, "/v2/library/app/manifests/"+amd64.String())
	for _, l := range i.Layers("linux/amd64") {
		get(t, p, "/v2/library/app/blobs/"+l.Digest.String())
	}
	p.WaitIdle(t)
	before := h.Counts()
	want(explain("docker.io/library/app:1.0"),
		"docker.io/library/app:1.0: hit", i.Digest.String(), `match: "*"`, "asked again",
		"linux/amd64", amd64.String()+" cached, with 1 of its 2 blobs",
		"linux/arm/v7", i.Platforms["linux/arm/v7"].String()+" not cached")
	want(explain("--output", "json", "app@"+amd64.String()), `"status": "hit"`, `"stored": true`)
	want(explain("app@"+i.Platforms["linux/arm64"].String()), "miss (it is not cached)")
	want(explain("quay.example.test/app:1"), "not configured")
	want(explain("No Such Name"), "is no reference")
	if after := h.Counts(); after != before {
		t.Errorf("explaining asked the upstream: %+v, before %+v", after, before)
	}
}
