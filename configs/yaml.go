package configs

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// readYAML lays a YAML document over the configuration. It walks the tree along the types of
// Config instead of decoding it: that finds every problem in one run, each with its place and
// key, and a key that is given leaves the defaults beside it as they are. It returns false if
// text is no YAML document; then it has read nothing.
func (l *loader) readYAML(text []byte) bool {
	first, second, err := Documents(text)
	if err != nil {
		e := explain(text, err)
		what := "this is no valid YAML"
		if e.message == tooDeepMessage {
			what = "this is not a configuration"
		}
		l.report(l.place(e.line, e.column), "", "%s: %s", what, e.message)
		return false
	}
	if first == nil {
		return true
	}
	if deep := TooDeep(first); deep != nil {
		l.report(l.at(deep), "", "this is not a configuration: %s", tooDeepMessage)
		return false
	}
	w := walk{l: l, values: new(int)}
	w.node(first, "", reflect.ValueOf(l.cfg).Elem())
	if second != nil {
		l.report(l.at(second), "", "a second YAML document; a configuration is one")
	}
	return true
}

// at returns the place of a node.
func (l *loader) at(n *yaml.Node) place { return l.place(n.Line, n.Column) }

// place returns a place in the file. A line or column of 0 is not known.
func (l *loader) place(line, column int) place {
	switch {
	case line == 0:
		return place{text: l.file}
	case column == 0:
		return place{text: fmt.Sprintf("%s:%d", l.file, line), line: line}
	}
	return place{text: fmt.Sprintf("%s:%d:%d", l.file, line, column), line: line}
}

// walk carries what is needed on the way down a document.
type walk struct {
	l *loader
	// values counts the nodes that were laid over the configuration.
	values *int
}

// maxValues bounds them: a list of aliases of a list of aliases is short to write and
// long to read.
const maxValues = 200_000

// node lays n over v. The depth is that of Config, whatever the document does:
// an alias that holds itself ends where the types end.
func (w walk) node(n *yaml.Node, key string, v reflect.Value) {
	if w.l.isFull() || *w.values > maxValues {
		return
	}
	if *w.values++; *w.values > maxValues {
		w.l.report(w.l.at(n), key, "the configuration has more than %d values, those that aliases repeat included", maxValues)
		return
	}
	n = resolve(n)
	if key != "" {
		w.l.where[key] = w.l.at(n)
	}
	switch {
	case v.Kind() == reflect.Struct:
		w.mapping(n, key, v)
	case v.Kind() == reflect.Pointer:
		if isNull(n) {
			w.l.reportKey(key, "has no value; write {} for the defaults")
			return
		}
		v.Set(reflect.New(v.Type().Elem()))
		w.mapping(n, key, v.Elem())
	case v.Kind() == reflect.Map:
		w.upstreams(n, key, v.Interface().(map[string]*Upstream))
	case v.Kind() == reflect.Slice:
		w.list(n, key, v)
	default:
		if err := setNode(n, v); err != nil {
			w.l.reportKey(key, "%v", err)
		}
	}
}

// The tags that YAML gives to values by how they are written.
const (
	nullTag      = "!!null"
	textTag      = "!!str"
	timestampTag = "!!timestamp"
)

// resolve returns the node that an alias stands for, and n itself if it is no alias.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// tagOf returns the tag of a scalar: its own if YAML knows it, else the one of how it is written.
func tagOf(n *yaml.Node) string {
	if strings.HasPrefix(n.ShortTag(), "!!") {
		return n.ShortTag()
	}
	plain := yaml.Node{Kind: n.Kind, Value: n.Value, Style: n.Style &^ yaml.TaggedStyle}
	return plain.ShortTag()
}

// isNull reports whether n is null or has no value.
func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && tagOf(n) == nullTag }

// isText reports whether n is a text. A date is one: the configuration has no dates.
func isText(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && (tagOf(n) == textTag || tagOf(n) == timestampTag)
}

