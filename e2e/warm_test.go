package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// warmed is what warm prints as JSON.
type warmed struct {
	DryRun                                bool
	Failed                                int
	BytesFetched, BytesHere, BytesToFetch int64
	Pulls                                 []struct {
		Upstream string
		Pulls    int
	}
	Images []struct {
		Reference, Digest, Note, Error        string
		Platforms                             []string
		Layers, Referrers, Pulls              int
		BytesFetched, BytesHere, BytesToFetch int64
	}
}

// json reads what was printed.
func (s said) json(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(s.out), v); err != nil {
		t.Fatalf("%v in\n%s%s", err, s.out, s.err)
	}
}

// either does f with a proxy that runs, and with one that is stopped.
func either(t *testing.T, config string, f func(t *testing.T, h *hub.Hub, p *proxy.Proxy, running bool)) {
	for name, running := range map[string]bool{"running": true, "stopped": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, p := start(t, config)
			if !running {
				p.Stop(t)
			}
			f(t, h, p, running)
		})
	}
}

// list writes a file of the test and gives its path.
func list(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWarmedImagesAreServedWithoutTheUpstream(t *testing.T) {
	t.Parallel()
	either(t, believing, func(t *testing.T, h *hub.Hub, p *proxy.Proxy, running bool) {
		app, db, tool := image.Index(image.Options{Seed: 1}), image.New(image.Options{Seed: 2}), image.New(image.Options{Seed: 3})
		h.Push("library/app", "1.0", app)
		h.Push("org/db", "2", db)
		h.Push("org/tool", "3", tool)
		signature := image.Signature(4, app.Descriptor(), "docker.io/library/app")
		h.Push("library/app", image.SignatureTag(app.Digest), signature)
		subject := app.Descriptor()
		sbom := image.Artifact(5, "application/x.sbom", 50<<10, &subject)
		h.Push("library/app", "", sbom)
		compose := list(t, "compose.yaml", "services:\n  web: {image: 'app:${V:-1.0}'}\n  db: {image: org/db:2}\n  unset: {image: 'x:${NONE}'}\n")
		dockerfile := list(t, "Dockerfile", "FROM scratch\nCOPY --from=org/tool:3 /a /b\n")
		args := []string{"warm", "--file", compose, "-f", dockerfile, "--platform", "linux/amd64,linux/arm64", "--with-referrers"}

		var dry, done, again warmed
		out := operate(t, p, append(args, "--dry-run", "-o", "json")...)
		out.want(t, 1, "compose.yaml:4: the variable NONE is not set", "1 of 4 images")
		out.json(t, &dry)
		if h.Counts().CDNBytes != 0 || dry.BytesToFetch == 0 || !dry.DryRun {
			t.Errorf("a dry run fetched %d bytes, and says %+v", h.Counts().CDNBytes, dry)
		}
		pulls := h.Counts().ManifestGets
		out = operate(t, p, append(args, "--output", "json")...)
		out.want(t, 1)
		out.json(t, &done)
		if got := h.Counts(); got.ManifestGets != pulls || got.CDNBytes != dry.BytesToFetch || done.BytesFetched != dry.BytesToFetch {
			t.Errorf("the run asked for %d manifests more, and fetched %d bytes; the dry run said %d", got.ManifestGets-pulls, got.CDNBytes, dry.BytesToFetch)
		}
		if i := done.Images[0]; i.Reference != "docker.io/library/app:1.0" || i.Digest != app.Digest.String() || i.Error != "" || i.Referrers != 2 || len(i.Platforms) != 2 || i.Layers != 2 {
			t.Errorf("got %+v", i)
		}
		before := h.Counts()
		table := operate(t, p, args...)
		table.want(t, 1, "IMAGE", "docker.io/org/tool:3: there is no manifest for linux/arm64", "linux/amd64,linux/arm64", "4 images, 1 failed; 0B fetched", "x:${NONE} failed: ")
		operate(t, p, append(args, "-o", "json")...).json(t, &again)
		if again.BytesFetched != 0 || again.BytesHere != dry.BytesToFetch+dry.BytesFetched || len(again.Pulls) != 0 || h.Counts().CDNBytes != before.CDNBytes {
			t.Errorf("what is here costs %+v", again)
		}

		h.Down()
		if !running {
			p.Restart(t)
		}
		pullRaw(t, p, "org/db", db)
		pullRaw(t, p, "org/tool", tool)
		pullRaw(t, p, "library/app", signature)
		pullRaw(t, p, "library/app", sbom)
		for _, platform := range []string{"linux/amd64", "linux/arm64"} {
			get(t, p, "/v2/library/app/manifests/"+app.Platforms[platform].String(), "Accept", anything)
			for _, l := range app.Layers(platform) {
				get(t, p, "/v2/library/app/blobs/"+l.Digest.String(), "Accept", anything)
			}
		}
		for _, ref := range []string{"manifests/1.0", "manifests/" + image.SignatureTag(app.Digest), "referrers/" + app.Digest.String()} {
			get(t, p, "/v2/library/app/"+ref, "Accept", anything)
		}
	})
}

func TestWarmTellsWhatItCanNotDo(t *testing.T) {
	t.Parallel()
	either(t, believing, func(t *testing.T, h *hub.Hub, p *proxy.Proxy, _ bool) {
		h.Push("library/app", "1.0", image.Index(image.Options{Seed: 1}))
		operate(t, p, "warm", "app:1.0", "ghost:1", "quay.example.test/x:1").want(t, 1,
			"docker.io/library/ghost:1 failed: docker.io/library/ghost:1 was not found at upstream docker.io",
			"quay.example.test/x:1 failed: registry", "is not configured here", "3 images, 2 failed", "entrepot: 2 of 3 images")
		operate(t, p, "warm", "app:1.0", "--platform", "linux/s390x").want(t, 1, "docker.io/library/app:1.0 failed: there is no manifest for linux/s390x")
		operate(t, p, "warm").want(t, 2, "name images")
		operate(t, p, "warm", "No Such Name").want(t, 2, "is no reference of an image")
		operate(t, p, "warm", "app", "--platform", "amd64").want(t, 2, `--platform: "amd64" is no platform`)
		operate(t, p, "warm", "app", "--jobs", "0").want(t, 2, "--jobs: 0 is not between")
		operate(t, p, "warm", "app", "--format", "csv").want(t, 2, "--format")
		operate(t, p, "warm", "--file", "/none").want(t, 1, "--file: open /none")
		operate(t, p, "warm", "--file", list(t, "broken.yaml", "a: [\n")).want(t, 1, "broken.yaml: it is no valid YAML")
		operate(t, p, "warm", "--file", list(t, "image.tar", "x\x00")).want(t, 1, "binary file")
		h.Down()
		operate(t, p, "warm", "org/new:1").want(t, 1, "docker.io/org/new:1 failed: ")
	})
}

func TestWarmStopsAtTheReserveOfTheQuota(t *testing.T) {
	t.Parallel()
	either(t, `upstreams: {docker.io: {quota_reserve: 10, tags: [{match: "*", ttl: 1h}]}}`, func(t *testing.T, h *hub.Hub, p *proxy.Proxy, _ bool) {
		var refs []string
		for seed := range uint64(5) {
			i := image.New(image.Options{Seed: 1 + seed})
			tag := string(rune('a' + seed))
			h.Push("library/app", tag, i)
			refs = append(refs, "app:"+tag)
		}
		h.LimitPulls(100, 13, 21600)
		operate(t, p, append([]string{"warm", "--jobs", "2"}, refs...)...).want(t, 1,
			"5 images, 2 failed", "grants 10 more pulls, which are kept", "quota_reserve", "it grants more at 20")
		if left := h.PullsLeft(); left != 10 {
			t.Errorf("%d pulls are left, want the 10 that are kept", left)
		}
		h.LimitPulls(100, 100, 21600)
		operate(t, p, append([]string{"warm"}, refs...)...).want(t, 0, "5 images, 0 failed")
		if left := h.PullsLeft(); left != 98 {
			t.Errorf("%d pulls are left, want 98: what is here costs none", left)
		}
	})
}

func TestWarmThatIsInterruptedIsResumed(t *testing.T) {
	t.Parallel()
	either(t, believing, func(t *testing.T, h *hub.Hub, p *proxy.Proxy, running bool) {
		const size = 24 << 20
		i := image.New(image.Options{Seed: 1, Layers: []image.Layer{{Size: size, Compression: image.None}}})
		h.Push("library/app", "1.0", i)
		layer := i.Layers("")[0].Digest
		free := make(chan struct{})
		undo := h.Inject(hub.StallAfter(4<<20, free).On(layer)) // of each answer

		cmd := exec.CommandContext(t.Context(), proxy.Binary(t), "warm", "app:1.0", "--config", p.Config())
		if !running {
			cmd.Env = append(os.Environ(), "ENTREPOT_ADMIN_LISTEN=off") // its ports may be another test's by now
		}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		proxy.Until(t, "a part of the layer to be sent", func() bool { return h.Sent(layer) >= 4<<20 })
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		err := cmd.Wait()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 130 || !strings.Contains(out.String(), "interrupted: what was done until now is kept") {
			t.Errorf("want exit code 130, got %v:\n%s", err, out.String())
		}
		undo()
		close(free)
		var done warmed
		again := operate(t, p, "warm", "app:1.0", "--output", "json")
		again.want(t, 0)
		again.json(t, &done)
		if got := h.Sent(layer); got > size+12<<20 { // what was on its way is sent again
			t.Errorf("%d bytes of the layer were sent, and it has %d", got, size)
		}
		if !running && (done.BytesHere == 0 || done.BytesFetched == 0) {
			t.Errorf("want a part of it fetched before: %+v", done)
		}
	})
}

func TestWarmTellsHowFarItHasCome(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	i := image.New(image.Options{Seed: 1, Layers: []image.Layer{{Size: 8 << 20, Compression: image.None}}})
	h.Push("library/app", "1.0", i)
	free := make(chan struct{})
	h.Inject(hub.StallAfter(4<<20, free).On(i.Layers("")[0].Digest))
	cmd := exec.CommandContext(t.Context(), proxy.Binary(t), "warm", "--file", "-", "--config", p.Config())
	cmd.Stdin = strings.NewReader("app:1.0 # ours\n")
	var out bytes.Buffer
	cmd.Stdout = &out
	progress := &watched{want: "MiB of 8", said: make(chan struct{})}
	cmd.Stderr = progress
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-progress.said:
	case <-time.After(time.Minute):
		t.Error("nothing was told within a minute")
	}
	close(free)
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s%s", err, out.String(), progress.text.String())
	}
	if line := progress.text.String(); !strings.HasPrefix(line, "warm: 0 of 1 images") || !strings.Contains(line, "at docker.io/library/app:1.0\n") {
		t.Errorf("got %q", line)
	}
	if !strings.Contains(out.String(), "1 image, 0 failed") {
		t.Errorf("got\n%s", out.String())
	}
}

