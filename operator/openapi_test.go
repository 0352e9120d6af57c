package operator_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/operator"
	"github.com/entrepot-dev/entrepot/upstream"
)

func TestEveryRouteIsDescribedAndDescribedIsARoute(t *testing.T) {
	described, routes := described(t).routes(), operator.New(operator.Options{}).Routes()
	for _, r := range routes {
		if !slices.Contains(described, r) {
			t.Errorf("openapi.yaml does not describe %s", r)
		}
	}
	for _, d := range described {
		if !slices.Contains(routes, d) {
			t.Errorf("openapi.yaml describes %s, which the API does not answer", d)
		}
	}
}

// answer is what an exercise was answered with.
type answer struct {
	exercise
	contentType string
	body        []byte
}

// exercised does all exercises, each of which has to be answered with 200. The world
// that they are asked in holds what is asked and answered to openapi.yaml.
func exercised(t *testing.T) (*world, []answer) {
	t.Helper()
	w := newWorld(t, func(o *operator.Options) {
		o.Reload = func() (operator.Reloaded, error) {
			return operator.Reloaded{Changed: []string{"upstreams.docker.io.tags"}}, nil
		}
		o.Configuration = func() operator.Configuration {
			return operator.Configuration{
				YAML: "listen: :5000\nupstreams:\n  docker.io:\n    credentials:\n      password: \"***\"\n",
				File: "/etc/entrepot/entrepot.yml", Changed: []string{"upstreams.docker.io.tags"},
				Values: map[string]string{"listen": `":5000"`, "upstreams.docker.io.credentials.password": `"***"`},
			}
		}
		o.Examine = func(context.Context) []upstream.Examination {
			return []upstream.Examination{{
				Upstream: "docker.io", Endpoint: "https://registry-1.docker.io", Address: "192.0.2.7:443", Status: http.StatusUnauthorized,
				Dated: true, Access: upstream.AccessAccepted, Breaker: "closed",
				Quota: &upstream.QuotaLeft{Limit: 100, Remaining: 76, Resets: time.Now()},
			}}
		}
		o.Watch = func(_ context.Context, _ operator.Interest, began func() error, tell func(*operator.Request) error) (int64, error) {
			return 0, errors.Join(began(), tell(&operator.Request{
				Time: time.Now(), Method: http.MethodGet, Kind: "manifest", Upstream: "docker.io", Repository: "library/nginx", Reference: "1.27",
				Outcome: "hit", Status: http.StatusOK, Bytes: 1778, Client: "192.0.2.9", UserAgent: "containerd/2.1.4",
			}))
		}
		o.Counts = metrics.Discard()
		o.Counts.Requests.WithLabelValues("docker.io", "manifest", "hit", "200").Add(940)
		o.Counts.Requests.WithLabelValues("docker.io", "blob", "miss", "200").Add(60)
		o.Counts.ClientBytes.WithLabelValues("docker.io", "blob").Add(12 << 30)
		o.Counts.UpstreamBytes.WithLabelValues("docker.io").Add(2 << 30)
		o.Counts.UpstreamPulls.WithLabelValues("docker.io").Add(24)
		o.Counts.PullsSaved.WithLabelValues("docker.io").Add(480)
		o.Counts.RateLimit.WithLabelValues("docker.io").Set(100)
		o.Counts.RateRemaining.WithLabelValues("docker.io").Set(76)
		o.Counts.RateReset.WithLabelValues("docker.io").Set(float64(time.Now().Unix()))
		o.Process = operator.Process{PID: 4711, UID: 65532, OpenFiles: 524288, OpenFilesWanted: 13088}
	})
	begin(w)
	var answers []answer
	for _, e := range exercises {
		status, contentType, body := w.do(e)
		if status != http.StatusOK {
			t.Errorf("%s %s?%s: %d %s", e.method, e.name, e.query, status, body)
			continue
		}
		answers = append(answers, answer{e, contentType, body})
	}
	return w, answers
}

