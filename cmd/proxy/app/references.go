package app

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/distribution/reference"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/images"
)

// patternHelp says what a reference may be, for the help of the commands that select cached
// images.
const patternHelp = `A REFERENCE with a tag or a digest is that image. Anything else selects cached images, in the
same way for every command:

  small            every cached image of docker.io/library/small
  docker.io        every cached image of a registry
  library/*        a pattern over the reference or its repository: * is any characters, ? is one;
                   docker.io/ and library/ may be left out
  app@sha256:1b5c3b6d2f44
                   the image without a tag that ls shows so

A name that selects no cached image is the image with the tag latest.`

// isExact reports whether text names one image, by its tag or its digest.
func isExact(text string) bool {
	if strings.ContainsAny(text, "*?") || isRegistry.MatchString(text) {
		return false
	}
	named, err := reference.ParseNormalizedNamed(text)
	return err == nil && !reference.IsNameOnly(named)
}

var endsInDigest = regexp.MustCompile(`@(sha256|sha384|sha512):[0-9a-f]{8,}$`)

// lengthen returns text as a pattern if it ends in the beginning of a digest, as tables show it
// on a narrow terminal; else as it is.
func lengthen(text string) string {
	if endsInDigest.MatchString(text) && !isExact(text) {
		return text + "*"
	}
	return text
}

// isPattern reports whether text can only be a pattern: it has a wildcard, ends in the beginning
// of a digest, or is the name of a registry, such as docker.io or registry.example:5000.
func isPattern(text string) bool {
	text = lengthen(text)
	return strings.ContainsAny(text, "*?") || isRegistry.MatchString(text)
}

// isRegistry matches names of registries; no image of docker.io has a dot in its only part.
var isRegistry = regexp.MustCompile(`^[^/:@]*\.[^/:@]*(:[0-9]{1,5})?$`)

// checkReferences returns an error if one of args is neither a reference nor a pattern.
func checkReferences(args []string) error {
	for _, text := range args {
		if isPattern(text) {
			continue
		}
		if _, err := images.Normalize(text); err != nil {
			return err
		}
	}
	return nil
}

// resolve returns the references that args select, each once and in their order, as
// patternHelp says. An error says which pattern selects nothing, or is the API's.
func (o *operation) resolve(args []string) ([]string, error) {
	var list []string
	seen := map[string]bool{}
	add := func(ref string) {
		if !seen[ref] {
			seen[ref] = true
			list = append(list, ref)
		}
	}
	for _, text := range args {
		text = lengthen(text)
		if isExact(text) {
			add(text)
			continue
		}
		found := false
		if _, err := o.Images(o.ctx, text, false, func(i cache.Image) error {
			found = true
			add(i.Reference)
			return nil
		}); err != nil {
			return nil, err
		}
		switch {
		case found:
		case isPattern(text):
			return nil, fmt.Errorf("no cached image matches %s; list the cached images with `entrepot ls`", text)
		default:
			add(text)
		}
	}
	return list, nil
}

// resolveListed is resolve for commands that also take images that are not cached: a name
// without a tag is the image with the tag latest.
func (o *operation) resolveListed(args []string) ([]string, error) {
	var list []string
	for _, text := range args {
		if !isPattern(text) {
			list = append(list, text)
			continue
		}
		found, err := o.resolve([]string{text})
		if err != nil {
			return nil, err
		}
		list = append(list, found...)
	}
	return list, nil
}

// one returns the single image that text selects: an image that is named in full, or by the
// beginning of its digest.
func (o *operation) one(text string) (string, error) {
	if lengthen(text) == text {
		return text, nil
	}
	list, err := o.resolve([]string{text})
	if err == nil && len(list) > 1 {
		err = fmt.Errorf("%s selects %s; give more of the digest", text, count(len(list), "image"))
	}
	if err != nil {
		return "", err
	}
	return list[0], nil
}

// each does f for every reference that args select. It goes on after an error, and returns
// all of them.
func (o *operation) each(args []string, f func(ref string) error) error {
	list, err := o.resolve(args)
	if err != nil {
		return err
	}
	var errs []error
	for _, ref := range list {
		if o.ctx.Err() != nil {
			break
		}
		if err := f(ref); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// document returns what to print as JSON of results: the result itself if one reference was
// named, else a list.
func document[T any](args []string, results []T) any {
	if len(args) == 1 && len(results) == 1 && !isPattern(args[0]) {
		return results[0]
	}
	if results == nil {
		results = []T{}
	}
	return results
}
