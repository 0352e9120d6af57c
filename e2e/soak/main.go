// Command soak runs the real program between fake registries that fail at random
// and clients of all kinds, kills it now and then, and checks afterwards that every
// byte that any client took for complete was right, that nothing is left over in the
// process, and that the disk holds what the index says. It exits with 1 where one of
// that does not hold.
//
//	go run ./e2e/soak -for 20m -seed 7
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// options say how long and how hard to run.
type options struct {
	// length is for how long clients and faults run; what is checked after
	// that takes a minute or so more.
	length time.Duration
	// seed makes the images, and the choices of clients and faults: what they
	// do, not when.
	seed uint64
	// clients is how many there are at a time.
	clients int
	// small makes a corpus and a cache of some MiB, for a run of seconds.
	small bool
	// every is the mean time between two ends of the process.
	every time.Duration
}

func main() {
	o := options{}
	flag.DurationVar(&o.length, "for", 3*time.Minute, "how long to run: minutes, or hours")
	flag.Uint64Var(&o.seed, "seed", rand.Uint64(), "what to choose images, actions and faults by")
	flag.IntVar(&o.clients, "clients", 16, "clients at a time")
	flag.DurationVar(&o.every, "kill-every", 40*time.Second, "mean time between two ends of the process")
	flag.BoolVar(&o.small, "small", false, "use images of some KiB, and a cache of some MiB")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "entrepot-soak-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
	code := soak(ctx, o, dir, os.Stdout)
	_ = os.RemoveAll(dir) // of the temporary directory anyway
	os.Exit(code)
}

// soak builds the program, runs it, and gives the exit code.
func soak(ctx context.Context, o options, dir string, out io.Writer) int {
	binary, err := proxy.Build(dir)
	if err != nil {
		fmt.Fprintln(out, "soak:", err)
		return 1
	}
	r, err := run(ctx, o, binary, dir, out)
	if err != nil {
		fmt.Fprintln(out, "soak:", err)
		return 1
	}
	r.print(out)
	if len(r.violations) > 0 {
		return 1
	}
	return 0
}
