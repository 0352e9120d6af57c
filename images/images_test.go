package images

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// names writes what was found as "reference" or "reference platform".
func names(f *Found) []string {
	list := []string{}
	for _, i := range f.Images {
		list = append(list, strings.TrimSpace(i.Reference+" "+i.Platform))
	}
	return list
}

func env(name string) (string, bool) {
	v, ok := map[string]string{"TAG": "3", "EMPTY": ""}[name]
	return v, ok
}

const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestRead(t *testing.T) {
	for _, c := range []struct {
		name, text string
		format     Format
		want       []string
		unread     []string // "line text"
	}{
		{
			name: "a list", format: List,
			text: "\ufeff# what the cluster runs\nnginx:1.27\r\n\n  ghcr.io/org/app:2   # ours\nnginx:1.27\nbusybox@" + digest + "\nalpine:3.20@" + digest + "\nlocalhost:5000/x\n",
			want: []string{
				"docker.io/library/nginx:1.27", "ghcr.io/org/app:2", "docker.io/library/busybox@" + digest,
				"docker.io/library/alpine:3.20@" + digest, "localhost:5000/x:latest",
			},
		},
		{name: "nothing", format: List, text: "# nothing\n\n", want: []string{}},
		{
			name: "a list with lines that are none", format: List, text: "nginx\nnginx:\nnginx 1.27\nalpine\n",
			want:   []string{"docker.io/library/nginx:latest", "docker.io/library/alpine:latest"},
			unread: []string{"2 nginx:", "3 nginx 1.27"},
		},
		{
			name: "a Compose file", format: Compose, text: `
x-base: &base
  image: base:${TAG}
  platform: linux/arm64
services:
  web: {image: "nginx:${WEB_TAG:-1.27}"}
  other: {<<: *base, environment: {A: b}}
  listed:
    <<: [{labels: {}}, *base]
    platform: linux/amd64
  built: {build: ., image: mine:latest}
  plain:
    image: $$x
  unset:
    image: app:${NONE}
  must: {image: "app:${EMPTY:?give a tag}"}
  alternate: {image: "app${TAG:+:v$TAG}"}
  unclosed: {image: "app:${TAG"}
  volume:
    image: redis
    volumes: [{type: image, source: data:1}, {type: bind, source: /x}, ./y:/y]
  none: {}
volumes: {db: {}}
`,
			want: []string{
				"docker.io/library/nginx:1.27", "docker.io/library/base:3 linux/arm64", "docker.io/library/base:3 linux/amd64",
				"docker.io/library/app:v3", "docker.io/library/redis:latest", "docker.io/library/data:1",
			},
			unread: []string{"13 $x", "15 app:${NONE}", "16 app:${EMPTY:?give a tag}", "18 app:${TAG"},
		},
		{
			name: "what helm renders", format: Kubernetes, text: `---
# Source: app/templates/deployment.yaml
apiVersion: apps/v1
kind: Deployment
spec:
  template:
    spec:
      initContainers:
      - {name: init, image: "busybox:1.36"}
      containers:
      - name: app
        image: "ghcr.io/org/app:{{ .Values.tag }}"
      - name: sidecar
        image: quay.io/org/sidecar@` + digest + `
      - name: injected
        image: ""
      volumes:
      - {name: model, image: {reference: quay.io/org/model:1}}
---
---
apiVersion: batch/v1
kind: CronJob
spec: {jobTemplate: {spec: {template: {spec: {containers: [{image: nginx:1.27}]}}}}}
---
apiVersion: v1
kind: List
items:
- kind: Pod
  spec:
    ephemeralContainers: [{image: debug}]
    containers: [{image: nginx:1.27}, {image: 3}]
---
apiVersion: monitoring.example.test/v1
kind: Prometheus
spec:
  image: quay.io/prometheus/prometheus:v3.5.0
  logo: {image: "A picture, not a reference"}
  services: {image: {repository: x, tag: y}}
`,
			want: []string{
				"docker.io/library/busybox:1.36", "quay.io/org/sidecar@" + digest, "quay.io/org/model:1", "docker.io/library/nginx:1.27",
				"docker.io/library/debug:latest", "quay.io/prometheus/prometheus:v3.5.0",
			},
			unread: []string{"12 ghcr.io/org/app:{{ .Values.tag }}"},
		},
		{
			name: "JSON of kubectl", format: Kubernetes,
			text: `{"apiVersion": "v1", "kind": "List", "items": [{"kind": "Pod", "spec": {"containers": [{"image": "nginx"}]}}]}`,
			want: []string{"docker.io/library/nginx:latest"},
		},
		{
			name: "a Dockerfile", format: Dockerfile, text: `# syntax=docker/dockerfile:1
# a comment
ARG GO=1.26 BASE="alpine:3.20"
ARG UNSET
ARG IMAGE=golang:$GO
FROM --platform=$BUILDPLATFORM ${IMAGE} AS Build
ARG GO=9
RUN --mount=type=cache,target=/x --mount=type=bind,from=tools:1,target=/t \
    # between the lines

    echo FROM nothing
RUN <<EOF python3
from notanimage import x
FROM neither
EOF
COPY <<-'A' <<"B" /x/
FROM a
	A
FROM b
B
FROM build AS test
FROM scratch
COPY --from=build /app /app
COPY --from=0 /app /app
COPY --chown=1:1 --from=busybox:1.36 /bin/sh /bin/sh
FROM --platform=linux/arm64 $BASE as base-arm64
FROM base-$TARGETARCH
FROM app:$UNSET
from   \
  debian:13
`,
			want: []string{
				"docker.io/docker/dockerfile:1", "docker.io/library/golang:1.26", "docker.io/library/tools:1",
				"docker.io/library/busybox:1.36", "docker.io/library/alpine:3.20 linux/arm64", "docker.io/library/debian:13",
			},
			unread: []string{"28 app:$UNSET"},
		},
		{
			name: "a Dockerfile of Windows", format: Dockerfile, text: "# escape=`\nFROM mcr.microsoft.com/windows/nanoserver:ltsc2025\nCOPY x C:\\\nRUN a `\r\n  b\nFROM next:1\n",
			want: []string{"mcr.microsoft.com/windows/nanoserver:ltsc2025", "docker.io/library/next:1"},
		},
	} {
		for _, format := range []Format{Auto, c.format} {
			if c.name == "nothing" && format != Auto {
				continue
			}
			f, err := Read(strings.NewReader(c.text), Options{Format: format, Env: env})
			if err != nil {
				t.Errorf("%s as %s: %v", c.name, format, err)
				continue
			}
			var unread []string
			for _, u := range f.Unread {
				unread = append(unread, fmt.Sprintf("%d %s", u.Line, u.Text))
				if u.Reason == "" {
					t.Errorf("%s as %s: want a reason for %q", c.name, format, u.Text)
				}
			}
			if f.Format != c.format || !slices.Equal(names(f), c.want) || !slices.Equal(unread, c.unread) {
				t.Errorf("%s as %s: want %s\n%q, unread\n%q, got %s\n%q, unread\n%q", c.name, format, c.format, c.want, c.unread, f.Format, names(f), unread)
			}
		}
	}
}

