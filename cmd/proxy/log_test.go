package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/configs"
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
	if !strings.Contains(got.String(), "DEBUG\ttoken renewed") {
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
