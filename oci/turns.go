package oci

import "runtime"

// largeDocument is the size in bytes above which documents are read in turns. Nearly all
// manifests are far smaller, and never wait.
const largeDocument = 256 << 10

// turns has a place for each large document that may be read at a time. An upstream can
// have megabytes of JSON parsed for each request: half of the processors are left to the
// requests for everything else.
var turns = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))

// inTurn calls read, which reads a document of size bytes. If that is a large one, it
// waits for a turn first: those that wait go in the order in which they came. read must
// not call inTurn.
func inTurn(size int, read func()) {
	if size > largeDocument {
		turns <- struct{}{}
		defer func() { <-turns }()
	}
	read()
}