// do sends the request of an exercise.
func (w *world) do(e exercise) (status int, contentType string, body []byte) {
	w.t.Helper()
	var sent io.Reader
	kind := ""
	switch {
	case e.body != nil:
		b, err := json.Marshal(e.body)
		if err != nil {
			w.t.Fatal(err)
		}
		sent, kind = bytes.NewReader(b), "application/json"
	case e.file != "":
		sent, kind = bytes.NewReader(e.upload(w)), "application/octet-stream"
	}
	req, err := http.NewRequestWithContext(w.t.Context(), e.method, w.client.Base+operator.Prefix+e.name+"?"+e.query, sent)
	if err != nil {
		w.t.Fatal(err)
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := w.client.HTTP.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), body
}

func TestEveryRouteAnswersAsDescribed(t *testing.T) {
	w, _ := exercised(t)
	asked := map[string]bool{}
	for _, e := range exercises {
		query, err := url.ParseQuery(e.query)
		if err != nil {
			t.Errorf("%s: %v", e.name, err)
		}
		for name := range query {
			asked[e.route()+"?"+name] = true
		}
	}
	for _, r := range w.api.Routes() {
		if !w.answered[r] {
			t.Errorf("%s has no exercise: add one to exercises_test.go", r)
		}
		for _, p := range described(t).parameters(r) {
			if !asked[r+"?"+p.name] {
				t.Errorf("%s?%s= is in no exercise: add one to exercises_test.go", r, p.name)
			}
		}
	}
}

// TestWhatIsNotAsDescribedIsRefused changes the exercises: a parameter that is required
// is left out, one that is no string is nonsense, and a body is no JSON.
func TestWhatIsNotAsDescribedIsRefused(t *testing.T) {
	w := newWorld(t, nil)
	begin(w)
	refused := func(e exercise, kind string, body []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), e.method, w.client.Base+operator.Prefix+e.name+"?"+e.query, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if kind != "" {
			req.Header.Set("Content-Type", kind)
		}
		resp, err := w.client.HTTP.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s %s?%s with the body %q: want 400, got %d %s", e.method, e.name, e.query, body, resp.StatusCode, text)
		}
	}
	d := described(t)
	for _, e := range exercises {
		for _, p := range d.parameters(e.route()) {
			schema, _ := d.at(p.schema...)
			query, err := url.ParseQuery(e.query)
			if err != nil {
				t.Fatal(err)
			}
			if p.required {
				query.Del(p.name)
				refused(exercise{method: e.method, name: e.name, query: query.Encode()}, "", nil)
			}
			if schema["type"] != "string" || schema["format"] != nil || schema["enum"] != nil || schema["pattern"] != nil {
				query.Set(p.name, "\x00 nonsense")
				refused(exercise{method: e.method, name: e.name, query: query.Encode()}, "", nil)
			}
		}
		if e.body != nil {
			for _, body := range []string{`{`, `[]`, `{"nobodyKnowsThis": 1}`} {
				refused(e, "application/json", []byte(body))
			}
		}
	}
}

