package e2e

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/admin"
	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// secretOf gives a secret that says where it was put, so that a leak says whence.
func secretOf(where string) string { return "s3cr3t-" + where }

// Every place that may hold a secret holds one, and every output is searched.
func TestNoSecretIsTold(t *testing.T) {
	files := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(files, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	names := []string{"file", "literal", "env", "key", "docker", "identity", "wrong"}
	hubs := map[string]*hub.Hub{}
	var lines []string
	var paths []string
	for _, name := range names {
		h := hub.New(t, hub.Options{Users: map[string]string{"alice": secretOf(name)}})
		hubs[name+".test"] = h
		var c string
		switch name {
		case "file":
			c = fmt.Sprintf("{username: alice, password_file: %q}", file(name, secretOf(name)+"\n"))
		case "literal":
			c = fmt.Sprintf("{username: alice, password: %q}", secretOf(name))
		case "env":
			c = "{username: alice, password_env: THE_PASSWORD}"
		case "key":
			c = "{username: alice}" // and the password in a variable of its own
		case "docker":
			c = fmt.Sprintf("{docker_config: %q}", file(name, fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, h.Host(), base64.StdEncoding.EncodeToString([]byte("alice:"+secretOf(name))))))
		case "identity":
			c = fmt.Sprintf("{docker_config: %q}", file(name, fmt.Sprintf(`{"auths":{%q:{"identitytoken":%q}}}`, h.Host(), h.RefreshToken("alice"))))
		case "wrong":
			c = fmt.Sprintf("{username: alice, password: %q}", secretOf("refused"))
		}
		lines = append(lines, fmt.Sprintf("%q: {credentials: %s}", name+".test", c))
		i := image.New(image.Options{Seed: 1})
		h.Push("alice/app", "1.0", i)
		h.MakePrivate("alice/app", "alice")
		base := "/v2/" + name + ".test/alice/app/"
		paths = append(paths, base+"manifests/1.0", base+"manifests/none", base+"tags/list", base+"blobs/"+i.Layers("")[0].Digest.String(), base+"blobs/"+zeroes)
	}
	env := []string{
		"THE_PASSWORD=" + secretOf("env"),
		"ENTREPOT_UPSTREAMS_KEY_TEST_CREDENTIALS_PASSWORD=" + secretOf("key"),
		// Nobody listens there. Loopback addresses are not asked through it.
		"HTTPS_PROXY=http://bob:" + secretOf("proxy") + "@127.0.0.1:9",
	}
	p := proxy.Start(t, proxy.Options{Upstreams: hubs, Config: "upstreams: {" + strings.Join(lines, ", ") + "}", Env: env})

	var told strings.Builder
	tell := func(what, s string) { fmt.Fprintf(&told, "\n=== %s\n%s", what, s) }
	paths = append(paths, "/v2/ghcr.io/alice/app/manifests/1.0", "/v2/file.test/alice/app/manifests/1.0?token="+secretOf("query"), "/v2/file.test/"+secretOf("path")+"%00/manifests/1?x="+secretOf("query"), "/nothing?token="+secretOf("query"))
	answered := 0
	for i, path := range paths {
		a := ask(t, p, "GET", path, "Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("carol:"+secretOf("client"))),
			"Cookie", "session="+secretOf("cookie"), "Referer", "https://x.test/?token="+secretOf("referer"))
		if a.status == 200 {
			answered++
			continue // an image's own bytes
		}
		tell(fmt.Sprintf("the answer to path %d", i), fmt.Sprint(a.header, string(a.body)))
	}
	if want := 3 * (len(names) - 1); answered < want {
		t.Errorf("%d requests were answered, want at least %d: the credentials are not used, and the test shows nothing", answered, want)
	}
	p.WaitIdle(t)
	for _, page := range []string{"/", "/metrics", "/readyz", "/healthz", "/debug/pprof/cmdline", "/debug/pprof/goroutine?debug=2", "/debug/pprof/heap?debug=1", "/api/v1/explain?reference=file.test/alice/app:1.0"} {
		res, err := p.AdminClient().Get(p.AdminURL() + page)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", page, res.Status)
		}
		tell(page, string(b))
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID()))
	if err != nil {
		t.Skipf("there is no /proc to find the configuration by: %v", err)
	}
	tell("the command line", string(cmdline))
	args := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
	run := func(what string, args ...string) {
		cmd := exec.Command(proxy.Binary(t), args...)
		cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + files}, env...)
		out, err := cmd.CombinedOutput()
		tell(what, fmt.Sprint(string(out), err))
	}
	run("config show", "config", "show", "--config", args[len(args)-1])
	run("config check", "config", "check", args[len(args)-1])
	if !strings.Contains(told.String(), "***") {
		t.Error("config show hides nothing: the test shows nothing")
	}
	for i, wrong := range []string{
		"upstreams: {docker.io: {credentials: {username: a, pasword: %s}}}",
		"upstreams: {docker.io: {credentials: {username: a, password: [%s]}}}",
		"upstreams: {docker.io: {credentials: {username: a, password: {x: %s}}}}",
		"upstreams: {docker.io: {credentials: {password: %s}}}",
		"upstreams: {docker.io: {credentials: {username: a, password: %s, password_file: /x}}}",
		"upstreams: {docker.io: {endpoints: ['https://a:%s@x.test']}}",
		"upstreams: {docker.io: {realms: ['https://a:%s@x.test']}}",
		"upstreams: {docker.io: {redirect_hosts: ['a:%s@x.test']}}",
		"upstreams:\n  docker.io:\n    credentials:\n      password: %s\n     username: a\n",
		"upstreams:\n  docker.io:\n    credentials:\n      password: \"%s\n",
	} {
		run("config check of "+strings.ReplaceAll(wrong, "%s", "a secret"), "config", "check", file(fmt.Sprint(i, ".yml"), fmt.Sprintf(wrong, secretOf("mistaken"))))
	}
	token, err := admin.ReadToken(p.AdminTokenFile())
	if err != nil {
		t.Fatal(err)
	}
	run("ls", "ls", "--config", args[len(args)-1])
	run("doctor", "doctor", "--config", args[len(args)-1])
	p.Stop(t)
	tell("the log", p.Log())

	for _, secret := range []string{"s3cr3t-", token.Secret, hubs["identity.test"].RefreshToken("alice"), base64.StdEncoding.EncodeToString([]byte("alice:" + secretOf("docker"))), "Bearer ey", "Signature="} {
		all := told.String()
		for at := strings.Index(all, secret); at >= 0; {
			page := all[strings.LastIndex(all[:at], "\n=== ")+1:]
			page, _, _ = strings.Cut(page, "\n")
			if !strings.Contains(page, secretOf("path")) && !strings.HasPrefix(all[at:], secretOf("path")) { // a name is no secret
				t.Errorf("%s: …%q…", page, all[max(0, at-150):min(len(all), at+60)])
			}
			next := strings.Index(all[at+1:], secret)
			if next < 0 {
				break
			}
			at += next + 1
		}
	}
}
