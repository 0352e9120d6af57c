// Package admin is the operator's listener: metrics, health and profiles over
// plain http, on an address that clients need not reach. It knows nothing of
// the parts that it tells about but the functions that it is given. What it
// serves is for the operator only: it asks for no credentials, so that the
// address that it listens on is its protection.
package admin
