// Package oci holds the words that all parts of Entrepot share: the typed error and its
// code, names, digests and references, platforms, media types, manifests and what they
// name, a span of a blob and the body that carries it.
//
// It knows no HTTP library, does no I/O and imports nothing of the project, so that each
// part can speak to the next without importing it. What reads a stranger's bytes here is
// bounded in time and memory.
package oci
