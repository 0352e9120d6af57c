package images

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// maxStages bounds the stages of a Dockerfile.
const maxStages = 500

// dockerfile is a Dockerfile as far as it has been read.
type dockerfile struct {
	found *Found
	// args are those before the first FROM, which a FROM may use.
	args map[string]string
	// stages are the names of the stages in small letters, unnamed ones empty.
	stages []string
}

// readDockerfile takes the images that a build pulls: the frontend that "# syntax="
// names, those of FROM, and those of COPY --from and RUN --mount=from= that are no
// stages. scratch and stages are none. Variables have their defaults.
func (f *Found) readDockerfile(text []byte) error {
	d := &dockerfile{found: f, args: map[string]string{}}
	lines := strings.Split(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n")
	escape, err := d.directives(lines)
	if err != nil {
		return err
	}
	for at := 0; at < len(lines); {
		var b strings.Builder
		begins := at
		for at < len(lines) {
			s := lines[at]
			at++
			if trimmed := strings.TrimSpace(s); trimmed == "" || trimmed[0] == '#' {
				if b.Len() == 0 {
					begins = at
				}
				continue // also between the lines of one instruction
			}
			more, continued := strings.CutSuffix(strings.TrimRight(s, " \t"), escape)
			b.WriteString(more)
			if !continued {
				break
			}
		}
		word, rest, _ := strings.Cut(strings.TrimSpace(strings.ReplaceAll(b.String(), "\t", " ")), " ")
		if err := d.instruction(begins+1, strings.ToUpper(word), strings.TrimSpace(rest)); err != nil {
			return err
		}
		if at, err = skipHeredocs(lines, at, strings.ToUpper(word), rest); err != nil {
			return err
		}
	}
	if len(d.stages) == 0 {
		return errors.New("it has no FROM, as each Dockerfile has")
	}
	return nil
}

// directive is a comment that the parser minds. They stand before all else.
var directive = regexp.MustCompile(`^#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*$`)

// directives gives what a line that goes on ends with.
func (d *dockerfile) directives(lines []string) (escape string, err error) {
	escape = `\`
	for i, line := range lines {
		m := directive.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			break
		}
		switch strings.ToLower(m[1]) {
		case "escape":
			if m[2] == "`" {
				escape = m[2]
			}
		case "syntax":
			name, _, _ := strings.Cut(m[2], " ")
			if err := d.found.add(i+1, name, ""); err != nil {
				return "", err
			}
		}
	}
	return escape, nil
}

// heredoc is a word such as <<EOF or <<-"EOF".
var heredoc = regexp.MustCompile(`(?:^|\s)[0-9]*<<(-?)(?:"([^"\s<]+)"|'([^'\s<]+)'|([^"'\s<]+))(?:\s|$)`)

// skipHeredocs gives the line after the documents that an instruction has below it.
func skipHeredocs(lines []string, at int, word, rest string) (int, error) {
	if word != "RUN" && word != "COPY" && word != "ADD" {
		return at, nil
	}
	for begins := at; ; {
		m := heredoc.FindStringSubmatchIndex(rest)
		if m == nil {
			return at, nil
		}
		group := func(i int) string {
			if m[2*i] < 0 {
				return ""
			}
			return rest[m[2*i]:m[2*i+1]]
		}
		end := group(2) + group(3) + group(4)
		for ; ; at++ {
			if at == len(lines) {
				return 0, fmt.Errorf("line %d: the document that << begins is not ended by %s", begins, cut(end))
			}
			line := lines[at]
			if group(1) == "-" {
				line = strings.TrimLeft(line, "\t")
			}
			if line == end {
				at++
				break
			}
		}
		rest = rest[m[1]-1:]
		if len(rest) <= 1 {
			return at, nil
		}
	}
}

func (d *dockerfile) instruction(line int, word, rest string) error {
	switch word {
	case "ARG":
		if len(d.stages) == 0 {
			d.arg(rest)
		}
	case "FROM":
		return d.from(line, rest)
	case "COPY", "RUN":
		flags, _ := cutFlags(rest)
		for _, flag := range flags {
			name, v, _ := strings.Cut(flag, "=")
			switch {
			case word == "COPY" && name == "--from":
				if err := d.source(line, v); err != nil {
					return err
				}
			case word == "RUN" && name == "--mount":
				for part := range strings.SplitSeq(v, ",") {
					if from, ok := strings.CutPrefix(part, "from="); ok {
						if err := d.source(line, from); err != nil {
							return err
						}
					}
				}
			}
		}
	}
	return nil
}

