package configs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDirectoryOfTheSystemIsTakenWhereItCanBeWritten(t *testing.T) {
	there := t.TempDir()
	user := func() (string, error) { return "/home/alice/.cache", nil }
	for _, c := range []struct{ name, system, want string }{
		{"it is there", there, there},
		{"it can be made", filepath.Join(there, "entrepot"), filepath.Join(there, "entrepot")},
		{"not even its parent is there", filepath.Join(there, "a", "entrepot"), "/home/alice/.cache/entrepot"},
	} {
		got, err := defaultDir(c.system, user)
		if err != nil || got != c.want {
			t.Errorf("%s: want %s, got %s, %v", c.name, c.want, got, err)
		}
	}
}

func TestDirectoryOfTheUserIsTakenOtherwise(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may write everywhere")
	}
	locked := t.TempDir()
	if err := os.Chmod(locked, 0o500); err != nil {
		t.Fatal(err)
	}
	got, err := defaultDir(locked, func() (string, error) { return "/home/alice/.cache", nil })
	if err != nil || got != "/home/alice/.cache/entrepot" {
		t.Errorf("want /home/alice/.cache/entrepot, got %s, %v", got, err)
	}
}

func TestNoDirectoryAtAllSaysWhatToSet(t *testing.T) {
	_, err := defaultDir("/no/such/place/entrepot", func() (string, error) { return "", errors.New("$HOME is not defined") })
	if err == nil || !strings.Contains(err.Error(), "set cache.dir or ENTREPOT_CACHE_DIR") {
		t.Errorf("want an error that says what to set, got %v", err)
	}
}
