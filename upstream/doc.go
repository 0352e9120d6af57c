// Package upstream is one remote registry as a client: its endpoints in order,
// circuit breakers, tokens and credentials, redirects to a CDN, ranges, quotas,
// retries.
//
// It promises that credentials reach only the registry that they belong to and
// the token servers that the operator named (or that are known for that
// registry); that a request never reaches an address inside the operator's
// network because a stranger said so; that a failure is never told as "not
// found"; and that no URL, whose query may be signed, gets into an error or a
// log: hosts only. It keeps nothing but tokens, and does not verify blobs: that
// is for whoever stores them.
package upstream
