package proxy

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	module = "github.com/entrepot-dev/entrepot"
	// program is the package of the command.
	program = module + "/cmd/proxy"
)

// build is the one build of a test process.
var build = struct {
	once      sync.Once
	dir, path string
	err       error
}{}

// Main runs the tests and removes what Binary has built. It gives the exit code.
func Main(m *testing.M) int {
	code := m.Run()
	if build.dir != "" {
		_ = os.RemoveAll(build.dir) // of the temporary directory anyway
	}
	return code
}

// Binary gives the path of the built program.
func Binary(t testing.TB) string {
	t.Helper()
	build.once.Do(func() {
		if build.dir, build.err = os.MkdirTemp("", "entrepot-e2e-"); build.err == nil {
			build.path, build.err = Build(build.dir)
		}
	})
	if build.err != nil {
		t.Fatal(build.err)
	}
	return build.path
}

// Build builds the program into dir and gives its path. It has the race detector
// where the caller has it.
func Build(dir string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	path := filepath.Join(dir, "entrepot")
	args := []string{"build", "-o", path}
	if Raced {
		args = append(args, "-race")
	}
	// In the program's own module, so that it has the dependencies it is released with: the tests
	// of real clients are a module with many more.
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("go list -m %s: %w", module, err)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, program)...)
	cmd.Dir = strings.TrimSpace(string(root))
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build %s: %w\n%s", program, err, out)
	}
	return path, nil
}