func TestErrorsTellWhatToDo(t *testing.T) {
	w := newWorld(t, nil)
	for _, c := range []struct {
		method, name, query string
		status              int
		detail              string
	}{
		{"GET", "explain", "", 400, "name a reference: /api/v1/explain?reference="},
		{"GET", "explain", "reference=No+Such+Name", 400, "is no reference of an image, such as"},
		{"GET", "explain", "reference=quay.example.test/app:1", 404, "is not configured here"},
		{"GET", "inspect", "", 400, "name a reference: /api/v1/inspect?reference="},
		{"GET", "inspect", "reference=nginx:never&cached=true", 404, "nginx:never is not in the cache"},
		{"GET", "manifest", "reference=nginx&platform=all", 400, "a manifest is for one platform"},
		{"POST", "verify", "reference=nginx&platform=amd64", 400, "os/arch"},
		{"POST", "pin", "reference=nginx:never", 404, "fetch it with `entrepot warm docker.io/library/nginx:never` first"},
		{"POST", "unpin", "", 400, "name a reference: /api/v1/unpin?reference="},
		{"POST", "purge", "", 400, "say what to purge: /api/v1/purge?reference="},
		{"POST", "purge", "reference=nginx&upstream=docker.io", 400, "a reference goes with neither"},
		{"POST", "purge", "before=yesterday", 400, "before is a time, such as"},
		{"POST", "purge", "reference=nginx:never", 404, "nginx:never is not in the cache"},
		{"POST", "purge", "upstream=quay.example.test", 404, "nothing of quay.example.test is in the cache"},
		{"GET", "stats", "top=-1", 400, "top is a number up to 10000"},
		{"POST", "gc", "dry=maybe", 400, "dry is true or false"},
		{"GET", "history", "", 400, "name a tag: /api/v1/history?reference="},
		{"GET", "history", "reference=nginx:never", 404, "nginx:never"},
		{"GET", "history", "reference=nginx@" + string(digest.FromString("")), 400, "names a digest, which never changes; name a tag"},
		{"POST", "accept", "", 400, "name a tag: /api/v1/accept?reference="},
		{"POST", "accept", "reference=nginx:never", 404, "is no tag that is known here"},
		{"GET", "diff", "", 400, "since is a time, such as"},
		{"GET", "diff", "since=yesterday", 400, "since is a time, such as"},
		{"POST", "scrub", "rate=-1", 400, "rate is in bytes a second, such as"},
		{"POST", "export/plan", "", 400, "the body is not the JSON that"},
		{"POST", "reload", "", 409, "nothing is served"},
		{"GET", "nothing", "", 404, "there is no /api/v1/nothing; /api/v1/openapi.yaml says what there is"},
		{"GET", "scrub", "", 405, "/api/v1/scrub takes POST, not GET"},
		{"DELETE", "status", "", 405, "/api/v1/status takes GET, not DELETE"},
	} {
		status, contentType, body := w.do(exercise{method: c.method, name: c.name, query: c.query})
		var e operator.Error
		err := json.Unmarshal(body, &e)
		if err != nil || status != c.status || e.Status != c.status || e.Title != http.StatusText(c.status) || contentType != "application/problem+json" || !strings.Contains(e.Detail, c.detail) {
			t.Errorf("%s %s?%s: want %d and %q, got %d, %s, %s", c.method, c.name, c.query, c.status, c.detail, status, contentType, body)
		}
	}
}

func TestAReloadThatFailsIsAConflict(t *testing.T) {
	w := newWorld(t, func(o *operator.Options) {
		o.Reload = func() (operator.Reloaded, error) { return operator.Reloaded{}, errors.New("line 3: no such key") }
	})
	status, _, body := w.do(exercise{method: "POST", name: "reload"})
	if status != http.StatusConflict || !strings.Contains(string(body), "line 3: no such key") {
		t.Errorf("want 409 and why, got %d %s", status, body)
	}
}

