// Package app is the entrepot command: a caching pull-through registry proxy. It reads flags and
// configuration, puts the parts together, and prints.
package app

import "os"

// Main runs the command that the process was started with, and ends the process with its exit
// code.
func Main() {
	p := process{args: os.Args[1:], environ: os.Environ(), stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, signals: stopSignals, hangups: hangups}
	os.Exit(p.run())
}
