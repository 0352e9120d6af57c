package configs

import (
	"maps"
	"reflect"
	"strings"
)

// Key is one thing that can be set.
type Key struct {
	// Path is how it is written in messages: "cache.dir",
	// "upstreams.docker.io.credentials.password".
	Path string
	// Env is the environment variable that sets it; empty where none does.
	Env string
	// value is the key's value, settable.
	value reflect.Value
}

// Placeholder is the name of an upstream in the paths that Keys gives.
const Placeholder = "NAME"

// Keys lists every key that there is, in the order of the types. Those of an
// upstream are listed once, under Placeholder; those of a rule of a list under
// the list's path and "[]".
func Keys() []Key {
	cfg := Config{Upstreams: map[string]*Upstream{Placeholder: {Tags: []TagRule{{}}}}}
	oneOfEach(&cfg)
	return keysIn(reflect.ValueOf(&cfg).Elem(), "")
}

// oneOfEach fills each list of mappings and each mapping that is not there by default, for
// their keys.
func oneOfEach(c *Config) {
	c.Auth.Tokens, c.Auth.Networks, c.Auth.Groups = []Token{{}}, []Network{{}}, []Group{{}}
	c.Admin.Auth.Tokens = []Token{{}}
	c.Access = []AccessRule{{}}
	c.Upstreams = maps.Clone(c.Upstreams)
	for name, u := range c.Upstreams {
		one := *u
		every := Credentials{ECR: &ECR{}, Google: &Google{}, Azure: &Azure{}}
		one.Accounts = []Account{{Credentials: every}}
		one.Credentials.ECR, one.Credentials.Google, one.Credentials.Azure = every.ECR, every.Google, every.Azure
		c.Upstreams[name] = &one
	}
}

// keysIn lists the keys below v.
func keysIn(v reflect.Value, path string) []Key {
	var keys []Key
	switch {
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			keys = append(keys, keysIn(v.Field(i), childKey(path, keyOf(v.Type().Field(i))))...)
		}
	case v.Kind() == reflect.Map:
		m := v.Interface().(map[string]*Upstream)
		for _, name := range names(m) {
			keys = append(keys, keysIn(reflect.ValueOf(m[name]).Elem(), childKey(path, name))...)
		}
	case v.Kind() == reflect.Pointer:
		// A variable can't tell a mapping that is empty from none.
		keys = append(keys, Key{Path: path, value: v})
		if !v.IsNil() {
			for _, k := range keysIn(v.Elem(), path) {
				keys = append(keys, Key{Path: k.Path, value: k.value})
			}
		}
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct:
		// An item is known by its place in a list, which no variable can name.
		keys = append(keys, Key{Path: path, value: v})
		if v.Len() > 0 {
			for _, k := range keysIn(v.Index(0), path+"[]") {
				keys = append(keys, Key{Path: k.Path, value: k.value})
			}
		}
	default:
		keys = append(keys, Key{Path: path, Env: envName(path), value: v})
	}
	return keys
}

// fieldOf finds the field of a struct by its key.
func fieldOf(v reflect.Value, key string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if keyOf(v.Type().Field(i)) == key {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

// keysOf lists the keys of a struct.
func keysOf(t reflect.Type) []string {
	var list []string
	for i := range t.NumField() {
		list = append(list, keyOf(t.Field(i)))
	}
	return list
}

// keyOf gives the key of a field: its yaml tag without the options.
func keyOf(f reflect.StructField) string {
	key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	return key
}

func childKey(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// parentKey cuts the last part off a path. A dot within an upstream's name is
// cut at as well: that path is nobody's, and the next cut finds the name's.
func parentKey(path string) string {
	return path[:max(0, strings.LastIndexAny(path, ".["))]
}
