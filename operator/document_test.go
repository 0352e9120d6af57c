package operator_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/entrepot-dev/entrepot/operator"
)

var update = flag.Bool("update", false, "write what docs/admin-api.md says of each route anew")

// The part of docs/admin-api.md that is generated of openapi.yaml and the exercises.
const (
	document      = "../docs/admin-api.md"
	documentBegin = "<!-- routes: generated, go test ./operator -run TestTheDocument -update -->\n"
	documentEnd   = "<!-- /routes -->\n"
)

// TestTheDocumentHasEveryRouteWithAnExample holds that docs/admin-api.md says of each
// route what openapi.yaml says, and shows each exercise with an answer that is as
// described. What varies in answers from run to run may differ.
func TestTheDocumentHasEveryRouteWithAnExample(t *testing.T) {
	b, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), documentBegin)
	old, after, closed := strings.Cut(rest, documentEnd)
	if !ok || !closed {
		t.Fatalf("%s: want %q and later %q", document, documentBegin, documentEnd)
	}
	w, answers := exercised(t)
	made := w.document(answers)
	if *update {
		if err := os.WriteFile(document, []byte(before+documentBegin+made+documentEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		old = made
	}
	if want, got := withoutAnswers(made), withoutAnswers(old); got != want {
		t.Errorf("%s is not what openapi.yaml and exercises_test.go say; run\n  go test ./operator -run TestTheDocument -update\nwant\n%s\ngot\n%s", document, want, got)
	}
	blocks := answerBlock.FindAllStringSubmatch(old, -1)
	d := described(t)
	for _, r := range d.routes() {
		for _, a := range answers {
			if a.route() != r || a.saves != "" {
				continue
			}
			if len(blocks) == 0 {
				t.Fatalf("%s does not show all answers", document)
			}
			schema := append(operation(r), "responses", "200", "content", a.contentType, "schema")
			d.validBody(t, document+": "+r, schema, a.contentType, []byte(blocks[0][1]))
			blocks = blocks[1:]
		}
	}
}

// answerBlock is an answer in the document.
var answerBlock = regexp.MustCompile("(?s)```json\n(.*?)```\n")

// TestTheDocumentShowsAProblemAsItIs is about the one that the text has.
func TestTheDocumentShowsAProblemAsItIs(t *testing.T) {
	b, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	_, _, problem := newWorld(t, nil).do(exercise{method: "GET", name: "history", query: "reference=ghost:1"})
	if !bytes.Contains(b, problem) {
		t.Errorf("%s does not have the problem %s", document, problem)
	}
}

func withoutAnswers(text string) string {
	return answerBlock.ReplaceAllString(text, "```json\n```\n")
}

// document makes the generated part.
func (w *world) document(answers []answer) string {
	d := described(w.t)
	var s strings.Builder
	s.WriteString("| route | what it does |\n|---|---|\n")
	for _, r := range d.routes() {
		op, _ := d.at(operation(r)...)
		fmt.Fprintf(&s, "| [`%s`](#%s) | %s |\n", r, anchor(r), op["summary"])
	}
	for _, r := range d.routes() {
		op, _ := d.at(operation(r)...)
		fmt.Fprintf(&s, "\n### %s\n\n%s.", r, op["summary"])
		if text, ok := op["description"].(string); ok {
			s.WriteString(" " + strings.TrimSpace(text))
		}
		s.WriteString("\n")
		d.documentParameters(&s, r)
		d.documentBody(&s, r)
		for _, a := range answers {
			if a.route() == r {
				fmt.Fprintf(&s, "\n%s:\n\n```sh\n%s\n```\n", a.says, a.curl())
				if a.body != nil && len(a.json()) > inlineBody {
					var indented bytes.Buffer
					_ = json.Indent(&indented, a.json(), "", "  ") // it has been sent
					fmt.Fprintf(&s, "\nwith `request.json`:\n\n```text\n%s\n```\n", &indented)
				}
				if a.saves == "" {
					fmt.Fprintf(&s, "\n```json\n%s```\n", w.shown(a))
				}
			}
		}
	}
	return s.String()
}

// anchor is what a heading is linked by.
func anchor(heading string) string {
	return strings.ReplaceAll(regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(heading), ""), " ", "-")
}

func (d *description) documentParameters(s *strings.Builder, route string) {
	list := d.parameters(route)
	if len(list) > 0 {
		s.WriteString("\n| parameter | type | what it is |\n|---|---|---|\n")
	}
	for _, p := range list {
		text := p.text
		if p.required {
			text += " (required)"
		}
		fmt.Fprintf(s, "| `%s` | %s | %s |\n", p.name, d.kind(p.schema), cell(text))
	}
}

