package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// TestAPlatformThatAnImageLacksIsMissing is about warm and rehearse of an image for
// linux/amd64 alone.
func TestAPlatformThatAnImageLacksIsMissing(t *testing.T) {
	t.Parallel()
	either(t, believing, func(t *testing.T, h *hub.Hub, p *proxy.Proxy, _ bool) {
		h.Push("library/app", "1", image.New(image.Options{Seed: 1}))
		for _, command := range []string{"warm", "rehearse"} {
			for _, both := range [][]string{{"--platform", "linux/amd64,linux/arm64"}, {"--platform", "linux/arm64", "--platform", "linux/amd64"}} {
				args := append([]string{command, "app:1"}, both...)
				operate(t, p, args...).want(t, 1, "partial: no linux/arm64", "--allow-missing accepts that")
				operate(t, p, append(args, "--allow-missing")...).want(t, 0, "partial: no linux/arm64")
				operate(t, p, append(args, "-o", "json")...).want(t, 1, `"missingPlatforms": [`, `"partial": 1`)
			}
			operate(t, p, command, "app:1", "--platform", "linux/amd64").want(t, 0)
			operate(t, p, command, "app:1", "--platform", "linux/arm64", "--allow-missing").want(t, 1, "there is no manifest for linux/arm64")
		}
	})
}

// TestExportLeavesOutPlatformsOfWhichOnlyTheManifestIsCached does what the error advises, until
// there is a bundle.
func TestExportLeavesOutPlatformsOfWhichOnlyTheManifestIsCached(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	small := image.Index(image.Options{Seed: 1})
	h.Push("library/small", "latest", small)
	get(t, p, "/v2/library/small/manifests/latest", "Accept", anything)
	get(t, p, "/v2/library/small/manifests/"+small.Platforms["linux/arm64"].String(), "Accept", anything)
	p.WaitIdle(t)
	file := filepath.Join(t.TempDir(), "bundle.tar")
	refused := operate(t, p, "export", "--bundle", file, "small")
	refused.want(t, 1, "entrepot warm --platform ", "linux/arm64", "docker.io/library/small:latest")
	_, advice, _ := strings.Cut(refused.err, "fetch them first: entrepot ")
	command, _, _ := strings.Cut(advice, "\n")
	operate(t, p, strings.Fields(command)...).want(t, 0)
	operate(t, p, "export", "--bundle", file, "small").want(t, 0, "linux/arm64")

	// Now a platform is complete: of the others only manifests are cached.
	get(t, p, "/v2/library/small/manifests/"+small.Platforms["linux/arm/v7"].String(), "Accept", anything)
	p.WaitIdle(t)
	second := filepath.Join(t.TempDir(), "bundle.tar")
	taken := operate(t, p, "export", "--bundle", second, "small")
	taken.want(t, 0, "left out of docker.io/library/small:latest: ", "linux/arm/v7", "entrepot warm --platform ")
	operate(t, p, "export", "-o", "json", "small").want(t, 0, `"partial": [`)
	operate(t, p, "export", "--bundle", second+"2", "--platform", "linux/arm/v7", "small").want(t, 1, "entrepot warm --platform linux/arm/v7 docker.io/library/small:latest")
}

// TestMissingListsWhatClientsDidNotGet is about a proxy behind a gap, and the next bundle.
func TestMissingListsWhatClientsDidNotGet(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	app, late := image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
	h.Push("library/app", "1", app)
	h.Push("library/late", "1", late)
	h.Push("library/by-digest", "1", late)
	pullRaw(t, p, "library/app", app)
	operate(t, p, "missing").want(t, 0, "0 images missing")
	h.Down()
	for _, path := range []string{"/v2/library/late/manifests/1", "/v2/library/late/manifests/1", "/v2/library/by-digest/manifests/" + late.Digest.String()} {
		if a := ask(t, p, "GET", path, "Accept", anything); a.status == 200 {
			t.Fatalf("%s was answered", path)
		}
	}
	names := "docker.io/library/late:1\ndocker.io/library/by-digest@" + late.Digest.String() + "\n"
	check := func() {
		t.Helper()
		if got := operate(t, p, "missing", "-o", "names"); got.code != 0 || got.out != names {
			t.Errorf("want %q, got %+v", names, got)
		}
	}
	check()
	operate(t, p, "missing").want(t, 0, "REFERENCE", "docker.io/library/late:1", "2 images missing")
	p.Stop(t)
	check() // from the directory
	p.Restart(t)
	check()
	if err := h.Up(); err != nil {
		t.Fatal(err)
	}
	operate(t, p, "warm", "--file", list(t, "list", names)).want(t, 0)
	operate(t, p, "missing").want(t, 0, "0 images missing")
	operate(t, p, "export", "--bundle", filepath.Join(t.TempDir(), "next.tar"), "--file", list(t, "list", names)).want(t, 0)
}