// cutFlags takes the flags off the front of an instruction.
func cutFlags(s string) (flags []string, rest string) {
	for strings.HasPrefix(s, "--") {
		flag, more, _ := strings.Cut(s, " ")
		flags, s = append(flags, flag), strings.TrimSpace(more)
	}
	return flags, s
}

// arg notes the defaults of an ARG before the first FROM.
func (d *dockerfile) arg(rest string) {
	for _, word := range words(rest) {
		name, v, ok := strings.Cut(word, "=")
		if !ok {
			delete(d.args, name)
			continue
		}
		e := expander{env: d.env}
		if v = e.expand(v, 0); e.problem == "" {
			d.args[name] = v
		}
	}
}

// words cuts s at spaces that are not between quotes, and takes the quotes away.
func words(s string) []string {
	var list []string
	var b strings.Builder
	quote, begun := byte(0), false
	for i := range len(s) {
		switch c := s[i]; {
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, begun = c, true
		case quote == 0 && c == ' ':
			if begun {
				list = append(list, b.String())
			}
			b.Reset()
			begun = false
		default:
			b.WriteByte(c)
			begun = true
		}
	}
	if begun {
		list = append(list, b.String())
	}
	return list
}

func (d *dockerfile) env(name string) (string, bool) {
	v, ok := d.args[name]
	return v, ok
}

// from takes the image of a FROM, and notes the stage that it begins.
func (d *dockerfile) from(line int, rest string) error {
	flags, rest := cutFlags(rest)
	w := words(rest)
	if len(w) == 0 {
		return fmt.Errorf("line %d: FROM names no image", line)
	}
	stage := ""
	if len(w) == 3 && strings.EqualFold(w[1], "AS") {
		stage = strings.ToLower(w[2])
	}
	if len(d.stages) >= maxStages {
		return fmt.Errorf("line %d: it has more than %d stages", line, maxStages)
	}
	defer func() { d.stages = append(d.stages, stage) }()

	platform := ""
	for _, flag := range flags {
		if v, ok := strings.CutPrefix(flag, "--platform="); ok {
			e := expander{env: d.env}
			if platform = e.expand(v, 0); e.problem != "" {
				platform = "" // that of the machine that builds, or of what is built
			}
		}
	}
	e := expander{env: d.env}
	name := e.expand(w[0], 0)
	switch {
	case e.problem != "" && d.isStagePrefix(w[0]):
		return nil // FROM base-$TARGETARCH
	case e.problem != "":
		return d.found.miss(line, w[0], e.problem)
	case name == "scratch", d.isStage(name):
		return nil
	}
	return d.found.add(line, name, platform)
}

// source takes what files are copied from, where that is an image.
func (d *dockerfile) source(line int, text string) error {
	text = strings.Trim(text, `"'`)
	e := expander{env: d.env}
	name := e.expand(text, 0)
	if n, err := strconv.Atoi(name); err == nil && n >= 0 && n < len(d.stages) {
		return nil
	}
	switch {
	case e.problem != "" && d.isStagePrefix(text):
		return nil
	case e.problem != "":
		return d.found.miss(line, text, e.problem)
	case name == "" || name == "scratch" || d.isStage(name):
		return nil
	}
	return d.found.add(line, name, "")
}

func (d *dockerfile) isStage(name string) bool {
	for _, s := range d.stages {
		if s != "" && strings.EqualFold(s, name) {
			return true
		}
	}
	return false
}

// isStagePrefix tells whether a stage begins with what of text comes before its
// first variable.
func (d *dockerfile) isStagePrefix(text string) bool {
	before, _, _ := strings.Cut(strings.ToLower(text), "$")
	for _, s := range d.stages {
		if before != "" && strings.HasPrefix(s, before) {
			return true
		}
	}
	return false
}
