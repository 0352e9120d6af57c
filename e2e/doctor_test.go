package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// diagnosis is what the doctor prints as JSON.
type diagnosis struct {
	Findings []struct{ Check, Status, Seen, Advice string }
}

// status gives the most serious one of a check's findings that tell of what was seen.
func (d diagnosis) status(check, seen string) string {
	worst := ""
	for _, f := range d.Findings {
		if f.Check == check && strings.Contains(f.Seen, seen) && worst != "failure" && (worst != "warning" || f.Status == "failure") {
			worst = f.Status
		}
	}
	return worst
}

// noOthers drops the upstreams that are there by default, which no test is to ask.
const noOthers = "ghcr.io: null, quay.io: null, gcr.io: null, registry.k8s.io: null, mcr.microsoft.com: null, public.ecr.aws: null, docker.elastic.co: null, nvcr.io: null"

// doctor runs the command with --output json.
func doctor(t *testing.T, args ...string) (d diagnosis, code int, out string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), proxy.Binary(t), append([]string{"doctor", "--output", "json"}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if stdout.Len() > 0 {
		if err := json.Unmarshal(stdout.Bytes(), &d); err != nil {
			t.Fatalf("%v: %s", err, stdout.String())
		}
	}
	return d, cmd.ProcessState.ExitCode(), stdout.String() + stderr.String()
}

// TestDoctorExaminesTheRunningProxy looks at one that is well, and then breaks one
// thing after the other.
func TestDoctorExaminesTheRunningProxy(t *testing.T) {
	t.Parallel()
	const password = "hunter2-hunter2"
	h := hub.New(t, hub.Options{Users: map[string]string{"alice": password}})
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h},
		Config: "upstreams: {docker.io: {credentials: {username: alice, password: " + password + "}}, " + noOthers + "}\n"})
	h.Push("library/app", "1.0", image.New(image.Options{Seed: 1}))
	h.LimitPulls(100, 100, 21600)
	get(t, p, tagPath)
	before := h.Counts()
	want := func(d diagnosis, out, check, seen, status string) {
		t.Helper()
		if got := d.status(check, seen); got != status {
			t.Errorf("%s, %q: want %s, got %q in:\n%s", check, seen, status, got, out)
		}
	}
	d, code, out := doctor(t, "--config", p.Config())
	for check, seen := range map[string]string{
		"listener": "answers as Entrepot", "admin listener": "entrepot", "configuration": "valid", "cache directory": "is held by the running entrepot",
		"upstream": "it takes the credentials", "clock": "agrees", "proxy variables": "none", "quota": "99 more pulls of 100",
	} {
		want(d, out, check, seen, "ok")
	}
	want(d, out, "configuration", "the same", "ok")
	if code != 0 {
		t.Errorf("want exit code 0, got %d:\n%s", code, out)
	}
	if after := h.Counts(); after.ManifestGets != before.ManifestGets || after.BlobGets != before.BlobGets {
		t.Errorf("the doctor pulled: %+v, before %+v", after, before)
	}

	// Wrong credentials, which a reload would take over, and what only a restart does.
	reconfigure(t, p, func(c map[string]any) {
		c["upstreams"].(map[string]any)["docker.io"].(map[string]any)["credentials"] = map[string]any{"username": "alice", "password": "n0t-" + password}
		c["limits"] = map[string]any{"fills": 50}
	})
	d, code, out = doctor(t, "--config", p.Config())
	want(d, out, "configuration", "since it was read: upstreams.docker.io.credentials.password", "warning")
	want(d, out, "configuration", "since the start: limits.fills", "warning")
	if code != 0 {
		t.Errorf("warnings are no failure: want exit code 0, got %d:\n%s", code, out)
	}
	if _, _, code, out := reload(t, p); code != 0 {
		t.Fatal(out)
	}
	d, code, out = doctor(t, "--config", p.Config())
	want(d, out, "upstream", "refuses those of upstreams.docker.io.credentials", "failure")
	if code != 1 || strings.Contains(out, password) {
		t.Errorf("want exit code 1 and no password, got %d:\n%s", code, out)
	}

	h.Down()
	d, code, out = doctor(t, "--config", p.Config())
	want(d, out, "upstream", "refuses the connection", "failure")
	if code != 1 {
		t.Errorf("want exit code 1, got %d:\n%s", code, out)
	}

	// From another machine, as it were: without the listeners' settings.
	d, code, out = doctor(t, "--url", p.URL())
	want(d, out, "listener", "answers as Entrepot", "ok")
	want(d, out, "admin listener", "", "warning")
	if code != 0 {
		t.Errorf("want exit code 0, got %d:\n%s", code, out)
	}

	reconfigure(t, p, func(c map[string]any) { c["lisen"] = ":1" })
	d, code, out = doctor(t, "--config", p.Config())
	want(d, out, "configuration", "lisen", "failure")
	if code != 1 {
		t.Errorf("want exit code 1, got %d:\n%s", code, out)
	}
}

