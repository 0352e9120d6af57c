package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/crane"
	gcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// said is what a command has printed, and its exit code.
type said struct {
	out, err string
	code     int
}

// operate runs one of the program's commands with a proxy's configuration, on what
// runs or else on its directory.
func operate(t *testing.T, p *proxy.Proxy, args ...string) said {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, proxy.Binary(t), append(args, "--config", p.Config())...)
	if p.PID() == 0 {
		// Its ports may be another test's by now.
		cmd.Env = append(os.Environ(), "ENTREPOT_ADMIN_LISTEN=off")
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return said{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// want checks the exit code and what was printed, to either.
func (s said) want(t *testing.T, code int, parts ...string) {
	t.Helper()
	if s.code != code {
		t.Errorf("exit code %d, want %d:\n%s%s", s.code, code, s.out, s.err)
	}
	for _, part := range parts {
		if !strings.Contains(s.out+s.err, part) {
			t.Errorf("want %q in:\n%s%s", part, s.out, s.err)
		}
	}
}

func TestTheLedgerTellsOfTagsThatMoved(t *testing.T) {
	t.Parallel()
	h, p := start(t, doubting)
	first, second := image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
	h.Push("library/app", "1.0", first)
	h.Push("library/steady", "1.0", second)
	for range 3 {
		get(t, p, tagPath)
		get(t, p, "/v2/library/steady/manifests/1.0")
	}
	pullRaw(t, p, "library/app", first)
	p.WaitIdle(t)
	h.Push("library/app", "1.0", second)
	if a := ask(t, p, "HEAD", tagPath); a.header.Get("Docker-Content-Digest") != second.Digest.String() {
		t.Fatalf("HEAD after the move: %s", a)
	}
	p.Kill(t) // what was answered has been kept
	p.Restart(t)
	h.Untag("library/app", "1.0")
	ask(t, p, "GET", tagPath).wantError(t, 404, "MANIFEST_UNKNOWN")
	if n := p.Metrics(t).Sum("entrepot_tag_moves_total", "upstream", "docker.io"); n != 0 {
		t.Errorf("%g moves are counted since the restart, want none: what is deleted has not moved", n)
	}
	before := h.Counts()
	from, to := first.Digest.String(), second.Digest.String()
	check := func() (all []string) {
		t.Helper()
		list := operate(t, p, "history", "app:1.0")
		list.want(t, 0, "docker.io/library/app:1.0\n", "FIRST SEEN", "get           complete  "+from, "revalidation  ", to, "(no such tag)")
		if n := strings.Count(list.out, "\n"); n != 5 {
			t.Errorf("want a line for each of 3 observations:\n%s", list.out)
		}
		asJSON := operate(t, p, "history", "docker.io/library/app:1.0", "--output", "json")
		var doc struct {
			Reference    string
			Observations []struct {
				Digest, How, Kept string
				First, Last       time.Time
			}
		}
		if err := json.Unmarshal([]byte(asJSON.out), &doc); err != nil || len(doc.Observations) != 3 || doc.Observations[0].Digest != from || doc.Observations[0].Kept != "whole" ||
			doc.Observations[0].Last.Before(doc.Observations[0].First) || !doc.Observations[1].First.After(doc.Observations[0].Last) {
			t.Errorf("json: %v\n%s", err, asJSON.out)
		}
		moves := operate(t, p, "diff", "--since", "1d", "--upstream", "docker*", "--repository", "library/*")
		moves.want(t, 0, "SEEN", "docker.io/library/app:1.0", from[:19], to[:19], "(none)")
		if strings.Contains(moves.out, "steady") {
			t.Errorf("what has not moved is in it:\n%s", moves.out)
		}
		operate(t, p, "diff", "--since", "2020-01-01", "-o", "json").want(t, 0, `"from": "`+from, `"to": "`+to)
		operate(t, p, "diff", "--since", "2020-01-01T00:00:00Z", "--repository", "none/*").want(t, 0, "no tag was seen to move since 2020-01-01T00:00:00Z")
		operate(t, p, "diff", "--since", "2099-01-01").want(t, 0, "no tag was seen to move")

		operate(t, p, "history", "nothing:1.0").want(t, 1, "nothing is known of docker.io/library/nothing:1.0")
		operate(t, p, "history", "app").want(t, 1, "nothing is known of docker.io/library/app:latest", "known tags of docker.io/library/app: 1.0\n")
		operate(t, p, "history", "No Such Name").want(t, 2, "is no reference")
		operate(t, p, "history", "app@"+from).want(t, 2, "name a tag")
		operate(t, p, "history", "quay.example.test/app:1").want(t, 1, "not configured")
		operate(t, p, "history").want(t, 2, "arg")
		operate(t, p, "history", "app", "app").want(t, 2, "arg")
		operate(t, p, "history", "app:1.0", "--output", "xml").want(t, 2, "xml")
		operate(t, p, "diff", "--since", "yesterday").want(t, 2, "--since", "2026-11-01")
		operate(t, p, "diff", "app").want(t, 2)
		operate(t, p, "accept", "nothing:1.0").want(t, 1, "is no tag that is known here")
		operate(t, p, "accept").want(t, 2, "arg")
		operate(t, p, "accept", "steady:1.0").want(t, 0, "nothing to accept")
		return []string{list.out, asJSON.out, moves.out}
	}
	running := check()
	wantUnmoved(t, before, h.Counts())
	p.Stop(t)
	stopped := check()
	for i := range running {
		if running[i] != stopped[i] {
			t.Errorf("running it prints\n%s\nand stopped\n%s", running[i], stopped[i])
		}
	}
}

func TestCranePullsAsOfADate(t *testing.T) {
	t.Parallel()
	h, p := start(t, doubting)
	first, second := image.Index(image.Options{Seed: 1}), image.Index(image.Options{Seed: 2})
	h.Push("library/app", "1.0", first)
	early := time.Now().UTC()
	time.Sleep(1100 * time.Millisecond) // a reference tells times to the second
	get(t, p, tagPath)
	time.Sleep(1100 * time.Millisecond)
	between := time.Now().UTC()
	time.Sleep(1100 * time.Millisecond)
	h.Push("library/app", "1.0", second)
	h.Push("library/app", "2.0", second)
	get(t, p, tagPath)
	get(t, p, "/v2/library/app/manifests/2.0")

	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	opts := []crane.Option{crane.Insecure, crane.WithContext(ctx), crane.WithAuth(authn.Anonymous)}
	word := func(at time.Time) string { return "at-" + at.Format("2006-01-02t15-04-05z") }
	wholly := func(prefix string, want *image.Image) {
		t.Helper()
		for _, repo := range []string{p.Host() + "/" + prefix + "/docker.io/library/app", p.Host() + "/" + prefix + "/app", p.Host() + "/" + prefix + "/docker.io/app"} {
			if d, err := crane.Digest(repo+":1.0", opts...); err != nil || d != want.Digest.String() {
				t.Errorf("%s: crane digest: want %s, got %s, %v", repo, want.Digest, d, err)
			}
			for _, platform := range image.Platforms {
				pl, err := gcr.ParsePlatform(platform)
				if err != nil {
					t.Fatal(err)
				}
				img, err := crane.Pull(repo+":1.0", append(opts, crane.WithPlatform(pl))...)
				if err != nil {
					t.Fatalf("%s: crane pull --platform %s: %v", repo, platform, err)
				}
				if err := validate.Image(img); err != nil {
					t.Errorf("%s, %s: %v", repo, platform, err)
				}
			}
		}
	}
	heads := h.Counts().ManifestHeads
	wholly(word(between), first)
	if got := h.Counts().ManifestHeads; got != heads {
		t.Errorf("the upstream was asked %d times what a tag is", got-heads)
	}
	wholly("at-"+time.Now().UTC().Format(time.DateOnly), second)
	if tags, err := crane.ListTags(p.Host()+"/"+word(between)+"/docker.io/library/app", opts...); err != nil || strings.Join(tags, " ") != "1.0" {
		t.Errorf("tags as of then: %v, %v; want 1.0 alone", tags, err)
	}
	p.WaitIdle(t)

	// By the other form, which only a URL can have; a GET as a HEAD; and with nothing
	// behind.
	h.Down()
	for form, want := range map[string]*image.Image{
		"@" + between.Format(time.RFC3339):                                   first,
		"@" + between.In(time.FixedZone("", 7200)).Format(time.RFC3339):      first,
		"%40" + strings.ReplaceAll(between.Format(time.RFC3339), ":", "%3A"): first,
		"@" + time.Now().UTC().Format(time.DateOnly):                         second,
		word(between): first,
	} {
		path := "/v2/" + form + "/docker.io/library/app/manifests/1.0"
		a := get(t, p, path, "Accept", anything)
		wantBytes(t, path, want.Bytes(), a.body)
		if cs := a.header.Get("Cache-Status"); !strings.HasPrefix(cs, "entrepot; hit") || !strings.Contains(cs, "as of 20") {
			t.Errorf("%s: Cache-Status %q", path, cs)
		}
		ask(t, p, "HEAD", path, "Accept", anything).wantHeader(t, "Docker-Content-Digest", want.Digest.String())
	}
	then := "/v2/@" + early.Format(time.RFC3339) + "/docker.io/library/app/manifests/1.0"
	if m := ask(t, p, "GET", then).wantError(t, 404, "MANIFEST_UNKNOWN"); !strings.Contains(m, "known here since") || !strings.Contains(m, first.Digest.String()) {
		t.Errorf("message %q", m)
	}
	if m := ask(t, p, "GET", "/v2/@2099-01-01/docker.io/library/app/manifests/1.0").wantError(t, 404, "MANIFEST_UNKNOWN"); !strings.Contains(m, "still to come") {
		t.Errorf("message %q", m)
	}
	if m := ask(t, p, "GET", "/v2/@last-week/docker.io/library/app/manifests/1.0").wantError(t, 400, "NAME_INVALID"); !strings.Contains(m, "no date") {
		t.Errorf("message %q", m)
	}
}

func TestATagThatMovedIsHeldOrRefusedUntilItIsAccepted(t *testing.T) {
	t.Parallel()
	const rules = `upstreams: {docker.io: {tags: [
		{match: "library/app:held", ttl: 0s, hold: 7d},
		{match: "library/app:blocked", ttl: 0s, on_move: block},
		{match: "*", ttl: 0s, on_move: warn}]}}`
	h, p := start(t, rules)
	first, second := image.New(image.Options{Seed: 1}), image.New(image.Options{Seed: 2})
	tags := []string{"held", "blocked", "watched"}
	path := func(tag string) string { return "/v2/library/app/manifests/" + tag }
	for _, tag := range tags {
		h.Push("library/app", tag, first)
		get(t, p, path(tag))
	}
	for _, tag := range tags {
		h.Push("library/app", tag, second)
	}
	state := func() {
		t.Helper()
		for _, method := range []string{"HEAD", "GET"} {
			a := ask(t, p, method, path("held"))
			a.wantHeader(t, "Docker-Content-Digest", first.Digest.String())
			if cs := a.header.Get("Cache-Status"); !strings.Contains(cs, "held as it was: it has moved to "+second.Digest.String()) {
				t.Errorf("%s: Cache-Status %q", method, cs)
			}
			if method == "GET" {
				wantBytes(t, "held", first.Bytes(), a.body)
			}
		}
		if a := ask(t, p, "HEAD", path("blocked")); a.status != 403 {
			t.Errorf("HEAD of what is blocked: %s", a)
		}
		if m := ask(t, p, "GET", path("blocked")).wantError(t, 403, "DENIED"); !strings.Contains(m, "entrepot accept docker.io/library/app:blocked") {
			t.Errorf("message %q", m)
		}
		wantBytes(t, "watched", second.Bytes(), get(t, p, path("watched")).body)
	}
	state()
	if n := p.Metrics(t).Sum("entrepot_tag_moves_total", "upstream", "docker.io", "on_move", "block"); n != 1 {
		t.Errorf("%g moves of blocked tags are counted, want 1", n)
	}
	if n := p.Metrics(t).Sum("entrepot_tag_moves_total", "upstream", "docker.io", "on_move", "warn"); n != 1 {
		t.Errorf("%g moves of watched tags are counted, want 1", n)
	}
	if log := p.Log(); !strings.Contains(log, "a tag has moved") {
		t.Error("the log does not tell of a move")
	}
	p.Kill(t)
	p.Restart(t)
	state()
	operate(t, p, "explain", "app:held").want(t, 0, "held as it was", "held until", "from "+first.Digest.String(), "to   "+second.Digest.String())
	operate(t, p, "explain", "app:blocked").want(t, 0, "blocked", "refused until", "entrepot accept docker.io/library/app:blocked")
	operate(t, p, "accept", "app:blocked").want(t, 0, "is served as "+second.Digest.String()+" from now on", first.Digest.String())
	wantBytes(t, "accepted", second.Bytes(), get(t, p, path("blocked")).body)
	operate(t, p, "accept", "--output", "json", "app:blocked").want(t, 0, `"to": "`+second.Digest.String())
	p.Stop(t)
	operate(t, p, "accept", "app:held").want(t, 0, "from now on")
	p.Restart(t)
	wantBytes(t, "accepted", second.Bytes(), get(t, p, path("held")).body)
}
