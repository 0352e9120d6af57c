package app

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/entrepot-dev/entrepot/operator"
)

// openTerminal gives the two ends of a terminal.
func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 200}); err != nil {
		t.Fatal(err)
	}
	return master, slave
}

func TestProgressIsDrawnOnATerminalAndTakenAway(t *testing.T) {
	master, slave := openTerminal(t)
	read := make(chan string, 1000)
	go func() { // it ends when the terminal is closed
		defer close(read)
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			if err != nil {
				return
			}
			read <- string(b[:n])
		}
	}()
	p := &process{stderr: slave}
	bars := p.newProgress("warm")
	name := strings.Repeat("long/", 20) + "name:1"
	bars.tell(operator.Progress{
		Unit: "images", Done: 1, Total: 2, Bytes: 1 << 20, TotalBytes: 2 << 20,
		Current: []operator.Transfer{{Name: "nginx:1.27", Bytes: 1 << 20, TotalBytes: 2 << 20}, {Name: name}},
	})
	drawn := ""
	until := func(what string) {
		t.Helper()
		for deadline := time.After(time.Minute); !strings.Contains(drawn, what); {
			select {
			case s := <-read:
				drawn += s
			case <-deadline:
				t.Fatalf("want %q, got %q", what, drawn)
			}
		}
	}
	for _, what := range []string{"nginx:1.27 ", "1.0 MiB of 2.0 MiB", "ng/name:1 ", "1 of 2 images, 1MiB of 2MiB"} {
		until(what)
	}
	if strings.Contains(drawn, name) {
		t.Errorf("a name is as long as it likes: %q", drawn)
	}
	bars.tell(operator.Progress{Unit: "images", Done: 2, Total: 2, Bytes: 2 << 20, TotalBytes: 2 << 20})
	until("2 of 2 images")
	bars.end()
	_, _ = fmt.Fprint(slave, "the table")
	until("the table")
	// What was drawn is erased: between the last bar and the table the cursor goes up
	// and clears.
	if tail := drawn[strings.LastIndex(drawn, "2 of 2 images"):]; !strings.Contains(tail, "\x1b[") {
		t.Errorf("want the bars taken away, got %q", tail)
	}
}