// TestDoctorTellsOneCacheFromAnother asks one, and the admin listener of another.
func TestDoctorTellsOneCacheFromAnother(t *testing.T) {
	t.Parallel()
	_, one := start(t, "upstreams: {"+noOthers+"}\n")
	_, other := start(t, "upstreams: {"+noOthers+"}\n")
	admin := func(p *proxy.Proxy) string { return strings.TrimPrefix(p.AdminURL(), "http://") }
	d, code, out := doctor(t, "--url", one.URL(), "--admin-listen", admin(other), "--client", "podman", "--root", t.TempDir(), "--image", "app")
	if d.status("admin listener", "is of another Entrepot") != "warning" || d.status("podman pull", "can not be asked") != "warning" || code != 0 {
		t.Errorf("want that they do not belong together, and no pull; got %d:\n%s", code, out)
	}
	d, code, out = doctor(t, "--url", one.URL(), "--admin-listen", admin(one))
	if d.status("admin listener", "has run since") != "ok" || code != 0 {
		t.Errorf("want the one that it belongs to, got %d:\n%s", code, out)
	}
}

// TestDoctorReachesListenersThatAreGuarded has TLS on the one and a token on the other.
func TestDoctorReachesListenersThatAreGuarded(t *testing.T) {
	t.Parallel()
	c := newCertificates(t)
	cert, key := c.issue(t, "cache")
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(robotToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, p := start(t, fmt.Sprintf("tls: {cert: %s, key: %s}\nadmin: {auth: {token_file: %s}}\nupstreams: {%s}\n", cert, key, token, noOthers))
	root := t.TempDir()
	d, code, out := doctor(t, "--config", p.Config(), "--client", "podman", "--root", root, "--write", "--no-pull")
	if d.status("listener", "https://"+p.Host()+" answers as Entrepot") != "ok" || d.status("admin listener", "has run since") != "ok" || code != 0 {
		t.Errorf("want both reached, got %d:\n%s", code, out)
	}
	if strings.Contains(out, robotToken) {
		t.Errorf("the token is shown:\n%s", out)
	}
	written, err := os.ReadFile(filepath.Join(root, "etc/containers/registries.conf.d/50-entrepot.conf"))
	if err != nil || strings.Contains(string(written), "insecure") || !strings.Contains(string(written), p.Host()+"/docker.io") {
		t.Errorf("want a mirror by https, got %s, %v", written, err)
	}
	d, code, out = doctor(t, "--url", "http://"+p.Host())
	if d.status("listener", "speaks https") != "failure" || code != 1 {
		t.Errorf("want that it speaks https, got %d:\n%s", code, out)
	}
}

// TestDoctorEndsAPullThatIsInterrupted has a client that hangs.
func TestDoctorEndsAPullThatIsInterrupted(t *testing.T) {
	t.Parallel()
	_, p := start(t, "upstreams: {"+noOthers+"}\n")
	bin := t.TempDir()
	began := filepath.Join(bin, "began")
	script := "#!/bin/sh\nif [ \"$1\" = image ]; then exit 1; fi\n: >" + began + "\nexec sleep 600\n"
	if err := os.WriteFile(filepath.Join(bin, "podman"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), proxy.Binary(t), "doctor", "--config", p.Config(), "--client", "podman", "--root", t.TempDir(), "--image", "app")
	cmd.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "the client pulls", func() bool {
		_, err := os.Stat(began)
		return err == nil
	})
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // its code says more
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("want exit code 130, got %d", code)
	}
}

func TestDoctorExaminesAHostWithoutAProxy(t *testing.T) {
	t.Parallel()
	h, p := start(t, "upstreams: {"+noOthers+"}\n")
	p.Stop(t)
	d, code, out := doctor(t, "--config", p.Config())
	for _, c := range []struct{ check, seen, status string }{
		{"listener", "nothing listens", "failure"},
		{"admin listener", "no entrepot runs", "failure"},
		{"configuration", "valid", "ok"},
		{"cache directory", "nobody holds it", "ok"},
		{"upstream", "docker.io at " + h.URL() + " answers", "ok"},
	} {
		if got := d.status(c.check, c.seen); got != c.status {
			t.Errorf("%s, %q: want %s, got %q in:\n%s", c.check, c.seen, c.status, got, out)
		}
	}
	if code != 1 {
		t.Errorf("want exit code 1, got %d", code)
	}
	for _, args := range [][]string{{"--url", "cache:5000/path"}, {"--output", "xml"}, {"--client"}, {"more"}} {
		if _, code, out := doctor(t, args...); code != 2 {
			t.Errorf("%v: want exit code 2, got %d: %s", args, code, out)
		}
	}
}
