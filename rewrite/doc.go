// Package rewrite turns a client's request into what an upstream is asked: the path into
// a target, the Accept header into what the client can take, challenges and links into
// ones that fit.
//
// Its functions are pure: no I/O, no clock, no state beyond what a constructor was given.
// All of them read a stranger's bytes. So each parser is bounded, strict where a wrong
// reading could reach another repository or host, and lenient where clients are known to
// differ.
package rewrite
