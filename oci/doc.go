// Package oci holds the words of the OCI distribution spec that every part of
// Entrepot shares: the typed error with its code, a fetched manifest, a span of
// a blob and the body that carries it.
//
// It knows no HTTP library, does no I/O and imports nothing of the project, so
// that each part can speak to the next without importing it.
package oci
