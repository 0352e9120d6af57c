// Package access says who asks, and what they may pull. A Guard knows callers by
// a password, a token, a client certificate or their network, and holds the rules
// of what each may have. TLS makes the listener's side of https, certificates
// reloaded.
//
// It knows neither the server's HTTP nor the upstreams, keeps no secret that it
// was shown, and writes none to the log or an error.
package access
