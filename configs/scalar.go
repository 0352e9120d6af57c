package configs

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// setNode sets a value that is no mapping and no list from a YAML node. YAML
// knows numbers and truth values: where one stands for a text, the person is
// asked for quotes rather than given what YAML made of it (0123, yes, 1e3).
func setNode(n ast.Node, v reflect.Value) error {
	var text string
	switch t := n.(type) {
	case *ast.StringNode:
		text = t.Value
	case *ast.LiteralNode:
		text = t.Value.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		text = n.GetToken().Value
		switch {
		case v.Type() == reflect.TypeFor[Secret]():
			return errors.New("want a text, got a number or truth value; put it in quotes")
		case v.Kind() == reflect.String:
			return fmt.Errorf("want a text, got %s; put it in quotes", text)
		}
	default:
		joined, ok := flowText(n)
		if !ok || v.Kind() != reflect.String || v.Type() == reflect.TypeFor[Secret]() {
			return fmt.Errorf("want %s, got %s", wanted(v), describe(n))
		}
		text = joined
	}
	_, isText := n.(*ast.StringNode)
	if k := v.Kind(); isText && (k == reflect.Bool || k == reflect.Int) && v.Type() != reflect.TypeFor[Reserve]() {
		return fmt.Errorf("want %s, got the text %q", wanted(v), text)
	}
	return setText(text, v)
}

// flowText returns the text of [net:cluster], which the parser takes for a key with a
// value. In YAML 1.2 a colon ends a key in a list only if a space follows.
func flowText(n ast.Node) (string, bool) {
	switch t := n.(type) {
	case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return n.GetToken().Value, true
	case *ast.MappingNode:
		if len(t.Values) == 1 {
			return flowText(t.Values[0])
		}
	case *ast.MappingValueNode:
		key, colon, value := t.Key.GetToken(), t.Start, t.Value.GetToken()
		if key == nil || colon == nil || value == nil || key.Position == nil || colon.Position == nil || value.Position == nil {
			return "", false
		}
		text, ok := flowText(t.Value)
		k, c := key.Position, colon.Position
		if at := firstToken(t.Value); ok && at != nil && c.Offset == k.Offset+len(key.Value) && at.Position.Offset == c.Offset+1 {
			return key.Value + ":" + text, true
		}
	}
	return "", false
}

// firstToken returns the token that a node begins with.
func firstToken(n ast.Node) *token.Token {
	switch t := n.(type) {
	case *ast.MappingNode:
		if len(t.Values) == 1 {
			return t.Values[0].Key.GetToken()
		}
	case *ast.MappingValueNode:
		return t.Key.GetToken()
	}
	return n.GetToken()
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