func TestImagesKnowTheirLine(t *testing.T) {
	f, err := Read(strings.NewReader("# x\nnginx\n\nalpine\n"), Options{})
	if err != nil || len(f.Images) != 2 || f.Images[0].Line != 2 || f.Images[1].Line != 4 {
		t.Errorf("want lines 2 and 4, got %+v, %v", f, err)
	}
}

func TestReadRefuses(t *testing.T) {
	for _, c := range []struct {
		name, text string
		format     Format
		want       string
	}{
		{"a binary file", "nginx\x00", Auto, "binary file"},
		{"no UTF-8", "nginx\xff", Auto, "binary file"},
		{"too much", strings.Repeat("# comment\n", MaxInput/10+1), Auto, "more than 16 MiB"},
		{"broken YAML", "services:\n  web: {image: nginx\n", Auto, "no valid YAML: line"},
		{"a text as YAML", "nginx", Kubernetes, "neither a list of images"},
		{"no services", "a: b", Compose, "line 1: a Compose file has services"},
		{"a bomb of lists", strings.Repeat("[", 1<<20), Auto, "no valid YAML"},
		{"deep lists", strings.Repeat("- ", 5000) + "a", Auto, "deep in each other"},
		{"no FROM", "RUN x\n", Dockerfile, "no FROM"},
		{"an empty FROM", "FROM --platform=x\n", Dockerfile, "line 1: FROM names no image"},
		{"a document without an end", "FROM a\nRUN <<EOF\nx\n", Dockerfile, "line 2: the document that << begins is not ended by EOF"},
		{"stages", strings.Repeat("FROM a\n", maxStages+1), Auto, "more than 500 stages"},
		{"prose", strings.Repeat("This is no list.\n", maxUnread+1), Auto, "is it a list of images?"},
	} {
		_, err := Read(strings.NewReader(c.text), Options{Format: c.format})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: want an error with %q, got %v", c.name, c.want, err)
		}
	}
	var many strings.Builder
	for i := range MaxImages + 1 {
		fmt.Fprintf(&many, "app:%d\n", i)
	}
	if _, err := Read(strings.NewReader(many.String()), Options{}); err != errTooMany {
		t.Errorf("want %v, got %v", errTooMany, err)
	}
}

