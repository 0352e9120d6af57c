package app

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/oci"
)

func TestLogIsJSONWhereNoTerminalReadsIt(t *testing.T) {
	var got bytes.Buffer
	log, _, err := newLog(configs.Log{Level: "info", Format: "auto"}, &got)
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("not this")
	log.Info("request", zap.String("upstream", "docker.io"), zap.Duration("duration", 1500*time.Millisecond))
	var line map[string]any
	if err := json.Unmarshal(got.Bytes(), &line); err != nil {
		t.Fatalf("want one line of JSON, got %q: %v", got.String(), err)
	}
	if line["level"] != "info" || line["message"] != "request" || line["upstream"] != "docker.io" || line["duration"] != 1.5 {
		t.Errorf("got %v", line)
	}
	if _, err := time.Parse(time.RFC3339Nano, line["time"].(string)); err != nil {
		t.Error(err)
	}
}

func TestLogForPeopleIsNoJSON(t *testing.T) {
	var got bytes.Buffer
	log, _, err := newLog(configs.Log{Level: "debug", Format: "console"}, &got)
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("token renewed")
	if !strings.Contains(got.String(), "DEBUG token renewed") {
		t.Errorf("got %q", got.String())
	}
}

func TestEveryLevelOfTheConfigurationIsOneOfTheLog(t *testing.T) {
	for _, level := range []string{"debug", "info", "warn", "error"} {
		if _, _, err := newLog(configs.Log{Level: level, Format: "json"}, &bytes.Buffer{}); err != nil {
			t.Errorf("%s: %v", level, err)
		}
	}
}

// TestARequestIsOneShortLineForPeople holds that a failure's cause is told once.
func TestARequestIsOneShortLineForPeople(t *testing.T) {
	cause := &oci.Error{Code: oci.CodeUnavailable, Message: "upstream docker.io: 127.0.0.1:9 refuses the connection", Err: errors.New("dial tcp 127.0.0.1:9: connect: connection refused")}
	fields := func(reference, outcome string, status int, more ...zap.Field) []zap.Field {
		return append([]zap.Field{zap.String("method", "GET"), zap.String("kind", "manifest"), zap.String("upstream", "docker.io"), zap.String("repository", "library/nginx"),
			zap.String("reference", reference), zap.String("outcome", outcome), zap.Int("status", status), zap.Int64("bytes", 2048),
			zap.Duration("duration", 1234567*time.Microsecond), zap.String("client", "10.0.0.7"), zap.String("user_agent", "curl")}, more...)
	}
	say := func(level string) string {
		var got bytes.Buffer
		log, _, err := newLog(configs.Log{Level: level, Format: "console"}, &got)
		if err != nil {
			t.Fatal(err)
		}
		log.With(zap.String("upstream", "docker.io")).Warn("the upstream failed", zap.Error(cause))
		log.Warn("request", fields("1.27", "error", 502, zap.Error(cause))...)
		log.Info("request", fields("sha256:"+strings.Repeat("a", 64), "hit", 200)...)
		log.Info("request", fields("1.27", "stale", 200, zap.String("reason", "the upstream is slow"))...)
		log.Error("something else", zap.Error(fmt.Errorf("no room")))
		return regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d `).ReplaceAllString(got.String(), "")
	}
	want := `WARN 502 docker.io/library/nginx:1.27: 127.0.0.1:9 refuses the connection
INFO 200 docker.io/library/nginx@sha256:aaaaaaaaaaaa hit 2KiB 1.235s 10.0.0.7
INFO 200 docker.io/library/nginx:1.27 stale 2KiB 1.235s 10.0.0.7: the upstream is slow
ERROR something else {"error": "no room"}
`
	if got := say("info"); got != want {
		t.Errorf("want\n%sgot\n%s", want, got)
	}
	if got := say("debug"); !strings.Contains(got, "the upstream failed") || strings.Count(got, "connect: connection refused") != 2 {
		t.Errorf("at level debug nothing is left out; got\n%s", got)
	}
	if got := say("warn"); !strings.HasPrefix(got, "WARN the upstream failed") {
		t.Errorf("without lines about served requests the upstream's failure is shown; got\n%s", got)
	}
}
