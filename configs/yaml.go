package configs

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// readYAML lays a YAML document over the configuration. The tree is walked
// along the types of Config rather than decoded by reflection at once, because
// then every problem is found in one run, each with its place and its key, and
// a key that is given leaves the defaults beside it as they are. It returns false if the
// text is not a YAML document, of which nothing was read.
func (l *loader) readYAML(text []byte) bool {
	if t, err := CheckYAML(text, maxTokens); err != nil {
		l.report(l.at(t), "", "this is not a configuration: %v", err)
		return false
	}
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		var syntax yaml.Error
		if errors.As(err, &syntax) { // its Error quotes the document, in time and memory out of proportion
			l.report(l.at(syntax.GetToken()), "", "this is no valid YAML: %s", syntax.GetMessage())
		} else {
			l.report(place{text: l.file}, "", "this is no valid YAML: %v", err)
		}
		return false
	}
	w := walk{l: l, anchors: map[string]ast.Node{}, values: new(int)}
	read := false
	for _, doc := range file.Docs {
		if doc.Body == nil || doc.Body.Type() == ast.NullType || doc.Body.Type() == ast.CommentType {
			continue
		}
		if read {
			l.report(l.at(doc.Body.GetToken()), "", "a second YAML document; a configuration is one")
			return true
		}
		read = true
		w.node(doc.Body, "", reflect.ValueOf(l.cfg).Elem())
	}
	return true
}

// at tells the place of a token.
func (l *loader) at(t *token.Token) place {
	if t == nil || t.Position == nil {
		return place{text: l.file}
	}
	return place{text: fmt.Sprintf("%s:%d:%d", l.file, t.Position.Line, t.Position.Column), line: t.Position.Line}
}

// walk carries what is needed on the way down a document.
type walk struct {
	l       *loader
	anchors map[string]ast.Node
	// values counts the nodes that were laid over the configuration.
	values *int
}

// maxValues bounds them: a list of aliases of a list of aliases is short to write and
// long to read.
const maxValues = maxTokens

// node lays n over v. The depth is that of Config, whatever the document does:
// an alias that holds itself ends where the types end.
func (w walk) node(n ast.Node, key string, v reflect.Value) {
	if w.l.isFull() || *w.values > maxValues {
		return
	}
	if *w.values++; *w.values > maxValues {
		w.l.report(w.l.at(n.GetToken()), key, "the configuration has more than %d values, those that aliases repeat included", maxValues)
		return
	}
	n = w.resolve(n)
	if key != "" {
		w.l.where[key] = w.l.at(n.GetToken())
	}
	switch {
	case v.Kind() == reflect.Struct:
		w.mapping(n, key, v)
	case v.Kind() == reflect.Pointer:
		if _, null := n.(*ast.NullNode); null {
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

// maxSteps bounds how many tags, anchors and aliases may stand before a value:
// an anchor can hold an alias of itself.
const maxSteps = 16

// resolve follows tags, anchors and aliases to the node that they stand for. An
// alias that stands for nothing is given as it is.
func (w walk) resolve(n ast.Node) ast.Node {
	for range maxSteps {
		switch t := n.(type) {
		case *ast.AnchorNode:
			w.anchors[t.Name.String()] = t.Value
			n = t.Value
		case *ast.AliasNode:
			to, ok := w.anchors[t.Value.String()]
			if !ok {
				return n
			}
			n = to
		case *ast.TagNode:
			n = t.Value
		default:
			return n
		}
	}
	return n
}

// mapping lays a YAML mapping over a struct.
func (w walk) mapping(n ast.Node, key string, v reflect.Value) {
	entries, ok := entriesOf(n)
	if !ok {
		w.l.report(w.l.at(n.GetToken()), key, "want keys and values (%s), got %s", strings.Join(keysOf(v.Type()), ", "), describe(n))
		return
	}
	for _, e := range entries {
		name := keyText(e.Key)
		field, known := fieldOf(v, name)
		if !known {
			w.l.report(w.l.at(e.Key.GetToken()), childKey(key, name), "unknown key; %s", didYouMean(name, keysOf(v.Type())))
			continue
		}
		w.node(e.Value, childKey(key, name), field)
	}
}

// maxUpstreams bounds the upstreams: each has a client of its own.
const maxUpstreams = 1000

// upstreams lays a YAML mapping over the upstreams: a name that is known is
// changed, null drops it, another name is added.
func (w walk) upstreams(n ast.Node, key string, m map[string]*Upstream) {
	entries, ok := entriesOf(n)
	if !ok {
		w.l.report(w.l.at(n.GetToken()), key, "want registries by name, got %s", describe(n))
		return
	}
	for _, e := range entries {
		if w.l.isFull() {
			return
		}
		name := keyText(e.Key)
		k := childKey(key, name)
		value := w.resolve(e.Value)
		at := w.l.at(e.Key.GetToken())
		u, known := m[name]
		if null, ok := value.(*ast.NullNode); ok {
			switch {
			case null.Token.Type == token.ImplicitNullType:
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
func (w walk) list(n ast.Node, key string, v reflect.Value) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		w.l.reportKey(key, "want a list, got %s; write it as [a, b]", describe(n))
		return
	}
	if len(seq.Values) > maxValues-*w.values {
		*w.values = maxValues
		w.node(n, key, v)
		return
	}
	list := reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values))
	for i, item := range seq.Values {
		if rule, ok := list.Index(i).Addr().Interface().(*TagRule); ok {
			*rule = DefaultTagRule()
		}
		w.node(item, fmt.Sprintf("%s[%d]", key, i), list.Index(i))
	}
	v.Set(list)
}

// entriesOf gives the keys and values of a mapping. Nothing at all, as where
// all keys below one are commented out, is a mapping without any.
func entriesOf(n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch t := n.(type) {
	case *ast.MappingNode:
		return t.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{t}, true
	case *ast.NullNode:
		return nil, true
	}
	return nil, false
}

// keyText gives a key as it was meant: without quotes.
func keyText(k ast.MapKeyNode) string {
	if s, ok := k.(*ast.StringNode); ok {
		return s.Value
	}
	return k.GetToken().Value
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
func describe(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "keys and values"
	case *ast.SequenceNode:
		return "a list"
	case *ast.NullNode:
		return "nothing"
	case *ast.AliasNode:
		return "an alias of an anchor that is not above it, or holds it"
	case *ast.StringNode, *ast.LiteralNode:
		return "a text"
	}
	return n.GetToken().Value
}
