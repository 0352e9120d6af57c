package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"slices"
)

// The plot's measures, in pixels.
const (
	plotWidth  = 760
	nameWidth  = 130
	barsWidth  = 480
	barHeight  = 18
	barGap     = 6
	panelHead  = 34
	titleSpace = 36
)

var plotColours = map[subject]string{
	entrepot: "#1f6feb", static: "#7d8590", nginxCache: "#9e9e6f", distribution: "#b0752f", direct: "#58795c",
}

// plot draws a row as SVG: a panel of bars for each figure, the medians, with a
// line from the least to the most of the rounds, and a dashed line where the bar
// is that Entrepot must keep.
func (m *measuredRow) plot() []byte {
	var panels bytes.Buffer
	y := titleSpace
	for _, f := range m.row.figures {
		y = m.panel(&panels, f, y)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="12">`+"\n", plotWidth, y+8)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#ffffff"/>`+"\n")
	fmt.Fprintf(&b, `<text x="10" y="24" font-size="15" font-weight="bold">%s</text>`+"\n", html.EscapeString(m.Title))
	b.Write(panels.Bytes())
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// panel draws a figure from y down and gives where it ends. A figure that nobody
// has takes no room.
func (m *measuredRow) panel(b *bytes.Buffer, f figure, y int) int {
	var shown []subject
	top := 0.0
	for _, s := range subjects {
		if v := m.Subjects[s].values(f.key); len(v) > 0 {
			shown = append(shown, s)
			_, most := extremes(v)
			top = max(top, most)
		}
	}
	if len(shown) == 0 {
		return y
	}
	goal := m.goal(f)
	if !math.IsNaN(goal) {
		top = max(top, goal)
	}
	if top == 0 {
		top = 1
	}
	x := func(v float64) float64 { return nameWidth + v/top*barsWidth }
	head := f.title
	if f.bar != nil {
		head += " (" + f.bar.String() + ")"
	}
	fmt.Fprintf(b, `<text x="10" y="%d" font-weight="bold" fill="#444444">%s</text>`+"\n", y+20, html.EscapeString(head))
	y += panelHead
	begin := y
	for _, s := range shown {
		of := m.Subjects[s]
		mid := of.median(f.key)
		least, most := extremes(of.values(f.key))
		fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, nameWidth-8, y+13, html.EscapeString(string(s)))
		fmt.Fprintf(b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, nameWidth, y, x(mid)-nameWidth, barHeight, plotColours[s])
		fmt.Fprintf(b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%[2]d" stroke="#000000"/>`, x(least), y+barHeight/2, x(most))
		fmt.Fprintf(b, `<text x="%.1f" y="%d">%.*f</text>`+"\n", x(most)+6, y+13, f.digits, mid)
		y += barHeight + barGap
	}
	if !math.IsNaN(goal) {
		fmt.Fprintf(b, `<line x1="%.1f" y1="%d" x2="%[1]f" y2="%d" stroke="#cf222e" stroke-dasharray="4 3"/>`+"\n", x(goal), begin-3, y)
	}
	return y + 4
}

// goal is what the figure's bar asks of Entrepot, in the figure's own unit; NaN
// where there is no bar.
func (m *measuredRow) goal(f figure) float64 {
	if f.bar == nil {
		return math.NaN()
	}
	if f.bar.over == "" {
		return f.bar.limit
	}
	other := m.Subjects[f.bar.over]
	if other == nil {
		return math.NaN()
	}
	if f.bar.by == atMostMore {
		return other.median(f.key) + f.bar.limit
	}
	return other.median(f.key) * f.bar.limit
}

func extremes(v map[int]float64) (least, most float64) {
	var list []float64
	for _, x := range v {
		list = append(list, x)
	}
	return slices.Min(list), slices.Max(list)
}
