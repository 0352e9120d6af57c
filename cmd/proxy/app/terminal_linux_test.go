package app

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

// screenOf is what a command printed on a terminal.
type screenOf struct {
	code int
	text string
}

// runAtTerminal runs the command with a terminal of 80 columns as its stdin, stdout and
// stderr. Whenever it prints a question, it types answer.
func runAtTerminal(t *testing.T, environ []string, answer string, args ...string) screenOf {
	t.Helper()
	master, slave := openTerminal(t)
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 80}); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var text strings.Builder
	asked := 0
	go func() { // it ends when the terminal is closed
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			if err != nil {
				return
			}
			mu.Lock()
			text.Write(b[:n])
			questions := strings.Count(text.String(), "[y/N] ")
			mu.Unlock()
			for ; asked < questions; asked++ {
				_, _ = master.WriteString(answer + "\n")
			}
		}
	}()
	p := process{
		args: args, environ: environ, stdin: slave, stdout: slave, stderr: slave,
		signals: func() (<-chan os.Signal, func()) { return nil, func() {} },
	}
	code := p.run()
	// All of it has come once this has.
	const end = "\x00end of the command\x00"
	_, _ = slave.WriteString(end)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		mu.Lock()
		all, found := strings.CutSuffix(text.String(), end)
		mu.Unlock()
		if found {
			_ = slave.Close()
			_ = master.Close()
			return screenOf{code, strings.ReplaceAll(all, "\r\n", "\n")}
		}
		if time.Now().After(deadline) {
			t.Fatalf("entrepot %s: the terminal shows %q", strings.Join(args, " "), all)
		}
	}
}

func TestPurgeSaysWhatWillGoAndAsksOnATerminal(t *testing.T) {
	dir := t.TempDir()
	environ := []string{"ENTREPOT_ADMIN_LISTEN=off", "ENTREPOT_CACHE_DIR=" + filepath.Join(dir, "cache")}
	for _, name := range []string{"docker.io/library/app:1", "docker.io/library/app:2", "docker.io/org/tool:1"} {
		if got := runCommand(environ, "import", layoutArchive(t, name)); got.code != exitOK {
			t.Fatalf("import: %+v", got)
		}
	}
	images := func(want string) {
		t.Helper()
		if got := runCommand(environ, "ls"); !strings.Contains(got.stdout, want+", ") {
			t.Errorf("want %s, got %s", want, got.stdout)
		}
	}
	said := runAtTerminal(t, environ, "n", "purge", "--upstream", "docker.io")
	if said.code != exitFailed || !strings.Contains(said.text, "would be purged: docker.io/library/app") || !strings.Contains(said.text, "? [y/N]") ||
		!strings.Contains(said.text, "9 blobs of ") || !strings.Contains(said.text, "3 tags") || !strings.Contains(said.text, "nothing was changed") {
		t.Errorf("purge, declined: %+v", said)
	}
	images("3 images")
	if said := runAtTerminal(t, environ, "y", "purge", "app:1"); said.code != exitOK || !strings.Contains(said.text, "(1 image, 1 tag)") {
		t.Errorf("purge, agreed: %+v", said)
	}
	images("2 images")
	if said := runAtTerminal(t, environ, "n", "purge", "--yes", "app:2"); said.code != exitOK || strings.Contains(said.text, "[y/N]") {
		t.Errorf("purge --yes: %+v", said)
	}
	images("1 image")
	if said := runAtTerminal(t, environ, "n", "purge", "--dry-run", "docker.io"); said.code != exitOK || strings.Contains(said.text, "[y/N]") {
		t.Errorf("purge --dry-run: %+v", said)
	}
	if got := runCommand(environ, "purge", "org/*"); got.code != exitOK || !strings.Contains(got.stdout, "purged: docker.io/org/tool:1") || strings.Contains(got.stdout, "forgotten") {
		t.Errorf("purge without a terminal: %+v", got)
	}
	images("0 images")
}

