// Package image makes container images, artifacts and charts in memory, for
// tests to push into a fake registry.
//
// What it makes is valid: a daemon can unpack it, a client can verify it. The
// same seed gives the same bytes in every run of one build; other seeds give
// other digests throughout, so that two tests never share a blob by accident.
// It does no I/O. Functions panic on options that no test can mean.
package image
