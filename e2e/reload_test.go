package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// reconfigure changes a proxy's configuration file.
func reconfigure(t *testing.T, p *proxy.Proxy, change func(map[string]any)) {
	t.Helper()
	text, err := os.ReadFile(p.Config())
	if err != nil {
		t.Fatal(err)
	}
	var c map[string]any
	if err := yaml.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	change(c)
	if text, err = yaml.Marshal(c); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.Config(), text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// reload runs the command; what it prints is JSON where it succeeds.
func reload(t *testing.T, p *proxy.Proxy) (changed, later []string, code int, out string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), proxy.Binary(t), "reload", "--output", "json", "--config", p.Config())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	var r struct{ Changed, NeedRestart []string }
	if code = cmd.ProcessState.ExitCode(); code == 0 {
		if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
			t.Errorf("%v: %s", err, stdout.String())
		}
	}
	return r.Changed, r.NeedRestart, code, stdout.String() + stderr.String()
}

func TestReloadTakesOverWhatItCanAndDropsNoTransfer(t *testing.T) {
	t.Parallel()
	first, second := hub.New(t, hub.Options{}), hub.New(t, hub.Options{})
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": first}, Config: "limits: {fills: 100}\n"})
	old, moved := image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
	first.Push("library/app", "1.0", old)
	second.Push("library/app", "1.0", moved)
	second.Push("library/other", "1.0", moved)
	get(t, p, tagPath)

	d, content, path := blobOf(first, "library/big", 3, 8<<20)
	get(t, p, "/v2/library/big/manifests/1.0")
	undo := first.Inject(hub.Slow(1 << 20).On(d))
	resp, err := http.Get(p.URL() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}

	// Another registry behind the same name, one more, other rules; and what can
	// not change.
	reconfigure(t, p, func(c map[string]any) {
		upstreams := c["upstreams"].(map[string]any)
		upstreams["docker.io"] = second.Upstream("")
		upstreams["new.test"] = second.Upstream("")
		upstreams["docker.io"].(map[string]any)["tags"] = []any{map[string]any{"match": "*", "ttl": "0s"}}
		c["access"] = []any{map[string]any{"name": "no-others", "action": "deny", "repositories": []string{"library/other"}, "upstreams": []string{"docker.io"}}}
		c["log"].(map[string]any)["level"] = "info"
		c["limits"] = map[string]any{"fills": 50}
	})
	changed, later, code, out := reload(t, p)
	if code != 0 || !slices.Equal(later, []string{"limits.fills"}) {
		t.Errorf("want limits.fills to need a restart, got %d, %v\n%s", code, later, out)
	}
	for _, key := range []string{"access", "log.level", "upstreams.docker.io.endpoints", "upstreams.docker.io.tags", "upstreams.new.test"} {
		if !slices.Contains(changed, key) {
			t.Errorf("want %s among what has changed, got %v", key, changed)
		}
	}
	wantBytes(t, "from the other registry", moved.Bytes(), get(t, p, tagPath).body)
	wantBytes(t, "from the new upstream", moved.Bytes(), get(t, p, "/v2/new.test/library/other/manifests/1.0").body)
	if a := ask(t, p, http.MethodGet, "/v2/library/other/manifests/1.0"); a.status != http.StatusForbidden || !strings.Contains(string(a.body), "no-others") {
		t.Errorf("want a refusal by the new rule, got %s", a)
	}

	// The transfer goes on, from where it began.
	undo()
	rest, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(rest, content[1000:]) {
		t.Errorf("the transfer under way: %d of %d bytes, %v", len(rest)+1000, len(content), err)
	}

	// A configuration that is wrong changes nothing.
	good, err := os.ReadFile(p.Config())
	if err != nil {
		t.Fatal(err)
	}
	reconfigure(t, p, func(c map[string]any) { c["default_upstream"] = "nobody.test" })
	if err := syscall.Kill(p.PID(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	until(t, "the refusal in the log", func() bool {
		return strings.Contains(p.Log(), "the configuration stays as it was") && strings.Contains(p.Log(), "nobody.test")
	})
	if _, _, code, out := reload(t, p); code != 1 || !strings.Contains(out, "nobody.test") {
		t.Errorf("want 1 and the reason, got %d\n%s", code, out)
	}
	wantBytes(t, "as before", moved.Bytes(), get(t, p, "/v2/new.test/library/other/manifests/1.0").body)

	// An upstream that is taken away is refused; offline asks nobody.
	if err := os.WriteFile(p.Config(), good, 0o600); err != nil {
		t.Fatal(err)
	}
	reconfigure(t, p, func(c map[string]any) {
		delete(c["upstreams"].(map[string]any), "new.test")
		c["cache"].(map[string]any)["offline"] = true
	})
	if err := syscall.Kill(p.PID(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	until(t, "the upstream's end", func() bool {
		a := ask(t, p, http.MethodGet, "/v2/library/absent/manifests/1.0?ns=new.test")
		return a.status == http.StatusNotFound && strings.Contains(string(a.body), "not configured")
	})
	before := second.Counts()
	wantBytes(t, "offline", moved.Bytes(), get(t, p, tagPath).body)
	if a := ask(t, p, http.MethodGet, "/v2/library/absent/manifests/1.0"); a.status != http.StatusServiceUnavailable || !strings.Contains(string(a.body), "offline") {
		t.Errorf("want that it is offline, got %s", a)
	}
	if after := second.Counts(); after != before {
		t.Errorf("offline, the upstream was asked: %+v, before %+v", after, before)
	}
}

func TestReloadWithoutAProxyToTell(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), proxy.Binary(t), "reload", "--admin-listen", "127.0.0.1:1")
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "no entrepot runs") {
		t.Errorf("want 1 and that none runs, got %v\n%s", err, out)
	}
}