// watched closes said when what is wanted has been written to it. It is for one writer.
type watched struct {
	want string
	text bytes.Buffer
	said chan struct{}
	once sync.Once
}

func (w *watched) Write(b []byte) (int, error) {
	w.text.Write(b)
	if strings.Contains(w.text.String(), w.want) {
		w.once.Do(func() { close(w.said) })
	}
	return len(b), nil
}

func TestWhatWasPulledIsWarmedInAnotherCache(t *testing.T) {
	t.Parallel()
	either(t, believing, func(t *testing.T, h *hub.Hub, p *proxy.Proxy, running bool) {
		app, db, old := image.Index(image.Options{Seed: 1}), image.New(image.Options{Seed: 2}), image.New(image.Options{Seed: 3})
		h.Push("library/app", "1.0", app)
		h.Push("org/db", "2", db)
		h.Push("org/old", "3", old)
		if !running {
			p.Restart(t)
		}
		// By tag and then the platform's own, by digest alone, and a look that is no pull.
		get(t, p, "/v2/library/app/manifests/1.0", "Accept", anything)
		get(t, p, "/v2/library/app/manifests/"+app.Platforms["linux/arm64"].String(), "Accept", anything)
		get(t, p, "/v2/org/db/manifests/"+db.Digest.String(), "Accept", anything)
		ask(t, p, "HEAD", "/v2/org/old/manifests/3")
		if !running {
			p.Stop(t)
		}
		var asked warmed
		operate(t, p, "warm", "--from-log", "--last", "1d", "-o", "json").json(t, &asked)
		var names []string
		for _, i := range asked.Images {
			names = append(names, i.Reference+" "+strings.Join(i.Platforms, ","))
			if i.Error != "" {
				t.Errorf("%s: %s", i.Reference, i.Error)
			}
		}
		want := "docker.io/library/app:1.0 linux/arm64 docker.io/org/db@" + db.Digest.String() + " linux/amd64"
		if got := strings.Join(names, " "); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		for _, l := range app.Layers("linux/arm64") {
			if h.Sent(l.Digest) != l.Size {
				t.Errorf("%d bytes of a layer were fetched, want %d", h.Sent(l.Digest), l.Size)
			}
		}
		for _, l := range app.Layers("linux/amd64") {
			if h.Sent(l.Digest) != 0 {
				t.Error("a platform that nobody pulled was fetched")
			}
		}
		operate(t, p, "warm", "--from-log", "--last", "2099-01-01").want(t, 0, "0 images, 0 failed")
		operate(t, p, "warm", "--from-log", "--last", "soon").want(t, 2, "--last", "is no time")
		operate(t, p, "warm", "app:1.0", "--last", "7d").want(t, 2, "--last goes with --from-log")
	})
}
