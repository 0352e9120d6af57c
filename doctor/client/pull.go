package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Puller pulls an image by a client's own program.
type Puller struct {
	// Program is the one that is run, "docker".
	Program string
	// here is the command that succeeds where the image is there already, pull the one
	// that pulls it, and remove the one that removes it; here and remove may be empty.
	// {image} in their arguments stands for the image.
	here, pull, remove []string
	// dir is made before the pull, with a Dockerfile in it, for {dir}.
	dir bool
	// others is how long here and remove may take; zero is otherTimeout.
	others time.Duration
}

// Pulled is what came of a pull.
type Pulled struct {
	// Command is what was run.
	Command string
	// Here is set where the image was there before.
	Here bool
	// Err is why it failed, as the program says.
	Err error
}

// namespace is that of containerd in which images are pulled by ctr: nobody else's.
const namespace = "entrepot-doctor"

// NewPuller finds the program of a client. Its error says what is missing.
func NewPuller(name string, s Site) (*Puller, error) {
	var all []*Puller
	switch name {
	case "docker":
		all = []*Puller{{Program: "docker", here: []string{"image", "inspect", "{image}"},
			pull: []string{"pull", "{image}"}, remove: []string{"image", "rm", "{image}"}}}
	case "podman":
		all = []*Puller{{Program: "podman", here: []string{"image", "exists", "{image}"},
			pull: []string{"pull", "{image}"}, remove: []string{"image", "rm", "{image}"}}}
	case "containerd":
		// What CRI does is what Kubernetes does; ctr reads the same hosts.toml files.
		ctr := []string{"-n", namespace}
		all = []*Puller{
			{Program: "crictl", here: []string{"inspecti", "{image}"}, pull: []string{"pull", "{image}"}, remove: []string{"rmi", "{image}"}},
			{Program: "ctr", pull: append(ctr, "content", "fetch", "--hosts-dir", HostsDir(s), "{image}"), remove: append(ctr, "images", "rm", "{image}")},
		}
	case "buildkit":
		all = []*Puller{
			{Program: "buildctl", dir: true, pull: []string{"build", "--frontend", "dockerfile.v0", "--local", "context={dir}", "--local", "dockerfile={dir}", "--no-cache"}},
			{Program: "docker", dir: true, pull: []string{"buildx", "build", "--no-cache", "--pull", "{dir}"}},
		}
	case "k3s":
		all = []*Puller{{Program: "k3s", here: []string{"crictl", "inspecti", "{image}"}, pull: []string{"crictl", "pull", "{image}"}, remove: []string{"crictl", "rmi", "{image}"}}}
	default:
		return nil, fmt.Errorf("%q is no client that is known", name)
	}
	if config, _, err := planHostsDir(s); name == "containerd" && err == nil && len(config.Notes) > 0 {
		all = all[1:] // without CRI there is nothing for crictl to ask
	}
	var names []string
	for _, p := range all {
		if _, err := exec.LookPath(p.Program); err == nil {
			return p, nil
		}
		names = append(names, p.Program)
	}
	return nil, fmt.Errorf("%s is not in the path of this shell", strings.Join(names, " nor "))
}

const (
	// pullTimeout bounds a pull, and otherTimeout what is run beside it.
	pullTimeout  = 2 * time.Minute
	otherTimeout = 20 * time.Second
	// maxAnswer and maxOutput are how much of the end of what a program writes to stdout
	// and to stderr is kept, in bytes.
	maxAnswer = 1 << 20
	maxOutput = 2 << 10
)

// Pull pulls image, and removes it again where it was not there before.
func (p *Puller) Pull(ctx context.Context, image string) Pulled {
	dir := ""
	if p.dir {
		made, err := os.MkdirTemp("", "entrepot-doctor-")
		if err != nil {
			return Pulled{Err: err}
		}
		defer func() { _ = os.RemoveAll(made) }()
		if err := os.WriteFile(filepath.Join(made, "Dockerfile"), []byte("FROM "+image+"\n"), 0o600); err != nil {
			return Pulled{Err: err}
		}
		dir = made
	}
	args := func(list []string) []string {
		var filled []string
		for _, a := range list {
			filled = append(filled, strings.NewReplacer("{image}", image, "{dir}", dir).Replace(a))
		}
		return filled
	}
	pulled := Pulled{Command: strings.Join(append([]string{p.Program}, args(p.pull)...), " ")}
	if p.here != nil {
		// What can not be told is taken to be there, so that nobody's image is removed.
		_, err := run(ctx, p.patience(), p.Program, args(p.here)...)
		pulled.Here = err == nil || errors.Is(err, errUnended)
	}
	_, pulled.Err = run(ctx, pullTimeout, p.Program, args(p.pull)...)
	if pulled.Err == nil && !pulled.Here && p.remove != nil {
		// What is left behind is no reason to say that the pull has failed.
		_, _ = run(ctx, p.patience(), p.Program, args(p.remove)...)
	}
	return pulled
}

// patience is how long what is run beside a pull may take.
func (p *Puller) patience() time.Duration { return cmp.Or(p.others, otherTimeout) }

// errUnended says that a program was ended before it was done.
var errUnended = errors.New("it has not ended")

// run runs a program, and gives what it writes to stdout; its error is the last
// line of what it writes to stderr.
func run(ctx context.Context, limit time.Duration, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...) // #nosec G204 -- a known program, with an image that was parsed as a reference
	cmd.WaitDelay = time.Second
	out, errs := tail{most: maxAnswer}, tail{most: maxOutput}
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	switch {
	case err != nil && ctx.Err() != nil:
		return "", fmt.Errorf("%w within %s", errUnended, limit)
	case err != nil && lastLine(errs.kept) != "":
		return "", errors.New(lastLine(errs.kept))
	case err != nil:
		return "", err
	}
	return string(out.kept), nil
}

// lastLine gives the last line of what a program writes that says something: why it
// failed, as a rule.
func lastLine(text []byte) string {
	trimmed := strings.TrimSpace(string(text))
	return strings.TrimSpace(trimmed[strings.LastIndexByte(trimmed, '\n')+1:])
}

// tail keeps the end of what is written.
type tail struct {
	kept []byte
	most int // how much
}

func (t *tail) Write(b []byte) (int, error) {
	t.kept = append(t.kept, b[max(0, len(b)-t.most):]...)
	if over := len(t.kept) - t.most; over > 0 {
		t.kept = append(t.kept[:0], t.kept[over:]...)
	}
	return len(b), nil
}
