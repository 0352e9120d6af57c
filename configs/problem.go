package configs

import (
	"fmt"
	"strings"
)

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	// Where says what to edit: "entrepot.yml:12:7",
	// "environment variable ENTREPOT_LISTEN", "flag --listen".
	Where string `json:"where"`
	// Key is the path of the key, "upstreams.docker.io.endpoints[0]"; empty
	// where the file could not be read at all.
	Key string `json:"key,omitempty"`
	// Message says what is wrong and what is allowed.
	Message string `json:"message"`
}

func (p Problem) String() string {
	if p.Key == "" {
		return p.Where + ": " + p.Message
	}
	return fmt.Sprintf("%s: %s: %s", p.Where, p.Key, p.Message)
}

// Error is what is wrong with a configuration, in the order of the file.
type Error struct {
	Problems []Problem
	// More says that there are further problems, which Problems does not hold.
	More bool
}

// maxShown bounds the problems that Error shows, so that one mistake that is repeated
// everywhere does not fill a terminal or the log.
const maxShown = 10

// Error returns one line for each of the first problems, and one that counts the others.
func (e *Error) Error() string {
	var lines []string
	for _, p := range e.Problems[:min(len(e.Problems), maxShown)] {
		lines = append(lines, p.String())
	}
	switch n := len(e.Problems) - len(lines); {
	case e.More:
		lines = append(lines, fmt.Sprintf("and more than %d other problems; correct these first", n))
	case n > 0:
		lines = append(lines, fmt.Sprintf("and %d more; correct these first", n))
	}
	return strings.Join(lines, "\n")
}
