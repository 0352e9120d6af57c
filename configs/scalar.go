package configs

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// setNode sets a value that is no mapping and no list from a YAML node. Where YAML takes a value
// for a number or truth value and the key wants a text, the error asks for quotes: YAML may
// have changed what the person wrote (0123, 1e3).
func setNode(n *yaml.Node, v reflect.Value) error {
	switch text := isText(n); {
	case n.Kind != yaml.ScalarNode || isNull(n):
		return fmt.Errorf("want %s, got %s", wanted(v), describe(n))
	case !text && v.Type() == reflect.TypeFor[Secret]():
		return errors.New("want a text, got a number or truth value; put it in quotes")
	case !text && v.Kind() == reflect.String:
		return fmt.Errorf("want a text, got %s; put it in quotes", n.Value)
	case text && (v.Kind() == reflect.Bool || v.Kind() == reflect.Int) && v.Type() != reflect.TypeFor[Reserve]():
		return fmt.Errorf("want %s, got the text %q", wanted(v), n.Value)
	}
	return setText(n.Value, v)
}

// setText sets a value that is no mapping and no list of mappings from a text,
// as the environment and flags give it.
func setText(text string, v reflect.Value) error {
	switch p := v.Addr().Interface().(type) {
	case *string:
		*p = text
	case *Secret:
		*p = Secret(text)
	case *Bytes:
		b, err := ParseBytes(text)
		if err != nil {
			return err
		}
		*p = b
	case *Room:
		r, err := ParseRoom(text)
		if err != nil {
			return err
		}
		*p = r
	case *Reserve:
		r, err := ParseReserve(text)
		if err != nil {
			return err
		}
		*p = r
	case *time.Duration:
		d, err := ParseDuration(text)
		if err != nil {
			return fmt.Errorf("want %s, got %q", wanted(v), text)
		}
		*p = d
	case *bool:
		if text != "true" && text != "false" {
			return fmt.Errorf("want %s, got %q", wanted(v), text)
		}
		*p = text == "true"
	case *int:
		i, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("want %s, got %q", wanted(v), text)
		}
		*p = i
	case *[]string:
		list := []string{}
		for item := range strings.SplitSeq(text, ",") {
			if item = strings.TrimSpace(item); item != "" {
				list = append(list, item)
			}
		}
		*p = list
	default:
		return errors.New("this can be set in the file only")
	}
	return nil
}

// wanted says what a value may be.
func wanted(v reflect.Value) string {
	switch v.Interface().(type) {
	case time.Duration:
		return "a duration such as 30s, 5m or 720h"
	case Bytes:
		return "a size such as 64MiB or 2GiB"
	case Room:
		return "a size such as 500GiB, or a share such as 80%"
	case Reserve:
		return "a number of pulls, or auto"
	case bool:
		return "true or false"
	case int:
		return "a whole number"
	}
	return "a text"
}
