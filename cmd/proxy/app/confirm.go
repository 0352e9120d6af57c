package app

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/term"
)

// interactive reports whether somebody at a terminal can answer a question.
func (p *process) interactive() bool {
	in, ok := p.stdin.(*os.File)
	return ok && term.IsTerminal(int(in.Fd())) && isTerminal(p.stderr)
}

// errDeclined is why a command did nothing that asked first.
var errDeclined = errors.New("nothing was changed")

// confirm asks question on the terminal. It returns nil if the answer is yes, errDeclined if
// it is anything else, and ctx's cause if that ends first.
func (p *process) confirm(ctx context.Context, question string) error {
	fmt.Fprintf(p.stderr, "%s [y/N] ", question)
	answer := make(chan string, 1)
	// It ends with the answer, or with the program: nothing else can end a read of a terminal.
	go func() {
		line, _ := bufio.NewReader(p.stdin).ReadString('\n') // what was typed before an error counts
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case text := <-answer:
		if text == "y" || text == "yes" {
			return nil
		}
		return errDeclined
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
