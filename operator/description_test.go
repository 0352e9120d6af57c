package operator_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

// description is openapi.yaml, as a document and as schemas. They are stricter here
// than for clients: an object has no properties that are not described.
type description struct {
	doc map[string]any

	mu       sync.Mutex // guards compiler
	compiler *jsonschema.Compiler
}

const descriptionURL = "http://entrepot.test/openapi.json"

// readDescription reads the file once.
var readDescription = sync.OnceValues(func() (*description, error) {
	text, err := os.ReadFile("openapi.yaml")
	if err != nil {
		return nil, err
	}
	var tree map[string]any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		return nil, fmt.Errorf("openapi.yaml: %w", err)
	}
	// What JSON has for numbers.
	b, err := json.Marshal(tree)
	if err != nil {
		return nil, err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	shut(doc)
	d := &description{doc: doc.(map[string]any), compiler: jsonschema.NewCompiler()}
	d.compiler.AssertFormat()
	d.compiler.DefaultDraft(jsonschema.Draft2020)
	return d, d.compiler.AddResource(descriptionURL, doc)
})

// shut lets no object that says its properties have others.
func shut(node any) {
	switch node := node.(type) {
	case map[string]any:
		if _, ok := node["properties"].(map[string]any); ok && node["additionalProperties"] == nil {
			node["unevaluatedProperties"] = false
		}
		for _, sub := range node {
			shut(sub)
		}
	case []any:
		for _, sub := range node {
			shut(sub)
		}
	}
}

func described(t testing.TB) *description {
	t.Helper()
	d, err := readDescription()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// routes lists what is described, in order: "GET /api/v1/status".
func (d *description) routes() []string {
	var list []string
	paths := d.doc["paths"].(map[string]any)
	for _, path := range sortedKeys(paths) {
		for _, method := range sortedKeys(paths[path].(map[string]any)) {
			list = append(list, strings.ToUpper(method)+" "+path)
		}
	}
	return list
}

// operation gives the path of keys to what describes a route.
func operation(route string) []string {
	method, path, _ := strings.Cut(route, " ")
	return []string{"paths", path, strings.ToLower(method)}
}

// at gives what stands at a path of keys, references followed, and that path; nil where
// nothing does.
func (d *description) at(path ...string) (map[string]any, []string) {
	var here any = d.doc
	for i, key := range path {
		switch node := here.(type) {
		case map[string]any:
			here = node[key]
		case []any:
			n, err := strconv.Atoi(key)
			if err != nil || n >= len(node) {
				return nil, nil
			}
			here = node[n]
		}
		next, _ := here.(map[string]any)
		if ref, ok := next["$ref"].(string); ok && next["properties"] == nil {
			steps := strings.Split(strings.TrimPrefix(ref, "#/"), "/")
			return d.at(append(steps, path[i+1:]...)...)
		}
	}
	node, _ := here.(map[string]any)
	if node == nil {
		return nil, nil
	}
	return node, path
}

// parameter is one of a request's query.
type parameter struct {
	name, text string
	required   bool
	schema     []string // where it is
}

// parameters lists those of a route.
func (d *description) parameters(route string) []parameter {
	op, _ := d.at(operation(route)...)
	list, _ := op["parameters"].([]any)
	var all []parameter
	for i := range list {
		p, at := d.at(append(operation(route), "parameters", strconv.Itoa(i))...)
		_, schema := d.at(append(slices.Clone(at), "schema")...)
		name, _ := p["name"].(string)
		text, _ := p["description"].(string)
		required, _ := p["required"].(bool)
		all = append(all, parameter{name, text, required, schema})
	}
	return all
}

// problems are what is answered where it is not done.
var problems = []string{"components", "schemas", "Problem"}

// holds holds an answer, and the request that it answers, to the description.
func (d *description) holds(t testing.TB, r *http.Request, request []byte, status int, contentType string, body []byte) {
	t.Helper()
	what := r.Method + " " + r.URL.Path
	contentType, _, _ = mime.ParseMediaType(contentType)
	if op, _ := d.at(operation(what)...); op == nil {
		if status != http.StatusNotFound && status != http.StatusMethodNotAllowed {
			t.Errorf("%s is not described in openapi.yaml, and is answered with %d", what, status)
		}
		d.valid(t, what, problems, body)
		return
	}
	answer := "default"
	if status == http.StatusOK {
		answer = "200"
		d.holdsRequest(t, r, request)
	}
	where := append(operation(what), "responses", answer, "content", contentType)
	if media, _ := d.at(where...); media == nil {
		t.Errorf("%s is answered with %d and %q, which openapi.yaml does not describe", what, status, contentType)
		return
	}
	d.validBody(t, what, append(where, "schema"), contentType, body)
}

// validBody holds a body to the schema that stands at a path; without one, it is the
// bytes of a file.
func (d *description) validBody(t testing.TB, what string, schema []string, contentType string, body []byte) {
	t.Helper()
	_, at := d.at(schema...)
	switch {
	case at == nil:
	case contentType == "application/x-ndjson":
		last := ""
		for lines := range bytes.Lines(body) {
			d.valid(t, what, at, lines)
			var line map[string]json.RawMessage
			_ = json.Unmarshal(lines, &line) // valid has told
			for last = range line {
			}
		}
		if last != "result" && last != "error" {
			t.Errorf("%s: the last line has %q, and neither a result nor an error", what, last)
		}
	default:
		d.valid(t, what, at, body)
	}
}

// holdsRequest holds a request that was understood to the description.
func (d *description) holdsRequest(t testing.TB, r *http.Request, request []byte) {
	t.Helper()
	what := r.Method + " " + r.URL.Path
	query := r.URL.Query()
	for _, p := range d.parameters(what) {
		values, given := query[p.name]
		if p.required && !given {
			t.Errorf("%s is answered with 200 without %s, which openapi.yaml requires", what, p.name)
		}
		for _, v := range values {
			d.valid(t, what+"?"+p.name, p.schema, d.asJSON(p, v))
		}
		delete(query, p.name)
	}
	for name := range query {
		t.Errorf("%s is answered with 200 although openapi.yaml describes no parameter %s", what, name)
	}
	op, _ := d.at(append(operation(what), "requestBody")...)
	contentType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case contentType == "" && op["required"] == true:
		t.Errorf("%s is answered with 200 without a body, which openapi.yaml requires", what)
	case contentType != "":
		media := append(operation(what), "requestBody", "content", contentType)
		if m, _ := d.at(media...); m == nil {
			t.Errorf("%s takes a body of %s, which openapi.yaml does not describe", what, contentType)
		} else if _, at := d.at(append(media, "schema")...); at != nil && contentType == "application/json" {
			d.valid(t, what, at, request)
		}
	}
}

