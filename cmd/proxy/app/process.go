package app

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// process is what a run of the command has of the world, so that a test can
// give it another.
type process struct {
	args           []string
	environ        []string
	stdin          io.Reader // nil is none
	stdout, stderr io.Writer
	// outlets are before stdout and stderr once buffer was called.
	outlets []*outlet
	// signals gives the signals that ask for an end, until stop is called.
	signals func() (received <-chan os.Signal, stop func())
	// hangups gives those that ask to read the configuration again, likewise; nil
	// is none.
	hangups func() (received <-chan os.Signal, stop func())
}

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
	// exitInterrupted is what shells give a program that SIGINT has ended.
	exitInterrupted = 130
)

// failure is an error of a command that was called rightly. Every other error
// is one of usage.
type failure struct{ err error }

func (f failure) Error() string { return f.err.Error() }
func (f failure) Unwrap() error { return f.err }

// misuse is an error of usage that a command itself has found.
type misuse struct{ error }

// run runs the command and gives its exit code.
func (p *process) run() int {
	defer p.closeOutlets()
	root := newRoot(p)
	root.SetArgs(p.args)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	addCompletion(root, p.args)
	cmd, err := root.ExecuteC()
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(p.stderr, "entrepot: %v\n", err)
	if errors.Is(err, errInterrupted) {
		return exitInterrupted
	}
	if errors.As(err, &failure{}) && !errors.As(err, &misuse{}) {
		return exitFailed
	}
	fmt.Fprintf(p.stderr, "Run '%s --help' for usage.\n", cmd.CommandPath())
	return exitUsage
}

// does makes what a command does of a function: its errors are failures.
func does(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := f(cmd, args); err != nil {
			return failure{err}
		}
		return nil
	}
}

// hangups receives SIGHUP.
func hangups() (received <-chan os.Signal, stop func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	return c, func() { signal.Stop(c) }
}

// stopSignals receives SIGINT and SIGTERM.
func stopSignals() (received <-chan os.Signal, stop func()) {
	// Two places: the first asks for an end, the second insists.
	c := make(chan os.Signal, 2)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM)
	return c, func() { signal.Stop(c) }
}
