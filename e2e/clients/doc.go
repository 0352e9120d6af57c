// Package clients pulls through the real program with the real clients that
// people use: daemons and command-line tools, each as it is configured and typed
// by hand. It holds tests only.
//
// A client that is not installed is skipped in words; with
// ENTREPOT_REQUIRE_CLIENTS=1 that is a failure. Daemons run as root with a data
// directory, socket and process of their own; one that is already there is not
// touched.
package clients
