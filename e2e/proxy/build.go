package proxy

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// program is the package of the command.
const program = "github.com/entrepot-dev/entrepot/cmd/proxy"

// build is the one build of a test process.
var build = struct {
	once sync.Once
	dir  string
	err  error
}{}

// Main runs the tests and removes what Binary has built. It gives the exit code.
func Main(m *testing.M) int {
	code := m.Run()
	if build.dir != "" {
		_ = os.RemoveAll(build.dir) // of the temporary directory anyway
	}
	return code
}

// Binary gives the path of the built program. It is built with the race
// detector where the test is.
func Binary(t testing.TB) string {
	t.Helper()
	build.once.Do(func() {
		build.dir, build.err = os.MkdirTemp("", "entrepot-e2e-")
		if build.err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
		defer cancel()
		args := []string{"build", "-o", filepath.Join(build.dir, "entrepot")}
		if raced {
			args = append(args, "-race")
		}
		cmd := exec.CommandContext(ctx, "go", append(args, program)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			build.err = fmt.Errorf("go build %s: %w\n%s", program, err, out)
		}
	})
	if build.err != nil {
		t.Fatal(build.err)
	}
	return filepath.Join(build.dir, "entrepot")
}
