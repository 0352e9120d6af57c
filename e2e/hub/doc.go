// Package hub is a fake Docker Hub: a registry, its token server and its CDN on
// three listeners of the loopback interface, with counters of all that it was
// asked and faults that can be switched on and off.
//
// It is strict where the real one is: a blob is redirected to a signed URL that
// expires, the CDN answers 400 to a request that carries an Authorization
// header, a token is good for its scopes and for its time. What a client did is
// read from Counts, Sent and Requests.
//
// All methods of Hub may be called from several goroutines, also while clients
// pull.
package hub