// mapping lays a YAML mapping over a struct.
func (w walk) mapping(n *yaml.Node, key string, v reflect.Value) {
	entries, ok := entriesOf(n)
	if !ok {
		w.l.report(w.l.at(n), key, "want keys and values (%s), got %s", strings.Join(keysOf(v.Type()), ", "), describe(n))
		return
	}
	for _, e := range entries {
		name := e.key.Value
		if e.first != nil {
			w.repeated(e, childKey(key, name))
			continue
		}
		field, known := fieldOf(v, name)
		if !known {
			hint := ""
			if !w.l.isFull() { // a problem that isn't kept needs none
				hint = didYouMean(name, keysOf(v.Type()))
			}
			w.l.report(w.l.at(e.key), childKey(key, name), "unknown key; %s", hint)
			continue
		}
		w.node(e.value, childKey(key, name), field)
	}
}

// maxUpstreams bounds the upstreams: each has a client of its own.
const maxUpstreams = 1000

// upstreams lays a YAML mapping over the upstreams: a name that is known is
// changed, null drops it, another name is added.
func (w walk) upstreams(n *yaml.Node, key string, m map[string]*Upstream) {
	entries, ok := entriesOf(n)
	if !ok {
		w.l.report(w.l.at(n), key, "want registries by name, got %s", describe(n))
		return
	}
	for _, e := range entries {
		if w.l.isFull() {
			return
		}
		name := e.key.Value
		k := childKey(key, name)
		if e.first != nil {
			w.repeated(e, k)
			continue
		}
		value := resolve(e.value)
		at := w.l.at(e.key)
		u, known := m[name]
		if isNull(value) {
			switch {
			case value.Value == "":
				w.l.report(at, k, "has no value; write {} for an upstream with the defaults, null to drop a built-in one")
			case !known:
				w.l.report(at, k, "null drops an upstream, but none has this name; %s", didYouMean(name, names(m)))
			default:
				delete(m, name)
			}
			continue
		}
		if !known && len(m) >= maxUpstreams {
			w.l.report(at, k, "want at most %d upstreams", maxUpstreams)
			return
		}
		if !known {
			u = DefaultUpstream(name)
			m[name] = u
		}
		w.mapping(value, k, reflect.ValueOf(u).Elem())
		w.l.where[k] = at
	}
}

// list lays a YAML sequence over a slice. It takes the place of the whole list
// that was there.
func (w walk) list(n *yaml.Node, key string, v reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		w.l.reportKey(key, "want a list, got %s; write it as [a, b]", describe(n))
		return
	}
	if len(n.Content) > maxValues-*w.values {
		*w.values = maxValues
		w.node(n, key, v)
		return
	}
	list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, item := range n.Content {
		if rule, ok := list.Index(i).Addr().Interface().(*TagRule); ok {
			*rule = DefaultTagRule()
		}
		w.node(item, fmt.Sprintf("%s[%d]", key, i), list.Index(i))
	}
	v.Set(list)
}

// entry is a key of a mapping with its value.
type entry struct {
	key, value *yaml.Node
	// first is the same key further up in the same mapping, or nil.
	first *yaml.Node
}

// entriesOf returns the keys and values of a mapping, and whether n is one. Nothing at all, as
// where all keys below one are commented out, is a mapping without any.
func entriesOf(n *yaml.Node) ([]entry, bool) {
	if isNull(n) {
		return nil, true
	}
	if n.Kind != yaml.MappingNode {
		return nil, false
	}
	list, seen := make([]entry, 0, len(n.Content)/2), map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := resolve(n.Content[i])
		e := entry{key: key, value: n.Content[i+1], first: seen[key.Value]}
		if e.first == nil {
			seen[key.Value] = key
		}
		list = append(list, e)
	}
	return list, true
}

// repeated reports a key that the mapping has already.
func (w walk) repeated(e entry, key string) {
	w.l.report(w.l.at(e.key), key, "the key is already set in line %d; remove one of the two", e.first.Line)
}

// names gives the names of upstreams, sorted.
func names(m map[string]*Upstream) []string {
	var list []string
	for name := range m {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// describe says in words what a node is.
func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "keys and values"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case isNull(n):
		return "nothing"
	case isText(n):
		return "a text"
	}
	return n.Value
}