func TestAnImportMovesNoTagSilently(t *testing.T) {
	dir := t.TempDir()
	environ := []string{"ENTREPOT_ADMIN_LISTEN=off", "ENTREPOT_CACHE_DIR=" + filepath.Join(dir, "cache")}
	old, next := image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
	archive := func(i *image.Image) string {
		names, files := layoutFiles(t, i, "docker.io/library/app:1")
		path := filepath.Join(t.TempDir(), "layout.tar")
		if err := os.WriteFile(path, tarOf(t, names, files), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	stands := func(want *image.Image) {
		t.Helper()
		if got := runCommand(environ, "explain", "app:1"); !strings.Contains(got.stdout, want.Digest.String()) {
			t.Errorf("app:1 does not stand for %s: %+v", want.Digest, got)
		}
	}
	first := archive(old)
	for range 2 { // the second time it is the same
		if got := runCommand(environ, "import", first); got.code != exitOK {
			t.Fatalf("import: %+v", got)
		}
	}
	second := archive(next)
	got := runCommand(environ, "import", second)
	if got.code != exitFailed || !strings.Contains(got.stderr, "1 tag not moved: docker.io/library/app:1; to move them, import again with --replace") ||
		!strings.Contains(got.stdout, old.Digest.String()) {
		t.Errorf("import of a tag that stands for something else: %+v", got)
	}
	stands(old)
	if got := runCommand(environ, "explain", "app@"+next.Digest.String()); !strings.Contains(got.stdout, ": hit") {
		t.Errorf("the content is not there: %+v", got)
	}
	if said := runAtTerminal(t, environ, "n", "import", second); said.code != exitFailed || !strings.Contains(said.text, "app:1 stands for "+short(old.Digest)) {
		t.Errorf("import, declined: %+v", said)
	}
	stands(old)
	if said := runAtTerminal(t, environ, "y", "import", second); said.code != exitOK || !strings.Contains(said.text, "app:1: moved from") {
		t.Errorf("import, agreed: %+v", said)
	}
	stands(next)
	if got := runCommand(environ, "import", "--replace", archive(image.New(image.Options{Seed: 3}))); got.code != exitOK || !strings.Contains(got.stdout, "moved from "+next.Digest.String()) {
		t.Errorf("import --replace: %+v", got)
	}
}

func TestTablesFitATerminalAndAPipeGetsAll(t *testing.T) {
	dir := t.TempDir()
	environ := []string{"ENTREPOT_ADMIN_LISTEN=off", "ENTREPOT_CACHE_DIR=" + filepath.Join(dir, "cache")}
	long := "docker.io/a-rather-long-organisation/with-a-rather-long-repository/of-an-application:2026.12.01-build.4711"
	names, files := layoutFiles(t, image.Index(image.Options{Seed: 1}), long)
	path := filepath.Join(dir, "layout.tar")
	if err := os.WriteFile(path, tarOf(t, names, files), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, archive := range []string{path, layoutArchive(t, "docker.io/library/app:1")} {
		if got := runCommand(environ, "import", archive); got.code != exitOK {
			t.Fatalf("import: %+v", got)
		}
	}
	// A repository whose tag is gone has an image that is shown by its digest.
	if got := runCommand(environ, "import", "--replace", "--name", "app:1", layoutArchive(t, "docker.io/library/app:2")); got.code != exitOK {
		t.Fatalf("import: %+v", got)
	}
	for _, args := range []string{"ls", "stats", "rehearse --offline app:1 " + long, "inspect --cached " + long, "explain " + long, "history " + long, "warm --dry-run app:1"} {
		said := runAtTerminal(t, environ, "n", strings.Fields(args)...)
		for line := range strings.Lines(said.text) {
			line = strings.TrimRight(line, "\n")
			// The terminal itself wraps a reference that is longer, so that it is copied in one piece.
			if n := len([]rune(line)); n > 80 && !strings.Contains(line, "\x1b") && strings.Contains(strings.TrimSpace(line), " ") {
				t.Errorf("entrepot %s: a line of %d columns: %q", args, n, line)
			}
		}
		piped := runCommand(environ, strings.Fields(args)...)
		if piped.code != said.code {
			t.Errorf("entrepot %s: exits with %d on a terminal, with %d into a pipe", args, said.code, piped.code)
		}
		if strings.Contains(args, long) && !strings.Contains(piped.stdout, long) {
			t.Errorf("entrepot %s: want the reference on one line in a pipe:\n%s", args, piped.stdout)
		}
	}
	ls := runCommand(environ, "ls").stdout
	if !strings.Contains(ls, "docker.io/library/app@sha256:") {
		t.Errorf("an image without a tag is not shown by its digest:\n%s", ls)
	}
}

// TestWhatPeopleCopyIsNotBroken runs the commands on a terminal of 80 columns, and wants every
// reference, digest and time in one piece; into a pipe all digests are whole.
func TestWhatPeopleCopyIsNotBroken(t *testing.T) {
	dir := t.TempDir()
	environ := []string{"ENTREPOT_ADMIN_LISTEN=off", "ENTREPOT_CACHE_OFFLINE=true", "ENTREPOT_CACHE_DIR=" + filepath.Join(dir, "cache")}
	names := []string{"docker.io/library/app:1", "registry.k8s.io/ingress-nginx/controller:v1.11.2-alpine3.20", "ghcr.io/an-organisation/with-a-rather-long-repository/of-an-application:2026.12.01-build.4711"}
	for seed, name := range names {
		for _, seed := range []uint64{uint64(2*seed + 1), uint64(2*seed + 2)} { // it moves
			entries, files := layoutFiles(t, image.Index(image.Options{Seed: seed}), name)
			path := filepath.Join(dir, "layout.tar")
			if err := os.WriteFile(path, tarOf(t, entries, files), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := runCommand(environ, "import", "--replace", path); got.code != exitOK {
				t.Fatalf("import: %+v", got)
			}
		}
	}
	untagged := 0
	digests := regexp.MustCompile(`sha256:[0-9a-f]*`)
	wholeTime := regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`)
	partTime := regexp.MustCompile(`\d{4}-\d\d-|T\d\d:|\d\d:\d\d|\d\dZ`)
	for _, args := range []string{"ls", "diff", "history", "stats", "explain", "inspect --cached", "rehearse --offline", "export --dry-run", "warm --dry-run"} {
		lists := [][]string{names}
		if args == "history" || args == "inspect --cached" { // of one at a time
			lists = [][]string{names[:1], names[1:2], names[2:]}
		}
		for _, list := range lists {
			line := strings.Fields(args)
			if !slices.Contains([]string{"ls", "diff", "stats"}, args) {
				line = append(line, list...)
			}
			if args == "export --dry-run" {
				line = []string{"export", "--all", "--bundle", filepath.Join(dir, "bundle.tar")}
			}
			said := runAtTerminal(t, environ, "n", line...)
			lines := strings.FieldsFunc(said.text, func(r rune) bool { return r == '\n' || r == '\r' })
			for _, name := range list {
				if !slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, name) }) {
					t.Errorf("entrepot %s: %s is broken:\n%s", args, name, said.text)
				}
			}
			for _, l := range lines {
				if n := len([]rune(l)); n > 80 && !strings.Contains(l, "\x1b") && strings.Contains(strings.TrimSpace(l), " ") {
					t.Errorf("entrepot %s: a line of %d columns: %q", args, n, l)
				}
				for _, d := range digests.FindAllString(l, -1) {
					if n := len(d) - len("sha256:"); n != 12 && n != 64 {
						t.Errorf("entrepot %s: a digest is broken: %q", args, l)
					}
				}
				if partTime.MatchString(wholeTime.ReplaceAllString(digests.ReplaceAllString(l, ""), "")) {
					t.Errorf("entrepot %s: a time is broken: %q", args, l)
				}
			}
			if args == "ls" { // what it shows of an image without a tag can be given to commands
				for _, ref := range regexp.MustCompile(`(?m)^\S+@sha256:[0-9a-f]{12}$`).FindAllString(strings.Join(lines, "\n"), -1) {
					untagged++
					for _, args := range [][]string{{"explain"}, {"inspect", "--cached"}, {"ls"}, {"pin"}, {"unpin"}, {"rehearse", "--offline"}} {
						if got := runCommand(environ, append(args, ref)...); got.code != exitOK || !strings.Contains(got.stdout, ref) {
							t.Errorf("entrepot %s %s: %+v", args, ref, got)
						}
					}
				}
			}
			piped := runCommand(environ, line...)
			for _, d := range digests.FindAllString(piped.stdout, -1) {
				if len(d) != len("sha256:")+64 && args != "inspect --cached" { // the heading of a config
					t.Errorf("entrepot %s: a short digest in a pipe: %s\n%s", args, d, piped.stdout)
				}
			}
			for _, l := range strings.Split(strings.TrimSpace(piped.stdout), "\n") {
				if strings.HasPrefix(l, " ") && (args == "ls" || args == "diff" || args == "history") {
					t.Errorf("entrepot %s: a row on two lines in a pipe: %q", args, l)
				}
			}
		}
	}
	if untagged != len(names) {
		t.Errorf("want %d images without a tag in ls, got %d", len(names), untagged)
	}
}

// TestDoctorFitsATerminal has sentences that are longer than its width.
func TestDoctorFitsATerminal(t *testing.T) {
	dir := t.TempDir()
	environ := []string{"ENTREPOT_CACHE_OFFLINE=true", "ENTREPOT_ADMIN_LISTEN=127.0.0.1:1", "ENTREPOT_LISTEN=127.0.0.1:1", "ENTREPOT_CACHE_DIR=" + filepath.Join(dir, "cache")}
	said := runAtTerminal(t, environ, "n", "doctor")
	for line := range strings.Lines(said.text) {
		line = strings.TrimRight(line, "\n")
		if n := len([]rune(line)); n > 80 {
			t.Errorf("a line of %d columns: %q", n, line)
		}
	}
	_, more, _ := strings.Cut(said.text, "start Entrepot")
	_, next, _ := strings.Cut(more, "\n")
	if !strings.HasPrefix(next, strings.Repeat(" ", 20)) {
		t.Errorf("want the second line of an advice below the first:\n%s", said.text)
	}
	piped := runCommand(environ, "doctor")
	if !strings.Contains(piped.stdout, "start Entrepot (entrepot serve), or see that listen and the address of the clients agree\n") || piped.code != said.code {
		t.Errorf("want a sentence on one line in a pipe: %+v", piped)
	}
}

func TestTextIsWrappedWhereItCanBeRead(t *testing.T) {
	for _, c := range []struct {
		text  string
		width int
		want  []string
	}{
		{"short", 10, []string{"short"}},
		{"one two three", 8, []string{"one two", "three"}},
		{"docker.io/library/nginx", 10, []string{"docker.io/library/nginx"}},
		{"at docker.io/library/nginx now", 10, []string{"at", "docker.io/library/nginx", "now"}},
		{"linux/amd64,linux/arm64", 15, []string{"linux/amd64,", "linux/arm64"}},
		{"linux/amd64,linux/arm64", 5, []string{"linux/amd64,", "linux/arm64"}},
		{"application/vnd.oci.image.layer.v1.tar+gzip", 20, []string{"application/vnd.oci.", "image.layer.v1.tar+", "gzip"}},
		{"  abcdefghijkl", 5, []string{"  abcdefghijkl"}},
		{"abcdefghijkl  ", 5, []string{"abcdefghijkl"}},
		{"  indented text", 10, []string{"  indented", "text"}},
	} {
		if got := wrap(c.text, c.width, 0); strings.Join(got, "|") != strings.Join(c.want, "|") {
			t.Errorf("%q in %d columns: got %q, want %q", c.text, c.width, got, c.want)
		}
	}
}
