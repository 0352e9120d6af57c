package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
)

func TestItPrintsTheConfigurationThatMirrorsIt(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // it prints, and then it is over
	var out bytes.Buffer
	if err := run(ctx, &out, "127.0.0.1:0", false, 0); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"docker.io:", "endpoints:", "realms:", "redirect_hosts:", "http://127.0.0.1:"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("want %q in\n%s", want, out.String())
		}
	}
}