// TestTheDescriptionIsComplete holds that each operation has a name of its own and
// words, and says how it fails; that each schema can be read; and that all stand in
// order.
func TestTheDescriptionIsComplete(t *testing.T) {
	d := described(t)
	names := map[any]string{}
	for _, r := range d.routes() {
		op, _ := d.at(operation(r)...)
		id := op["operationId"]
		if other, taken := names[id]; id == nil || taken {
			t.Errorf("%s has the operationId %v, as %s has", r, id, other)
		}
		names[id] = r
		if op["summary"] == nil || op["tags"] == nil {
			t.Errorf("%s has no summary, or no tags", r)
		}
		if _, at := d.at(append(operation(r), "responses", "default", "content", "application/problem+json")...); at == nil {
			t.Errorf("%s does not say how it fails", r)
		}
		for _, p := range d.parameters(r) {
			if p.text == "" || p.schema == nil {
				t.Errorf("%s: the parameter %s has no description, or no schema", r, p.name)
			}
		}
	}
	all, _ := d.at("components", "schemas")
	for name := range all {
		if _, err := d.compile([]string{"components", "schemas", name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for section, indent := range map[string]int{"paths:": 2, "  schemas:": 4} {
		if list := keys(t, section, indent); len(list) == 0 || !slices.IsSorted(list) {
			t.Errorf("%s want them in the order of the alphabet, got %s", section, list)
		}
	}
}

// TestSchemasAreThoseOfTheTypes compares the schemas with the types that are sent: the
// names, which are always there, and of which kind they are.
func TestSchemasAreThoseOfTheTypes(t *testing.T) {
	d := described(t)
	all, _ := d.at("components", "schemas")
	for name := range all {
		schema, at := d.at("components", "schemas", name)
		if schema["properties"] == nil {
			continue // no object
		}
		v, ok := schemas[name]
		if !ok {
			t.Errorf("openapi.yaml has the schema %s; say in exercises_test.go whose it is", name)
			continue
		}
		d.describesStruct(t, name, at, reflect.TypeOf(v))
	}
	for name := range schemas {
		if all[name] == nil {
			t.Errorf("openapi.yaml has no schema %s, which exercises_test.go names", name)
		}
	}
}

func (d *description) describesStruct(t *testing.T, what string, schema []string, typ reflect.Type) {
	t.Helper()
	node, _ := d.at(schema...)
	properties, _ := node["properties"].(map[string]any)
	var required []string
	list, _ := node["required"].([]any)
	for _, r := range list {
		required = append(required, r.(string))
	}
	seen := map[string]bool{}
	for _, f := range reflect.VisibleFields(typ) {
		tag, ok := f.Tag.Lookup("json")
		if !ok && f.Anonymous || tag == "-" || !f.IsExported() {
			continue
		}
		name, options, _ := strings.Cut(tag, ",")
		if name == "" {
			name = f.Name
		}
		seen[name] = true
		if properties[name] == nil {
			t.Errorf("%s of openapi.yaml has no %s, which %s has", what, name, typ)
			continue
		}
		if always := !strings.Contains(options, "omit"); always != slices.Contains(required, name) && what != "Line" {
			t.Errorf("%s of openapi.yaml: that %s is required is %v, and it is always there is %v", what, name, !always, always)
		}
		_, at := d.at(append(slices.Clone(schema), "properties", name)...)
		d.describesType(t, what+"."+name, at, f.Type)
	}
	for name := range properties {
		if !seen[name] {
			t.Errorf("%s of openapi.yaml has %s, which %s has not", what, name, typ)
		}
	}
}

func (d *description) describesType(t *testing.T, what string, schema []string, typ reflect.Type) {
	t.Helper()
	node, _ := d.at(schema...)
	want := ""
	switch typ.Kind() {
	case reflect.Pointer:
		d.describesType(t, what, schema, typ.Elem())
		return
	case reflect.Struct:
		if _, named := schemas[typ.Name()]; named && strings.Contains(what, ".") {
			return // it has a schema of its own, in which it may stand itself
		}
		if typ == reflect.TypeFor[time.Time]() {
			if node["format"] != "date-time" {
				t.Errorf("%s is a time; openapi.yaml does not say format: date-time", what)
			}
			return
		}
		d.describesStruct(t, what, schema, typ)
		return
	case reflect.Slice, reflect.Array:
		want = "array"
		if typ.Elem().Kind() == reflect.Uint8 {
			want = "string" // in base64
		} else if _, items := d.at(append(slices.Clone(schema), "items")...); items != nil {
			d.describesType(t, what+"[]", items, typ.Elem())
		}
	case reflect.Map:
		want = "object"
	case reflect.String:
		want = "string"
	case reflect.Bool:
		want = "boolean"
	case reflect.Float32, reflect.Float64:
		want = "number"
	case reflect.Interface:
		return // any
	default:
		want = "integer"
	}
	if node["type"] != want {
		t.Errorf("%s is of the type %v in openapi.yaml, and is a %s", what, node["type"], want)
	}
}
