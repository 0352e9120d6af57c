// Package grants decides who may have what of upstreams at which each client pulls
// with credentials of its own ("access: passthrough").
//
// Whether everyone may pull a repository, or the caller with its credentials, is
// asked of the upstream, once, and believed for a lease. It promises that nothing of
// a private repository is admitted without the upstream's word for this very caller,
// that credentials stay in memory, for a lease at most, and go to the one upstream
// that they were meant for, and that what is not the caller's and what does not exist
// are told alike. It neither knows HTTP nor what is cached.
package grants
