// Package admin is the operator's listener: metrics, health, profiles and the
// operator's API, on an address of its own. It knows nothing of the parts behind it
// but the functions that it is given.
//
// Everything but health and metrics is for the operator, and the address alone proves
// nothing: every process of the machine reaches loopback. A guard asks for credentials.
// Token is the one that always exists: Entrepot writes it to a private file at its
// start, and its commands read it from there. Pages of other sites cannot make an
// operator's browser send requests (browsers).
package admin
