// Package admin is the operator's listener: metrics, health and profiles, on an
// address that clients need not reach. It knows nothing of the parts that it tells
// about but the functions that it is given. What it serves is for the operator only:
// the address that it listens on is its protection, or the guard that it is given;
// and pages of other sites can not make an operator's browser ask it (browsers).
package admin
