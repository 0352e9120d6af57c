package clients

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// The air gap's page, whose commands are run as they stand there.
const airGapPage = "../../docs/air-gap.md"

// shell runs commands of the page, each of which has to succeed.
func shell(t *testing.T, dir string, env []string, commands string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", commands)
	cmd.Dir, cmd.Env = dir, environment(t, env...)
	cmd.WaitDelay = 10 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", commands, err, out)
	}
}

// story is the page's commands, by where and when they are run.
type story struct{ outside, inside, outsideAgain, insideAgain []string }

// pageCommands cuts the page.
func pageCommands(t *testing.T) story {
	t.Helper()
	b, err := os.ReadFile(airGapPage)
	if err != nil {
		t.Fatal(err)
	}
	var s story
	section, block := "", ""
	inBlock := false
	for line := range strings.Lines(string(b)) {
		switch {
		case strings.HasPrefix(line, "## "):
			section = strings.TrimSpace(line[3:])
		case line == "```sh\n":
			inBlock, block = true, ""
		case inBlock && line == "```\n":
			inBlock = false
			within := strings.Contains(block, "./inside")
			switch {
			case section == "Outside" || section == "Across":
				s.outside = append(s.outside, block)
			case section == "Inside":
				s.inside = append(s.inside, block)
			case section == "The next time" && within:
				s.insideAgain = append(s.insideAgain, block)
			case section == "The next time":
				s.outsideAgain = append(s.outsideAgain, block)
			default:
				t.Errorf("commands in the section %q", section)
			}
		case inBlock:
			block += line
		}
	}
	if len(s.outside) != 6 || len(s.inside) != 5 || len(s.outsideAgain) != 1 || len(s.insideAgain) != 1 {
		t.Fatalf("the page has other commands than this test knows: %+v", s)
	}
	return s
}

// pageHosts returns the hosts.toml of the page.
func pageHosts(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(airGapPage)
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(b), "```toml\n")
	hosts, _, ok := strings.Cut(after, "```\n")
	if !ok || !strings.Contains(hosts, `"referrers"`) {
		t.Fatalf("the page has no hosts.toml for Docker Engine 29: %q", hosts)
	}
	return hosts
}