func TestAliasThatHoldsItselfEnds(t *testing.T) {
	for text, want := range map[string]string{
		"services: &s\n  web: {<<: *s, image: nginx}\n": "docker.io/library/nginx:latest",
		"services:\n  web: &w {<<: [*w, *w, *w]}\n":     "",
		"a: &a [*a, *a, {image: x}]\n":                  "docker.io/library/x:latest",
	} {
		f, err := Read(strings.NewReader(text), Options{})
		if err != nil || strings.Join(names(f), " ") != want {
			t.Errorf("%q: want %q, got %+v, %v", text, want, f, err)
		}
	}
}

func TestVariableThatHoldsItselfManyTimesIsRefused(t *testing.T) {
	text := "ARG A=0123456789\n" + strings.Repeat("ARG A=$A$A$A$A\n", 20) + "FROM x:$A\n"
	f, err := Read(strings.NewReader(text), Options{})
	if err != nil || len(f.Images)+len(f.Unread) != 1 {
		t.Errorf("want it read, got %+v, %v", f, err)
	}
}

func TestParseFormat(t *testing.T) {
	for text, want := range map[string]Format{"": Auto, "list": List, "compose": Compose} {
		if f, err := ParseFormat(text); f != want || err != nil {
			t.Errorf("%q: want %s, got %s, %v", text, want, f, err)
		}
	}
	if _, err := ParseFormat("csv"); err == nil || !strings.Contains(err.Error(), "auto, list, compose, kubernetes, dockerfile") {
		t.Errorf("want the formats, got %v", err)
	}
}

func FuzzRead(f *testing.F) {
	for _, text := range []string{
		"nginx:1.27 # x\n", "services: {a: {<<: &b {image: 'x:${A:-1}'}}}", "kind: Pod\nspec: {containers: [{image: a}]}\n---\n",
		"# escape=`\nARG A=1\nFROM a:$A AS b\nRUN <<E\nE\nCOPY --from=0 a b\n",
	} {
		f.Add(text, uint8(0))
	}
	f.Fuzz(func(t *testing.T, text string, format uint8) {
		found, err := Read(strings.NewReader(text), Options{Format: Formats[int(format)%len(Formats)], Env: env})
		if err != nil {
			return
		}
		for _, i := range found.Images {
			if again, err := Normalize(i.Reference); err != nil || again != i.Reference {
				t.Errorf("%q becomes %q, %v", i.Reference, again, err)
			}
		}
	})
}

func TestDeepNestingIsRefusedAtOnce(t *testing.T) {
	for _, text := range []string{strings.Repeat("[", 100_000), strings.Repeat("{a: ", 25_000), strings.Repeat("- ", 50_000), strings.Repeat("a: [", 25_000)} {
		for _, format := range []Format{Auto, Compose, Kubernetes} {
			if _, err := Read(strings.NewReader(text), Options{Format: format}); err == nil || len(err.Error()) > 300 {
				t.Errorf("%.20q as %s: want it refused in a sentence, got %v", text, format, err)
			}
		}
	}
}
