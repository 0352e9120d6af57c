package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options say how much is measured.
type options struct {
	quick    bool
	only     []string
	subjects []string
	program  string
	rounds   int
	out      string
	dir      string
	logLevel string
	profiles string

	// span is for how long a hot subject is asked in each round, rounds how
	// often, slowRounds the same for slow rows.
	span       time.Duration
	slowRounds int
	// calm is for how long a sample waits for the others to be quiet.
	calm  time.Duration
	sizes sizes
	// blobs is how many a full cache has.
	blobs int
	// current is the row that runs.
	current string
	// news takes a line on what is going on.
	news io.Writer
}

func (o *options) progress(format string, args ...any) {
	fmt.Fprintf(o.news, format+"\n", args...)
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == hubCommand {
		exit(serveHub(os.Args[2:], os.Stdin, os.Stdout))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// run measures what the arguments say; the table goes to stdout.
func run(ctx context.Context, args []string, stdout, news io.Writer) error {
	o := options{news: news}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(news)
	only := flags.String("only", "", "run the rows whose names have one of these words, divided by commas")
	among := flags.String("subjects", "", "measure the subjects whose names have one of these words, divided by commas (Entrepot,static)")
	from := flags.String("from", "", "measure nothing, but tell of earlier runs: their bench.json files, divided by commas")
	list := flags.Bool("list", false, "list the rows and end")
	images := flags.String("images", "", "measure nothing, but make a cache directory of small images there, with -blobs manifests, configs and layers in all, and end")
	blobs := flags.Int("blobs", 1_000_000, "how many of them -images makes")
	flags.BoolVar(&o.quick, "quick", false, "all rows with smaller blobs and fewer rounds, in under two minutes")
	flags.IntVar(&o.rounds, "rounds", 0, "rounds of each row; by default 5, of slow rows 3, with -quick 2 and 1")
	flags.StringVar(&o.out, "out", "", "directory for the table, all rounds as JSON, and plots")
	flags.StringVar(&o.program, "program", "", "measure this entrepot program instead of one built from the tree")
	flags.StringVar(&o.dir, "dir", "", "directory for caches and files while it runs, on a disk; by default the system's temporary directory")
	flags.DurationVar(&o.calm, "calm", 0, "wait up to that long, before each sample, until others leave the machine nearly alone")
	flags.StringVar(&o.logLevel, "log", "warn", "Entrepot's log level; info writes a line for each request, which the peers are told not to do")
	flags.StringVar(&o.profiles, "profiles", "", "directory for CPU and allocation profiles of Entrepot under the hot rows; profiling costs some speed")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unknown argument %q", flags.Arg(0))
	}
	if *images != "" {
		return fillImages(ctx, *images, *blobs)
	}
	if *only != "" {
		o.only = strings.Split(*only, ",")
	}
	if *among != "" {
		o.subjects = strings.Split(*among, ",")
	}
	if *from != "" {
		rep, err := readReports(strings.Split(*from, ","))
		if err != nil {
			return err
		}
		return rep.tell(stdout, o.out)
	}
	o.scale()
	chosen := slices.DeleteFunc(rows(), func(r row) bool { return !o.wants(r.name) })
	if *list {
		for _, r := range chosen {
			fmt.Fprintf(stdout, "%-16s %s\n", r.name, r.title)
		}
		return nil
	}
	if len(chosen) == 0 {
		return fmt.Errorf("no row has %q in its name; -list shows them", *only)
	}
	return measure(ctx, o, chosen, stdout)
}

func (o *options) wants(name string) bool {
	return len(o.only) == 0 || slices.ContainsFunc(o.only, func(word string) bool { return strings.Contains(name, word) })
}

func (o *options) measures(s subject) bool {
	return len(o.subjects) == 0 || slices.ContainsFunc(o.subjects, func(word string) bool { return strings.Contains(string(s), word) })
}

// scale sets how much of everything there is.
func (o *options) scale() {
	o.span, o.sizes = 2500*time.Millisecond, sizes{Large: 1 << 30, Medium: 100 * mebibyte, Small: 128 << 10, Layers: 60, Tiny: 5000}
	o.blobs = 1_000_000
	rounds, slow := 5, 3
	if o.quick {
		o.span = 400 * time.Millisecond
		o.sizes.Large, o.sizes.Medium, o.sizes.Tiny = 128*mebibyte, 32*mebibyte, 1000
		o.blobs = 10_000
		rounds, slow = 2, 1
	}
	o.slowRounds = slow
	if o.rounds > 0 {
		rounds, o.slowRounds = o.rounds, o.rounds
	}
	o.rounds = rounds
}

// measure runs the rows and tells of them.
func measure(ctx context.Context, o options, chosen []row, stdout io.Writer) (err error) {
	began := time.Now()
	b, err := open(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	rep := &report{Runs: []occasion{{
		Date: began.UTC().Truncate(time.Second), Quick: o.quick, LogLevel: o.logLevel, Machine: thisMachine(), Versions: b.versions(ctx),
	}}}
	for _, r := range chosen {
		measured, failure := b.row(ctx, r)
		if failure != nil {
			// What is there is told of all the same.
			err = fmt.Errorf("%s: %w", r.name, failure)
			break
		}
		rep.Rows = append(rep.Rows, measured)
		rep.Runs[0].Took = time.Since(began).Round(time.Second).String()
		if o.out != "" {
			if err := rep.write(o.out); err != nil {
				return err
			}
		}
	}
	return errors.Join(err, rep.tell(stdout, o.out))
}

// row measures a row, its subjects in turns. An error is the bench's own
// trouble; a subject's is in the rounds.
func (b *bench) row(ctx context.Context, r row) (measuredRow, error) {
	m := measuredRow{Name: r.name, Title: r.title, row: r, Subjects: map[subject]*measured{}}
	rounds := b.o.rounds
	if r.slow {
		rounds = b.o.slowRounds
	}
	b.o.current = r.name
	asked := slices.DeleteFunc(slices.Clone(r.subjects), func(s subject) bool { return !b.o.measures(s) })
	for n := range rounds {
		var turn []subject
		if len(asked) > 0 {
			turn = slices.Concat(asked[n%len(asked):], asked[:n%len(asked)])
		}
		for _, s := range turn {
			if m.Subjects[s] == nil {
				m.Subjects[s] = &measured{}
			}
			of := m.Subjects[s]
			if of.Absent != "" || r.slow && (n > 0 || b.o.quick) && !r.barred(s) {
				continue
			}
			if err := b.waitForCalm(ctx); err != nil {
				return m, err
			}
			begin := time.Now()
			x, err := r.run(ctx, b, s)
			if ctx.Err() != nil {
				return m, ctx.Err()
			}
			var absent errAbsent
			switch {
			case errors.As(err, &absent):
				of.Absent = err.Error()
				b.o.progress("%s: %s: %s", r.name, s, of.Absent)
				continue
			case err != nil:
				of.Rounds = append(of.Rounds, round{Round: n, Failure: err.Error()})
			default:
				of.Rounds = append(of.Rounds, round{Round: n, Figures: r.only(x)})
			}
			b.o.progress("%s, round %d of %d: %s: %s (%.1f s)", r.name, n+1, rounds, s, of.Rounds[len(of.Rounds)-1], time.Since(begin).Seconds())
		}
	}
	return m, nil
}
