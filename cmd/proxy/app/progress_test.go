package app

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/operator"
)

func TestProgressIsToldByLinesNowAndThen(t *testing.T) {
	var out bytes.Buffer
	now := time.Now()
	l := &progressLines{w: &out, verb: "warm", began: now, now: func() time.Time { return now }}
	s := operator.Progress{
		Unit: "images", Done: 3, Total: 10, Bytes: 1 << 20, TotalBytes: 3 << 20,
		Current: []operator.Transfer{{Name: "nginx:1.27"}, {Name: "evil\x1b[2J"}},
	}
	for range 11 { // a second each
		l.tell(s)
		now = now.Add(time.Second)
		s.Done++
	}
	want := "warm: 8 of 10 images, 1MiB of 3MiB; at nginx:1.27, evil?[2J\n" +
		"warm: 13 of 10 images, 1MiB of 3MiB; at nginx:1.27, evil?[2J\n"
	if out.String() != want {
		t.Errorf("want\n%sgot\n%s", want, out.String())
	}
	for range 20 {
		s.Current = append(s.Current, operator.Transfer{Name: "more"})
	}
	out.Reset()
	now = now.Add(time.Minute)
	l.tell(s)
	if got := strings.Count(out.String(), "more"); got != maxBars-2 {
		t.Errorf("want names up to a bound, got %s", out.String())
	}
}
