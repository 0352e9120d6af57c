package app

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

// On a terminal, tables and text fit its width, and nothing that people copy is broken: see fit
// and wrap. A pipe gets everything in full, a row on a line.

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

// keys are the headings of the columns that people copy from, the likeliest first.
var keys = []string{"REFERENCE", "IMAGE", "DIGEST"}

// fit lays out the rows of a table, of which the first has the headings, unless the caller
// gives them. While a line would have more than width columns, fit
//
//   - shortens digests, and leaves out how long ago a time was,
//   - drops the columns with the headings optional, in that order,
//   - wraps cells where wrap may break them,
//   - gives the key of each row a line of its own, above the rest of the row.
//
// A reference, a digest or a time that is too long even then exceeds the width.
func fit(rows [][]string, headings []string, width int, optional []string) string {
	if headings == nil && len(rows) > 0 {
		headings = rows[0]
	}
	const indent = "  "
	l := newLayout(rows, headings, width, optional)
	key := keyOf(headings)
	stacked := total(l.widths, l.drop) > width && key >= 0 && len(headings) > 1
	if stacked {
		var others [][]string
		for _, cells := range rows {
			others = append(others, without(cells, key))
		}
		l = newLayout(others, without(headings, key), width-len(indent), optional)
	}
	var b strings.Builder
	for i, cells := range l.rows {
		if !stacked {
			writeRow(&b, cells, l.widths, l.drop)
			continue
		}
		name := rows[i][key]
		if utf8.RuneCountInString(name) > width {
			name = shortDigest(name)
		}
		b.WriteString(name + "\n")
		var below strings.Builder
		writeRow(&below, cells, l.widths, l.drop)
		for line := range strings.Lines(below.String()) {
			b.WriteString(indent + line)
		}
	}
	return b.String()
}

// without returns cells without the one at i, which a short row may lack.
func without(cells []string, i int) []string {
	return slices.Delete(slices.Clone(cells), min(i, len(cells)), min(i+1, len(cells)))
}

// layout is a table as it is printed.
type layout struct {
	rows   [][]string
	widths []int
	drop   map[int]bool // columns that are left out
}

// newLayout fits rows to width as far as that goes with a line for each row; see fit.
func newLayout(rows [][]string, headings []string, width int, optional []string) layout {
	l := layout{rows: rows, widths: columnWidths(rows), drop: map[int]bool{}}
	for _, shorten := range []func(string) string{shortDigest, shortTime} {
		if total(l.widths, nil) > width {
			l.rows = mapCells(l.rows, shorten)
			l.widths = columnWidths(l.rows)
		}
	}
	for _, heading := range optional {
		if i := slices.Index(headings, heading); i >= 0 && total(l.widths, l.drop) > width {
			l.drop[i] = true
		}
	}
	least := unbrokenWidths(l.rows)
	for total(l.widths, l.drop) > width {
		widest := -1
		for i, w := range l.widths {
			if !l.drop[i] && w > least[i] && (widest < 0 || w > l.widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break
		}
		l.widths[widest]--
	}
	return l
}

// keyOf returns which column has the key of a row; -1 if none has.
func keyOf(headings []string) int {
	for _, key := range keys {
		if i := slices.Index(headings, key); i >= 0 {
			return i
		}
	}
	return -1
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

// unbrokenWidths returns how wide each column is at least, so that no cell is broken where it
// must not be.
func unbrokenWidths(rows [][]string) []int {
	var widths []int
	for _, cells := range rows {
		for i, cell := range cells {
			if i == len(widths) {
				widths = append(widths, minColumn)
			}
			for _, part := range wrap(cell, 1, 0) {
				widths[i] = max(widths[i], utf8.RuneCountInString(part))
			}
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

var (
	fullDigest = regexp.MustCompile(`\b(sha256|sha384|sha512):([0-9a-f]{12})[0-9a-f]{52,}`)
	// timeAndAge is what when returns.
	timeAndAge = regexp.MustCompile(`(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ) \([^()]* ago\)`)
)

// shortDigest returns text with short digests.
func shortDigest(text string) string { return fullDigest.ReplaceAllString(text, "$1:$2") }

// shortTime returns text without how long ago its times were.
func shortTime(text string) string { return timeAndAge.ReplaceAllString(text, "$1") }

// mapCells returns rows with fn applied to each cell.
func mapCells(rows [][]string, fn func(string) string) [][]string {
	mapped := make([][]string, len(rows))
	for i, cells := range rows {
		mapped[i] = make([]string, len(cells))
		for j, cell := range cells {
			mapped[i][j] = fn(cell)
		}
	}
	return mapped
}

// wrap breaks text into lines of at most width runes, at spaces if it can, else behind a comma
// or within a media type. Other words are never broken: they may be references, digests or
// paths, which people copy. A line with one that is longer has more runes. Lines after the first
// are indent shorter, for the caller's indentation.
func wrap(text string, width, indent int) []string {
	var lines []string
	rest, breaks := []rune(text), breaksOf(text)
	for len(rest) > width {
		at := breakAt(rest, breaks, width)
		next := at
		for next < len(rest) && rest[next] == ' ' {
			next++
		}
		lines = append(lines, strings.TrimRight(string(rest[:at]), " "))
		if rest, breaks = rest[next:], breaks[next:]; len(rest) == 0 {
			return lines
		}
		if len(lines) == 1 {
			width -= indent
		}
	}
	return append(lines, string(rest))
}

// breaksOf returns for each rune of text whether a word may be broken behind it.
func breaksOf(text string) []bool {
	var breaks []bool
	for word := range strings.SplitSeq(text, " ") {
		separators := ","
		if strings.HasPrefix(word, "application/") {
			separators = ",/.+"
		}
		for _, r := range word {
			breaks = append(breaks, strings.ContainsRune(separators, r))
		}
		breaks = append(breaks, false) // the space
	}
	return breaks
}

// breakAt returns how many runes of a text that is longer than width go on its first line.
func breakAt(text []rune, breaks []bool, width int) int {
	begin := 0 // of the words: an indentation is no place to break
	for begin < len(text) && text[begin] == ' ' {
		begin++
	}
	for at := width; at > begin; at-- {
		if text[at] == ' ' {
			return at
		}
	}
	for at := width; at > begin; at-- {
		if breaks[at-1] {
			return at
		}
	}
	for at := max(width, begin) + 1; at < len(text); at++ {
		if breaks[at-1] || text[at] == ' ' {
			return at
		}
	}
	return len(text)
}