// TestANameMeansTheSameForEveryCommand: a repository, a registry and a pattern select the same
// cached images, whichever command is given them.
func TestANameMeansTheSameForEveryCommand(t *testing.T) {
	t.Parallel()
	h, p := start(t, believing)
	for _, name := range []string{"library/small", "library/other"} {
		for n, tag := range []string{"1", "2"} {
			h.Push(name, tag, image.New(image.Options{Seed: uint64(len(name) + n)}))
			operate(t, p, "warm", name+":"+tag).want(t, 0)
		}
	}
	small := []string{"docker.io/library/small:1", "docker.io/library/small:2"}
	all := append([]string{"docker.io/library/other:1", "docker.io/library/other:2"}, small...)
	for text, want := range map[string][]string{"small": small, "library/small": small, "docker.io/small": small, "small*": small, "docker.io": all, "library/*": all} {
		for _, command := range [][]string{
			{"ls"}, {"explain"}, {"pin"}, {"unpin"}, {"purge", "--dry-run"}, {"export", "--output", "json", "--bundle", filepath.Join(t.TempDir(), "bundle.tar")},
		} {
			got := operate(t, p, append(command, text)...)
			got.want(t, 0, want...)
			if len(want) == len(small) && strings.Contains(got.out, "library/other") {
				t.Errorf("%s %s takes others: %s", command[0], text, got.out)
			}
		}
	}
}

// TestRemediesWork runs what an error advises, and sees the error gone.
func TestRemediesWork(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "bundle.tar")
	for name, c := range map[string]struct {
		// before is done first, and fails is the command whose error advises something.
		before [][]string
		fails  []string
		// mark stands before the advised command.
		mark string
	}{
		"pin":    {nil, []string{"pin", "app:1"}, "with `entrepot "},
		"purge":  {[][]string{{"warm", "app:1"}, {"pin", "app:1"}}, []string{"purge", "app:1"}, "unpin it with `entrepot "},
		"export": {[][]string{{"warm", "--platform", "linux/arm64", "app:1"}}, []string{"export", "--bundle", file, "--platform", "linux/amd64", "app:1"}, "fetch them first: entrepot "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, p := start(t, believing)
			h.Push("library/app", "1", image.Index(image.Options{Seed: 1}))
			for _, args := range c.before {
				operate(t, p, args...).want(t, 0)
			}
			failed := operate(t, p, c.fails...)
			failed.want(t, 1)
			_, advice, found := strings.Cut(failed.err, c.mark)
			if !found {
				t.Fatalf("want advice behind %q in %s", c.mark, failed.err)
			}
			command := strings.Fields(advice[:strings.IndexAny(advice+"\n", "`\n")])
			operate(t, p, command...).want(t, 0)
			operate(t, p, c.fails...).want(t, 0)
		})
	}
	t.Run("allow missing", func(t *testing.T) {
		t.Parallel()
		h, p := start(t, believing)
		h.Push("library/app", "1", image.New(image.Options{Seed: 1}))
		args := []string{"warm", "--platform", "linux/amd64,linux/arm64", "app:1"}
		operate(t, p, args...).want(t, 1, "--allow-missing")
		operate(t, p, append(args, "--allow-missing")...).want(t, 0)
	})
}

// TestAnExportOfNothingWritesNoBundle has a cache with nothing in it, and one of which no image is
// complete.
func TestAnExportOfNothingWritesNoBundle(t *testing.T) {
	t.Parallel()
	either(t, believing, func(t *testing.T, h *hub.Hub, p *proxy.Proxy, running bool) {
		file := filepath.Join(t.TempDir(), "bundle.tar")
		refused := func() {
			t.Helper()
			for _, args := range [][]string{{"--bundle", file}, {"--bundle", file, "--volume-size", "1MiB"}, {"--bundle", file, "--since", "1d"}, {"-o", "json"}} {
				got := operate(t, p, append([]string{"export", "--all"}, args...)...)
				got.want(t, 1, "no bundle written", "entrepot warm")
				if got.out != "" {
					t.Errorf("export --all %s prints %s", args, got.out)
				}
			}
			if names, err := filepath.Glob(file + "*"); err != nil || len(names) > 0 {
				t.Errorf("there are %s, %v", names, err)
			}
		}
		refused()
		if !running {
			return
		}
		h.Push("library/app", "1.0", image.New(image.Options{Seed: 1}))
		get(t, p, tagPath) // its manifest alone
		p.WaitIdle(t)
		if got := operate(t, p, "export", "--all", "--bundle", file); got.code != 1 || !strings.Contains(got.err, "left out: docker.io/library/app:1.0") {
			t.Errorf("an image of which only the manifest is cached: %+v", got)
		}
		refused()
		operate(t, p, "warm", "app:1.0").want(t, 0)
		operate(t, p, "export", "--all", "--bundle", file).want(t, 0, "docker.io/library/app:1.0")
	})
}
