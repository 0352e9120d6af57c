package app

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode"

	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/configs"
)

// strange are words of strangers: what would forge a line, colour it, clear the
// screen, move the cursor back, or turn the text around.
var strange = []string{
	"\n{\"level\":\"info\",\"message\":\"forged\"}", "\r\n14:00:00.000\tINFO\tforged", "\x1b[2J\x1b]0;title\a", "\x7f\b\b\b",
	"\u009b31m\u0085forged", "\u202eforged", "\u2028forged\u2029", "\xff\xfe\x9b31m", "\U000e0041\U000f0000", "a \u00e9 \u4e16 \u0000 z",
}

func TestNoWordForgesALogLine(t *testing.T) {
	for _, format := range []string{"json", "console"} {
		for _, word := range strange {
			var got bytes.Buffer
			log, _, err := newLog(configs.Log{Level: "debug", Format: format}, &got)
			if err != nil {
				t.Fatal(err)
			}
			// In a field as zap knows them, and in a message, where it should
			// not be but fasthttp's and net/http's own words are.
			log.Info("request", zap.String("path", word), zap.ByteString("raw", []byte(word)), zap.Error(errors.New(word)))
			log.Sugar().Debugf("it says %s", word)
			out := got.String()
			if n := strings.Count(out, "\n"); n != 2 || !strings.HasSuffix(out, "\n") {
				t.Errorf("%s, %q: %d lines, want 2: %q", format, word, n, out)
			}
			for _, r := range out {
				if r != '\n' && r != '\t' && !unicode.IsPrint(r) || r == unicode.ReplacementChar {
					t.Errorf("%s, %q: %U is written as it is: %q", format, word, r, out)
				}
			}
			if format == "json" {
				var line struct{ Path string }
				first, _, _ := strings.Cut(out, "\n")
				if err := json.Unmarshal([]byte(first), &line); err != nil {
					t.Errorf("%q: %v: %q", word, err, first)
				}
				if want := strings.ToValidUTF8(word, "\ufffd"); line.Path != want && !strings.Contains(word, "\xff") {
					t.Errorf("the path is read as %q, want %q", line.Path, want)
				}
			}
		}
	}
}

func BenchmarkLogLine(b *testing.B) {
	log, _, err := newLog(configs.Log{Level: "info", Format: "json"}, discard{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		log.Info("request", zap.String("repository", "library/nginx"), zap.String("user_agent", "containerd/2.0"), zap.Int("status", 200))
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
