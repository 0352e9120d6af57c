// The entrepot command: a caching pull-through registry proxy.
package main

import "os"

func main() {
	p := process{args: os.Args[1:], environ: os.Environ(), stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, signals: stopSignals, hangups: hangups}
	os.Exit(p.run())
}
