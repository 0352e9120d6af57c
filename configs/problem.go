package configs

import (
	"fmt"
	"strings"
)

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	// Where says what to edit: "entrepot.yml:12:7",
	// "environment variable ENTREPOT_LISTEN", "flag --listen".
	Where string
	// Key is the path of the key, "upstreams.docker.io.endpoints[0]"; empty
	// where the file could not be read at all.
	Key string
	// Message says what is wrong and what is allowed.
	Message string
}

func (p Problem) String() string {
	if p.Key == "" {
		return p.Where + ": " + p.Message
	}
	return fmt.Sprintf("%s: %s: %s", p.Where, p.Key, p.Message)
}

// Error is all that is wrong with a configuration, in the order of the file.
type Error struct{ Problems []Problem }

func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}
