package upstream

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/entrepot-dev/entrepot/oci"
)

func wantCredential(t *testing.T, c Credentials, host string, want Credential) {
	t.Helper()
	got, err := c.Credential(t.Context(), host)
	if err != nil || got != want {
		t.Errorf("for %s: got user %q, password of %d bytes, token of %d bytes, %v; want user %q, %d and %d bytes",
			host, got.Username, len(got.Password), len(got.IdentityToken), err, want.Username, len(want.Password), len(want.IdentityToken))
	}
}

func TestPasswordFilesAreReadAgain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	c := PasswordFile("alice", file)
	for _, p := range []string{"one", "two\n", "three \r\n"} {
		writeFile(t, file, p)
		wantCredential(t, c, "reg.test", Credential{Username: "alice", Password: strings.TrimSpace(p)})
	}
	writeFile(t, file, "\n")
	if _, err := c.Credential(t.Context(), "reg.test"); err == nil {
		t.Error("an empty file gave a password")
	}
	writeFile(t, file, strings.Repeat("x", 1<<17))
	if _, err := c.Credential(t.Context(), "reg.test"); err == nil || strings.Contains(err.Error(), "xx") {
		t.Errorf("a huge file: %v; want an error that does not tell what is in it", err)
	}
}

func TestUnreadableCredentialsAreAFailureThatNamesTheSetting(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		hub(w, "https://reg.test/token")
		_, err := w.registry(Options{Credentials: PasswordFile("alice", "/nonexistent")}).Manifest(t.Context(), "a", "latest")
		wantError(t, err, oci.CodeUnavailable, 502, "upstreams.reg.credentials")
	})
}

func TestDockerConfigIsReadAndReadAgain(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.json")
	auth := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	writeFile(t, file, fmt.Sprintf(`{"auths":{
		"https://index.docker.io/v1/":{"auth":%q},
		"https://reg.test:5000/v2/":{"auth":%q},
		"token.test":{"auth":%q,"identitytoken":"idtoken"}}}`, auth("hubuser:p:w"), auth("alice:hunter2"), auth("00000000-0000-0000-0000-000000000000:")))
	t.Setenv("DOCKER_CONFIG", dir)
	c, err := DockerConfig("")
	if err != nil {
		t.Fatal(err)
	}
	wantCredential(t, c, "registry-1.docker.io", Credential{Username: "hubuser", Password: "p:w"})
	wantCredential(t, c, "reg.test:5000", Credential{Username: "alice", Password: "hunter2"})
	wantCredential(t, c, "token.test", Credential{Username: "00000000-0000-0000-0000-000000000000", IdentityToken: "idtoken"})
	wantCredential(t, c, "other.test", Credential{})

	writeFile(t, file, fmt.Sprintf(`{"auths":{"reg.test:5000":{"auth":%q}}}`, auth("alice:changed")))
	wantCredential(t, c, "reg.test:5000", Credential{Username: "alice", Password: "changed"})
	wantCredential(t, c, "registry-1.docker.io", Credential{})
}

func TestADockerConfigThatIsNotThereIsAnError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.json")
	if _, err := DockerConfig(file); err == nil {
		t.Error("a missing file is taken")
	}
	writeFile(t, file, `{"auths":7}`)
	if _, err := DockerConfig(file); err == nil {
		t.Error("a broken file is taken")
	}
}

// installHelper puts docker-credential-<name> into the path, which counts its
// runs by lines in the file that it gives.
func installHelper(t *testing.T, name, script string) (runs string) {
	t.Helper()
	dir := t.TempDir()
	runs = filepath.Join(dir, "runs")
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\nread host\necho \"$1 $host\" >> "+runs+"\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	return runs
}

func TestCredentialHelpersAreRunAtMostOnceAMinute(t *testing.T) {
	runs := installHelper(t, "fake", `echo "{\"ServerURL\":\"$host\",\"Username\":\"AWS\",\"Secret\":\"for $host\"}"`)
	c := CredentialHelper("fake")
	for range 3 {
		wantCredential(t, c, "ecr.test", Credential{Username: "AWS", Password: "for ecr.test"})
	}
	wantCredential(t, c, "registry-1.docker.io", Credential{Username: "AWS", Password: "for https://index.docker.io/v1/"})
	got, err := os.ReadFile(runs)
	if want := "get ecr.test\nget https://index.docker.io/v1/\n"; err != nil || string(got) != want {
		t.Errorf("the helper was run as %q, %v; want %q", got, err, want)
	}
}

func TestDockerConfigRunsItsHelpers(t *testing.T) {
	installHelper(t, "fake", `echo "{\"Username\":\"<token>\",\"Secret\":\"idtoken\"}"`)
	file := filepath.Join(t.TempDir(), "config.json")
	writeFile(t, file, `{"credHelpers":{"ecr.test":"fake"}}`)
	c, err := DockerConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	wantCredential(t, c, "ecr.test", Credential{IdentityToken: "idtoken"})
	wantCredential(t, c, "other.test", Credential{})
}

func TestAHelperThatKnowsNothingMeansAnonymous(t *testing.T) {
	installHelper(t, "none", "echo 'credentials not found in native keychain'; exit 1")
	wantCredential(t, CredentialHelper("none"), "reg.test", Credential{})
	installHelper(t, "broken", "echo oops; exit 1")
	if _, err := CredentialHelper("broken").Credential(t.Context(), "reg.test"); err == nil {
		t.Error("a helper that fails gave something")
	}
	if _, err := CredentialHelper("not-there").Credential(t.Context(), "reg.test"); err == nil {
		t.Error("a helper that is not there gave something")
	}
}

func TestACallerNeedNotWaitForAHelper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slowStore{}
		c := &remembered{store: s}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Credential(ctx, "reg.test"); err == nil {
			t.Error("want the deadline's error")
		}
		wantCredential(t, c, "reg.test", Credential{Username: "slow"}) // the same flight
		if s.asked != 1 {
			t.Errorf("asked %d times, want once", s.asked)
		}
		time.Sleep(2 * time.Minute)
		wantCredential(t, c, "reg.test", Credential{Username: "slow"})
		if s.asked != 2 {
			t.Errorf("asked %d times after two minutes, want twice", s.asked)
		}
	})
}

// slowStore takes ten seconds for each answer.
type slowStore struct {
	credentials.Store
	asked int
}

func (s *slowStore) Get(context.Context, string) (auth.Credential, error) {
	s.asked++
	time.Sleep(10 * time.Second)
	return auth.Credential{Username: "slow"}, nil
}

func TestCredentialsAreNotPrinted(t *testing.T) {
	c := Credential{Username: "alice", Password: "hunter2", IdentityToken: "hunter3"}
	for _, f := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(f, c); strings.Contains(s, "hunter") {
			t.Errorf("%s prints %q", f, s)
		}
	}
}