// documentBody says what is sent.
func (d *description) documentBody(s *strings.Builder, route string) {
	body, _ := d.at(append(operation(route), "requestBody")...)
	if body == nil {
		return
	}
	content, _ := body["content"].(map[string]any)
	for kind := range content {
		fmt.Fprintf(s, "\nIts body is `%s`: %s.\n", kind, body["description"])
		schema, at := d.at(append(operation(route), "requestBody", "content", kind, "schema")...)
		properties, _ := schema["properties"].(map[string]any)
		if len(properties) == 0 {
			continue
		}
		s.WriteString("\n| key | type | what it is |\n|---|---|---|\n")
		for _, name := range sortedKeys(properties) {
			p, where := d.at(append(slices.Clone(at), "properties", name)...)
			own, _ := properties[name].(map[string]any)
			text, _ := own["description"].(string)
			if text == "" {
				text, _ = p["description"].(string)
			}
			fmt.Fprintf(s, "| `%s` | %s | %s |\n", name, d.kind(where), cell(text))
		}
	}
}

// kind says of which type what stands at a path is.
func (d *description) kind(path []string) string {
	node, _ := d.at(path...)
	word, _ := node["type"].(string)
	switch format, _ := node["format"].(string); {
	case word == "array":
		_, items := d.at(append(slices.Clone(path), "items")...)
		return "list of " + d.kind(items)
	case format == "date-time":
		return "time (RFC 3339)"
	case node["enum"] != nil:
		var words []string
		for _, v := range node["enum"].([]any) {
			words = append(words, fmt.Sprintf("`%v`", v))
		}
		return strings.Join(words, ", ")
	}
	return word
}

func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ").Replace(strings.TrimSpace(text))
}

// inlineBody is how long a body may be, in bytes, to stand in the command.
const inlineBody = 200

// json is the body of an exercise.
func (e exercise) json() []byte {
	b, _ := json.Marshal(e.body) // it has been sent
	return b
}

// curl is an exercise for people.
func (e exercise) curl() string {
	words := "curl -s -H @/var/lib/entrepot/admin.token"
	if e.method != http.MethodGet {
		words += " -X " + e.method
	}
	switch {
	case e.body != nil:
		text := string(e.json())
		if len(text) > inlineBody {
			text = "@request.json"
		}
		words += " -H 'Content-Type: application/json' -d '" + text + "'"
	case e.file != "":
		words += " -H 'Content-Type: application/octet-stream' -T " + e.file
	}
	if e.saves != "" {
		words += " -o " + e.saves
	}
	url := "http://127.0.0.1:5001" + operator.Prefix + e.name
	if e.query != "" {
		url = "'" + url + "?" + e.query + "'"
	}
	return words + " " + url
}

// Most of an answer that is shown: entries of a list, lines.
const shownEntries = 2

var someDay = regexp.MustCompile(`"\d{4}-\d\d-\d\d"`)

var someTime = regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:.]+(Z|[+-]\d\d:\d\d)`)

// shown gives an answer as the document has it: shortened, all times one, and the
// directory that of a real cache.
func (w *world) shown(a answer) string {
	var s strings.Builder
	if a.contentType == "application/x-ndjson" {
		lines := bytes.Split(bytes.TrimSpace(a.body), []byte("\n"))
		if a.byTheClock {
			lines = lines[len(lines)-1:]
		}
		if len(lines) > shownEntries+1 {
			lines = append(lines[:shownEntries:shownEntries], lines[len(lines)-1])
		}
		for _, l := range lines {
			s.Write(l)
			s.WriteByte('\n')
		}
	} else {
		var v ordered
		if err := json.Unmarshal(a.body, &v); err != nil {
			w.t.Fatal(err)
		}
		var out bytes.Buffer
		if err := json.Indent(&out, []byte(v), "", "  "); err != nil {
			w.t.Fatal(err)
		}
		s.Write(out.Bytes())
		s.WriteByte('\n')
	}
	text := someTime.ReplaceAllString(s.String(), "2026-11-01T12:30:00Z")
	text = someDay.ReplaceAllString(text, `"2026-11-01"`)
	return strings.ReplaceAll(text, w.api.CacheDir, "/var/lib/entrepot")
}

// ordered is JSON whose lists are cut short, the keys of its objects in their order.
type ordered string

func (o *ordered) UnmarshalJSON(b []byte) error {
	b = bytes.TrimSpace(b)
	dec := json.NewDecoder(bytes.NewReader(b))
	var parts []string
	switch b[0] {
	case '[':
		var list []ordered
		if err := dec.Decode(&list); err != nil {
			return err
		}
		for _, v := range list[:min(len(list), shownEntries)] {
			parts = append(parts, string(v))
		}
		*o = ordered("[" + strings.Join(parts, ",") + "]")
	case '{':
		if _, err := dec.Token(); err != nil {
			return err
		}
		for dec.More() {
			key, err := dec.Token()
			if err != nil {
				return err
			}
			var v ordered
			if err := dec.Decode(&v); err != nil {
				return err
			}
			parts = append(parts, fmt.Sprintf("%q:%s", key, v))
		}
		*o = ordered("{" + strings.Join(parts, ",") + "}")
	default:
		*o = ordered(b)
	}
	return nil
}
