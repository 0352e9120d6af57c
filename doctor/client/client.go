// Package client knows container clients: their configuration files, what these are to
// say so that pulls go through a cache, how to put that into what is there already, how
// to have a client pull, and what keeps its pulls from the cache.
//
// What else a file says stays as it is, comments and order included. A file that can
// not be changed so is left alone, and it is told what to put in by hand.
package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/entrepot-dev/entrepot/configs"
)

// Site is what the configuration of a client has to say.
type Site struct {
	// URL is where clients reach the cache, scheme, host and port alone:
	// "http://cache:5000".
	URL string
	// Upstreams are the names of the registries to mirror, the default one first.
	Upstreams []string
	// Root stands for the root directory of the files; empty is the root itself.
	Root string
}

// host gives host and port of the cache.
func (s Site) host() string {
	u, err := url.Parse(s.URL)
	if err != nil {
		return ""
	}
	return u.Host
}

// isPlain tells whether the cache speaks plain http.
func (s Site) isPlain() bool { return strings.HasPrefix(s.URL, "http://") }

// at gives the path of a file of the site.
func (s Site) at(path string) string { return filepath.Join("/", s.Root, path) }

// ready gives one of the ready files, for this site's cache.
func (s Site) ready(name string) (string, error) {
	text, err := configs.ClientFile(name)
	if err != nil {
		return "", err
	}
	text = strings.ReplaceAll(text, "http://cache:5000", s.URL)
	return strings.ReplaceAll(text, "cache:5000", s.host()), nil
}

// File is a configuration file as it is, and as it is to be.
type File struct {
	Path string
	// Old is what it is, where Exists is set.
	Old    []byte
	Exists bool
	// New is what it is to be. Both may hold secrets of others.
	New []byte
	// Ready is what it is to say, of which New has what was not there yet.
	Ready string
	// Restart says what has to be done so that a change is taken over; empty is
	// nothing.
	Restart string
	// Notes are sentences on what to know of it.
	Notes []string
}

// Changes tells whether there is something to write.
func (f *File) Changes() bool { return !f.Exists || !bytes.Equal(f.Old, f.New) }

// Names are those of the clients that Plan knows.
func Names() []string { return []string{"docker", "containerd", "podman", "buildkit", "k3s"} }

// Plan reads the files of a client, and returns them as they should be. It asks a running Docker daemon which
// of its files it reads. An *Unmerged says what to put in by hand.
func Plan(ctx context.Context, name string, s Site) ([]*File, error) {
	switch name {
	case "docker":
		return planDocker(s, dockerEngineOf(ctx, s))
	case "containerd":
		return planContainerd(s)
	case "podman":
		return planPodman(s)
	case "buildkit":
		return planBuildKit(s)
	case "k3s":
		return planK3s(s)
	}
	return nil, fmt.Errorf("%q is no client that is known; there are %s", name, strings.Join(Names(), ", "))
}

// Unmerged says that a file is there and could not be changed without harm.
type Unmerged struct {
	Path string
	// Why is what stands against it, and Text what it is to say.
	Why, Text string
}

func (e *Unmerged) Error() string {
	return fmt.Sprintf("%s: %s; put this in by hand:\n%s", e.Path, e.Why, e.Text)
}

// maxFile is the most that is read of a file, in bytes.
const maxFile = 1 << 20

// plan reads a file and has merge make of what is there, or of ready where nothing is,
// what is to be.
func plan(path, ready string, merge func(old string) (string, error)) (*File, error) {
	f := &File{Path: path, Ready: ready}
	old, err := read(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.New = []byte(ready)
		return f, nil
	case err != nil:
		return nil, err
	}
	f.Old, f.Exists = old, true
	if strings.TrimSpace(string(old)) == "" {
		f.New = []byte(ready)
		return f, nil
	}
	text, err := merge(string(old))
	if err != nil {
		return nil, &Unmerged{Path: path, Why: err.Error(), Text: ready}
	}
	f.New = []byte(text)
	return f, nil
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path) // #nosec G304 -- a known name below the root that the operator gives
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes: that is no configuration", path, maxFile)
	}
	return b, err
}

// join gives text with a section behind it.
func join(text, section string) string {
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return text + "\n" + section
}

// insert gives lines with some more before the one with number at.
func insert(lines []string, at int, more ...string) []string {
	return slices.Insert(lines, at, more...)
}
