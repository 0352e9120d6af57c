// Package images finds the references of images in what people have: plain lists,
// Compose files, Kubernetes YAML and Dockerfiles. It does no I/O but to read its
// input, and asks no registry.
package images

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/distribution/reference"
)

// Format says what an input is.
type Format string

// The formats that Read knows.
const (
	// Auto finds out by the content.
	Auto Format = "auto"
	// List has a reference on each line; # begins a comment.
	List Format = "list"
	// Compose is a file of Docker Compose.
	Compose Format = "compose"
	// Kubernetes are objects as YAML or JSON, any number of documents, as kubectl and
	// "helm template" print them.
	Kubernetes Format = "kubernetes"
	// Dockerfile is what an image is built by.
	Dockerfile Format = "dockerfile"
)

// Formats are all formats, for messages.
var Formats = []Format{Auto, List, Compose, Kubernetes, Dockerfile}

// ParseFormat reads the name of a format. None is Auto.
func ParseFormat(s string) (Format, error) {
	if s == "" {
		return Auto, nil
	}
	var names []string
	for _, f := range Formats {
		if string(f) == s {
			return f, nil
		}
		names = append(names, string(f))
	}
	return "", fmt.Errorf("%q is not known; give one of %s", s, strings.Join(names, ", "))
}

// Bounds of what is read.
const (
	// MaxInput is the most bytes of an input.
	MaxInput = 16 << 20
	// MaxImages is how many images an input may name.
	MaxImages = 20_000
	// maxUnread is how much is told of what is not understood.
	maxUnread = 1000
	// maxQuoted is how many bytes of an input stand in a message.
	maxQuoted = 200
)

// Found is what an input names.
type Found struct {
	// Format is that of the input, never Auto.
	Format Format
	// Images are in the order of the input, each reference and platform once.
	Images []Image
	// Unread names images too, but not so that it can be told which.
	Unread []Unread

	seen map[Image]bool
}

// Image is one that an input names.
type Image struct {
	// Reference is written out: "docker.io/library/nginx:1.27". It has a tag, a
	// digest, or both.
	Reference string
	// Platform is the one that the input wants the image for, "linux/arm64"; empty
	// where it does not say.
	Platform string
	// Line is where the input names it first, from 1 on.
	Line int
}

// Unread is a place of an input that names an image, and does not say which.
type Unread struct {
	Line int
	// Text is what stands there, at most a line of it.
	Text string
	// Reason is a sentence for people, without a full stop.
	Reason string
}

// Options say how an input is read.
type Options struct {
	// Format is that of the input; empty is Auto.
	Format Format
	// Env gives the variables that a Compose file may use; nil is none.
	Env func(name string) (string, bool)
}

// Read finds the images of an input of at most MaxInput bytes. An error says that it
// is nothing that could be read at all, in a sentence that names the line; single
// places that can not be read are among what it gives.
func Read(r io.Reader, o Options) (*Found, error) {
	text, err := io.ReadAll(io.LimitReader(r, MaxInput+1))
	if err != nil {
		return nil, err
	}
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	switch {
	case len(text) > MaxInput:
		return nil, fmt.Errorf("it has more than %d MiB, which no list of images has", MaxInput>>20)
	case bytes.IndexByte(text, 0) >= 0 || !utf8.Valid(text):
		return nil, errors.New("it is no text, but a binary file")
	}
	f := &Found{Format: o.Format, seen: map[Image]bool{}}
	if f.Format == "" || f.Format == Auto {
		f.Format = detect(text)
	}
	switch f.Format {
	case List:
		err = f.readList(text)
	case Dockerfile:
		err = f.readDockerfile(text)
	default:
		err = f.readYAML(text, o)
	}
	return f, err
}

// detect tells what text is by its first line that says something; YAML is told
// apart later, document by document.
func detect(text []byte) Format {
	for line := range bytes.Lines(text) {
		s := strings.TrimSpace(string(line))
		if s == "" || s[0] == '#' {
			continue
		}
		fields := strings.Fields(s)
		switch word := strings.ToUpper(fields[0]); {
		case len(fields) > 1 && (word == "FROM" || word == "ARG"):
			return Dockerfile
		case strings.ContainsAny(s[:1], "{[\"'%&!?") || s == "---" || strings.HasPrefix(s, "--- ") || s == "-" || strings.HasPrefix(s, "- "):
			return Kubernetes
		case strings.HasSuffix(fields[0], ":") || strings.HasPrefix(strings.TrimLeft(s[len(fields[0]):], " \t"), ": "):
			return Kubernetes
		}
		return List
	}
	return List
}

// errTooMany says that an input names more images than it may.
var errTooMany = fmt.Errorf("it names more than %d images", MaxImages)

// add takes the image that stands at a line. What is no reference becomes Unread.
func (f *Found) add(line int, text, platform string) error {
	ref, err := Normalize(text)
	if err != nil {
		return f.miss(line, text, err.Error())
	}
	i := Image{Reference: ref, Platform: platform}
	if f.seen[i] {
		return nil
	}
	if len(f.Images) >= MaxImages {
		return errTooMany
	}
	f.seen[i] = true
	i.Line = line
	f.Images = append(f.Images, i)
	return nil
}

// miss notes that an image at a line can not be read.
func (f *Found) miss(line int, text, reason string) error {
	if len(f.Unread) >= maxUnread {
		return fmt.Errorf("line %d: %s; and %d places before it can not be read either: is it a list of images?", line, reason, maxUnread)
	}
	text, _, _ = strings.Cut(text, "\n")
	f.Unread = append(f.Unread, Unread{Line: line, Text: cut(text), Reason: reason})
	return nil
}

// cut bounds a text that stands in a message.
func cut(s string) string {
	if len(s) > maxQuoted {
		return strings.ToValidUTF8(s[:maxQuoted], "") + "…"
	}
	return s
}

// Normalize writes a reference out as people mean it: "nginx" is
// docker.io/library/nginx:latest. A digest stays beside a tag.
func Normalize(text string) (string, error) {
	if strings.Contains(text, "{{") {
		return "", errors.New("it is a template that has not been filled in; give what comes out of it (helm template …)")
	}
	named, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		return "", fmt.Errorf("%q is no reference of an image, such as docker.io/library/nginx:1.27", cut(text))
	}
	return reference.TagNameOnly(named).String(), nil
}
