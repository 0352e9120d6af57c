package app

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/entrepot-dev/entrepot/operator"
)

const (
	// lineEvery is how often a line is printed at most where bars can not be.
	lineEvery = 5 * time.Second
	// maxBars is how many bars there are at most beside that of the whole.
	maxBars = 8
	// maxBarName is how many bytes of a name stand before its bar.
	maxBarName = 48
)

// progress tells on stderr how far a command has come. Its methods are for one
// goroutine.
type progress struct {
	// tell is told the news, end that there are no more.
	tell func(operator.Progress)
	end  func()
}

// newProgress begins to tell. verb says what is done: "scrub". The caller calls end
// before it prints anything else.
func (p *process) newProgress(verb string) progress {
	if isTerminal(p.stderr) {
		b := newBars(p.stderr, verb)
		return progress{tell: b.tell, end: b.end}
	}
	l := &progressLines{w: p.stderr, verb: verb, began: time.Now(), now: time.Now}
	return progress{tell: l.tell, end: func() {}}
}

// event tells what an event of the operator's API says, which is an
// operator.Progress.
func (p progress) event(e json.RawMessage) error {
	var s operator.Progress
	if err := json.Unmarshal(e, &s); err != nil {
		return err
	}
	p.tell(s)
	return nil
}

// progressLines tells by lines, every now and then.
type progressLines struct {
	w           io.Writer
	verb        string
	began, last time.Time
	now         func() time.Time
}

func (l *progressLines) tell(s operator.Progress) {
	now := l.now()
	if now.Sub(cmp.Or(l.last, l.began)) < lineEvery {
		return
	}
	l.last = now
	var names []string
	for i, t := range s.Current {
		if i == maxBars {
			names = append(names, "…")
			break
		}
		names = append(names, printable(t.Name))
	}
	at := ""
	if len(names) > 0 {
		at = "; at " + strings.Join(names, ", ")
	}
	fmt.Fprintf(l.w, "%s: %s%s\n", l.verb, counts(s), at)
}

// counts says how far s is in words.
func counts(s operator.Progress) string {
	text := fmt.Sprintf("%d of %d %s", s.Done, s.Total, s.Unit)
	if s.TotalBytes > 0 {
		text += fmt.Sprintf(", %s of %s", bytesOf(s.Bytes), bytesOf(s.TotalBytes))
	}
	if s.Waiting != "" {
		text += "; waiting: " + printable(s.Waiting)
	}
	return text
}

// printable gives s without what would move a terminal's cursor, or have text run
// backwards.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// bars tells by a bar for all, and one for each of what is under way.
type bars struct {
	all     *mpb.Progress
	whole   *mpb.Bar
	state   atomic.Pointer[operator.Progress]
	current map[string]*mpb.Bar
}

// newBars begins to draw on w, a terminal, until end.
func newBars(w io.Writer, verb string) *bars {
	b := &bars{all: mpb.New(mpb.WithOutput(w), mpb.WithWidth(24)), current: map[string]*mpb.Bar{}}
	b.state.Store(&operator.Progress{})
	b.whole = b.all.AddBar(0,
		mpb.BarPriority(1<<30), // below the others
		mpb.PrependDecorators(decor.Name(verb+" ")),
		mpb.AppendDecorators(decor.Any(func(s decor.Statistics) string {
			return " " + counts(*b.state.Load())
		}), decor.AverageSpeed(decor.SizeB1024(0), "  % .1f")),
	)
	return b
}

func (b *bars) tell(s operator.Progress) {
	b.state.Store(&s)
	b.whole.SetTotal(s.TotalBytes, false)
	b.whole.SetCurrent(s.Bytes)
	there := map[string]bool{}
	for _, t := range s.Current {
		if len(there) == maxBars {
			break
		}
		there[t.Name] = true
		bar := b.current[t.Name]
		if bar == nil {
			bar = b.add(t.Name)
			b.current[t.Name] = bar
		}
		bar.SetTotal(t.TotalBytes, false)
		bar.SetCurrent(t.Bytes)
	}
	for name, bar := range b.current {
		if !there[name] {
			bar.Abort(true)
			delete(b.current, name)
		}
	}
}

func (b *bars) add(name string) *mpb.Bar {
	name = printable(name)
	if len(name) > maxBarName {
		name = "…" + strings.ToValidUTF8(name[len(name)-maxBarName:], "")
	}
	return b.all.AddBar(0,
		mpb.PrependDecorators(decor.Name(name+" ", decor.WCSyncWidthR)),
		mpb.AppendDecorators(decor.Counters(decor.SizeB1024(0), " % .1f of % .1f")),
	)
}

// end takes the bars away: what is printed next tells all that they did.
func (b *bars) end() {
	for _, bar := range b.current {
		bar.Abort(true)
	}
	b.whole.Abort(true)
	b.all.Wait()
}
