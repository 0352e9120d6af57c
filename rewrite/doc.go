// Package rewrite turns what a client sends into what an upstream is asked, and
// back: a request's path into a Target, an Accept header into what the client
// can take, an index into the manifest of one platform, challenges and links
// into ones that fit.
//
// It holds pure functions only: no I/O, no clock, no state beyond what a
// constructor was given. Everything in it reads a stranger's bytes, so every
// parser is bounded, strict where a wrong reading could reach another
// repository or host, and lenient where clients are known to differ.
package rewrite
