// Package e2e holds the tests that run the real program against a fake Docker
// Hub with real clients: e2e/image makes images, e2e/hub is the registry,
// e2e/proxy runs the program.
package e2e
