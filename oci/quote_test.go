package oci

import (
	"strings"
	"testing"
)

func TestMessagesQuoteNoPassword(t *testing.T) {
	for s, want := range map[string]string{
		"user:secret@a.test/x":        `"user:***@a.test/x"`,
		"http://user:secret@a.test/x": `"http://user:***@a.test/x"`,
		"Library/nginx":               `"Library/nginx"`,
		"a:5000/b@sha256:1":           `"a:5000/b@sha256:1"`,
		"@x":                          `"@x"`,
		"a\nb":                        `"a\nb"`,
	} {
		if got := Quote(s); got != want {
			t.Errorf("quote(%q) = %s, want %s", s, got, want)
		}
	}
	if got := Quote(strings.Repeat("x", 1000)); len(got) > 200 {
		t.Errorf("a long name has %d bytes in a message", len(got))
	}
}
