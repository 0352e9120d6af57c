package configs

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func TestSecretIsNeverPrinted(t *testing.T) {
	c := Credentials{Username: "alice", Password: "hunter2"}
	asYAML, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range []string{
		fmt.Sprint(c), fmt.Sprintf("%v %+v %#v", c, c, c), fmt.Sprintf("%s %q", c.Password, c.Password), string(asYAML), string(asJSON),
	} {
		if strings.Contains(got, "hunter2") {
			t.Errorf("shows the secret: %s", got)
		}
		if !strings.Contains(got, hidden) {
			t.Errorf("want %s in its place, got %s", hidden, got)
		}
	}
	if got := c.Password.Reveal(); got != "hunter2" {
		t.Errorf("Reveal: want hunter2, got %s", got)
	}
}

func TestNoSecretIsShownAsNone(t *testing.T) {
	if got := fmt.Sprint(Secret("")); got != "" {
		t.Errorf("want nothing, got %q", got)
	}
}
