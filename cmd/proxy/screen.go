package main

import (
	"bytes"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"golang.org/x/term"
)

// On a terminal, tables and text fit its width: full digests are shortened, columns that the
// table can do without are left out, and what is still too long is wrapped. A pipe gets all
// of it, a row on a line.

// minWidth is the narrowest terminal that is fitted; it also bounds a column of a table.
const (
	minWidth  = 40
	minColumn = 8
)

// page returns what a command prints its text on: p.stdout, which wraps lines if it is a
// terminal.
func (p *process) page() io.Writer {
	f, ok := p.stdout.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return p.stdout
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width <= 0 {
		return p.stdout
	}
	return &screen{w: f, width: max(width, minWidth)}
}

// screen is a terminal of so many columns. Each Write must be whole lines.
type screen struct {
	w     io.Writer
	width int
}

func (s *screen) Write(b []byte) (int, error) {
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		text, end := strings.CutSuffix(line, "\n")
		indent := ""
		for i, part := range wrap(text, s.width, 2) {
			if i > 0 {
				out.WriteByte('\n')
				indent = "  "
			}
			out.WriteString(indent + part)
		}
		if end {
			out.WriteByte('\n')
		}
	}
	if _, err := io.WriteString(s.w, out.String()); err != nil {
		return 0, err
	}
	return len(b), nil
}

// sheet collects text for a writer, and knows its width.
type sheet struct {
	strings.Builder
	width int
}

func newSheet(w io.Writer) *sheet { return &sheet{width: widthOf(w)} }

// widthOf returns the columns that fit on a line of w; 0 is any number.
func widthOf(w io.Writer) int {
	switch w := w.(type) {
	case *screen:
		return w.width
	case *sheet:
		return w.width
	}
	return 0
}

// table aligns what is between tabs, as tabwriter does, and fits it to the width of w.
type table struct {
	w        io.Writer
	width    int
	optional []string
	lines    *tabwriter.Writer // nil on a terminal
	text     bytes.Buffer
}

// newTable returns a table on w. The columns with the headings optional are left out, in
// that order, while the table is too wide for a terminal. The caller flushes it.
func newTable(w io.Writer, optional ...string) *table {
	t := &table{w: w, width: widthOf(w), optional: optional}
	if t.width == 0 {
		t.lines = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	}
	return t
}

func (t *table) Write(b []byte) (int, error) {
	if t.lines != nil {
		return t.lines.Write(b)
	}
	return t.text.Write(b)
}

// Flush prints the table.
func (t *table) Flush() error {
	if t.lines != nil {
		return t.lines.Flush()
	}
	var rows [][]string
	for line := range strings.Lines(t.text.String()) {
		rows = append(rows, strings.Split(strings.TrimSuffix(line, "\n"), "\t"))
	}
	t.text.Reset()
	_, err := io.WriteString(t.w, fit(rows, nil, t.width, t.optional))
	return err
}

// fit lays out the rows of a table, of which the first has the headings, unless the caller
// gives them as it wants them. A line has at most width columns.
func fit(rows [][]string, headings []string, width int, optional []string) string {
	if headings == nil && len(rows) > 0 {
		headings = rows[0]
	}
	drop := map[int]bool{}
	widths := columnWidths(rows)
	if total(widths, drop) > width {
		rows = shortDigests(rows)
		widths = columnWidths(rows)
	}
	for _, heading := range optional {
		if i := slices.Index(headings, heading); i >= 0 && total(widths, drop) > width {
			drop[i] = true
		}
	}
	for total(widths, drop) > width {
		widest := -1
		for i, w := range widths {
			if !drop[i] && w > minColumn && (widest < 0 || w > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
	}
	var b strings.Builder
	for _, cells := range rows {
		writeRow(&b, cells, widths, drop)
	}
	return b.String()
}

// writeRow writes the cells of a row, each on as many lines as it needs.
func writeRow(b *strings.Builder, cells []string, widths []int, drop map[int]bool) {
	parts := make([][]string, len(cells))
	lines := 1
	for i, cell := range cells {
		if !drop[i] {
			parts[i] = wrap(cell, widths[i], 0)
			lines = max(lines, len(parts[i]))
		}
	}
	for n := range lines {
		var line strings.Builder
		for i := range cells {
			if drop[i] {
				continue
			}
			text := ""
			if n < len(parts[i]) {
				text = parts[i][n]
			}
			line.WriteString(text + strings.Repeat(" ", max(0, widths[i]-utf8.RuneCountInString(text))+2))
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
}

// columnWidths returns how wide each column is.
func columnWidths(rows [][]string) []int {
	var widths []int
	for _, cells := range rows {
		for i, cell := range cells {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	return widths
}

// total returns how wide a table is without the columns in drop.
func total(widths []int, drop map[int]bool) int {
	sum, n := 0, 0
	for i, w := range widths {
		if !drop[i] {
			sum += w
			n++
		}
	}
	return sum + 2*max(0, n-1)
}

var fullDigest = regexp.MustCompile(`\b(sha256|sha384|sha512):([0-9a-f]{12})[0-9a-f]{52,}`)

// shortDigests returns rows with short digests.
func shortDigests(rows [][]string) [][]string {
	shortened := make([][]string, len(rows))
	for i, cells := range rows {
		shortened[i] = make([]string, len(cells))
		for j, cell := range cells {
			shortened[i][j] = fullDigest.ReplaceAllString(cell, "$1:$2")
		}
	}
	return shortened
}

// wrap breaks text into lines of at most width runes, at spaces if it can, else behind a
// separator. Lines after the first are indent shorter, for the caller's indentation.
func wrap(text string, width, indent int) []string {
	var lines []string
	rest := []rune(text)
	for len(rest) > width {
		at := breakAt(rest, width)
		lines = append(lines, strings.TrimRight(string(rest[:at]), " "))
		rest = []rune(strings.TrimLeft(string(rest[at:]), " "))
		if len(lines) == 1 {
			width -= indent
		}
	}
	return append(lines, string(rest))
}

// breakAt returns how many runes of a text that is longer than width go on its first line.
func breakAt(text []rune, width int) int {
	begin := 0 // of the words: an indentation is no place to break
	for begin < width && text[begin] == ' ' {
		begin++
	}
	for at := width; at > begin; at-- {
		if text[at] == ' ' {
			return at
		}
	}
	for at := width; at > max(begin, width/2); at-- {
		if strings.ContainsRune("/,:@", text[at-1]) {
			return at
		}
	}
	return width
}