// asJSON gives a value of the query as JSON, by what its schema says that it is.
func (d *description) asJSON(p parameter, value string) []byte {
	schema, _ := d.at(p.schema...)
	if items, at := d.at(append(slices.Clone(p.schema), "items")...); items != nil {
		return fmt.Appendf(nil, "[%s]", d.asJSON(parameter{schema: at}, value))
	}
	if json.Valid([]byte(value)) && schema["type"] != "string" {
		return []byte(value)
	}
	b, _ := json.Marshal(value) // of a string it never fails
	return b
}

// valid holds JSON to the schema that stands at a path.
func (d *description) valid(t testing.TB, what string, schema []string, document []byte) {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(document))
	if err != nil {
		t.Errorf("%s: no JSON: %v: %s", what, err, document)
		return
	}
	s, err := d.compile(schema)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if err := s.Validate(v); err != nil {
		t.Errorf("%s: %v\nin %s", what, err, document)
	}
}

// compile gives the schema that stands at a path.
func (d *description) compile(path []string) (*jsonschema.Schema, error) {
	pointer := ""
	for _, step := range path {
		pointer += "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(step)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.compiler.Compile(descriptionURL + "#" + (&url.URL{Fragment: pointer}).EscapedFragment())
}

// keys lists the keys below the line of openapi.yaml that is section, as they stand.
func keys(t *testing.T, section string, indent int) []string {
	t.Helper()
	f, err := os.Open("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var list []string
	inside := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		depth := len(line) - len(strings.TrimLeft(line, " "))
		switch {
		case line == section:
			inside = true
		case inside && line != "" && depth < indent:
			inside = false
		case inside && depth == indent && !strings.HasPrefix(line[depth:], "#"):
			name, _, _ := strings.Cut(line[depth:], ":")
			list = append(list, name)
		}
	}
	return list
}

func sortedKeys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }
