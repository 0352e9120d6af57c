package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/doctor"
	"github.com/entrepot-dev/entrepot/doctor/client"
)

// clientFile is a configuration file of a client, as it is told of: without what others
// have put into it, which may be secret.
type clientFile struct {
	Path string `json:"path"`
	// Exists is set where there was one.
	Exists bool `json:"exists"`
	// Complete is set where it says already what it is to say, or does now.
	Complete bool `json:"complete"`
	// Written is set where it was written, Backup where what was there is.
	Written bool   `json:"written"`
	Backup  string `json:"backup,omitempty"`
	// Says is what it is to say.
	Says string `json:"says"`
	// Restart is what has to be done so that it is taken over.
	Restart string `json:"restart,omitempty"`
}

// print prints what is to be pasted into a file; nothing where nothing is.
func (f *clientFile) print(w io.Writer) error {
	if f.Complete {
		return nil
	}
	verb := "is to be"
	if f.Exists {
		verb = "is to say as well"
	}
	_, err := fmt.Fprintf(w, "\n%s %s:\n\n%s", f.Path, verb, f.Says)
	if err == nil && f.Restart != "" {
		_, err = fmt.Fprintf(w, "\nthen: %s\n", f.Restart)
	}
	return err
}

// treat finds out what the files of a client are to say, and has that written where it
// is to be. It tells whether a pull would show what they say.
func (e *examination) treat(ctx context.Context, f doctorFlags, result *examined) (ready bool) {
	check := f.client + " configuration"
	tell := func(s doctor.Status, seen, advice string) {
		result.Findings = append(result.Findings, doctor.Finding{Check: check, Status: s, Seen: seen, Advice: advice})
	}
	if e.url == "" || f.url == "" && e.cfg == nil {
		tell(doctor.Failure, "the address of the cache is not known, for its configuration is wrong", "mend that, or give --url")
		return false
	}
	if f.url == "" && e.cfg.TLS.Cert != "" {
		if err := isFor(e.cfg.TLS, e.url); err != nil {
			tell(doctor.Failure, fmt.Sprintf("clients that are given %s will not trust it: %v", e.url, err), "give the name of the cache that its certificate has: --url https://NAME:PORT")
			return false
		}
	}
	files, err := client.Plan(ctx, f.client, e.site(f))
	if unmerged := (*client.Unmerged)(nil); errors.As(err, &unmerged) {
		tell(doctor.Failure, fmt.Sprintf("%s can not be changed: %s", unmerged.Path, unmerged.Why), "put in by hand what is printed below")
		result.Files = append(result.Files, clientFile{Path: unmerged.Path, Exists: true, Says: unmerged.Text})
		return true
	}
	if err != nil {
		tell(doctor.Failure, err.Error(), "run this command as a user who may read it")
		return true
	}
	ready = true
	for _, file := range files {
		told := clientFile{Path: file.Path, Exists: file.Exists, Complete: !file.Changes(), Says: file.Ready, Restart: file.Restart}
		switch {
		case told.Complete:
			tell(doctor.OK, file.Path+" says what it is to say", "")
		case !f.write && file.Exists:
			tell(doctor.Warning, file.Path+" does not say that the cache is to be asked first", "put in what is printed below, or have it written: --write")
		case !f.write:
			tell(doctor.Warning, file.Path+" is not there", "make it as is printed below, or have it written: --write")
		default:
			told.Backup, err = file.Write(time.Now())
			if err != nil {
				tell(doctor.Failure, fmt.Sprintf("%s could not be written: %v", file.Path, err), "run this command as a user who may write it")
				break
			}
			told.Written, told.Complete = true, true
			seen := file.Path + " has been written"
			if told.Backup != "" {
				seen += "; what was there is in " + told.Backup
			}
			if file.Restart != "" {
				tell(doctor.Warning, seen, file.Restart)
				ready = false
			} else {
				tell(doctor.OK, seen, "")
			}
		}
		for _, note := range file.Notes {
			tell(doctor.Warning, note, "")
		}
		result.Files = append(result.Files, told)
	}
	if !ready {
		tell(doctor.Warning, "nothing was pulled, for what has been written is not in force yet", "do what is said above, and run this again without --write")
	}
	return ready
}

// isFor says why a certificate is not for the host of a URL.
func isFor(c configs.ServerTLS, at string) error {
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return err
	}
	u, err := url.Parse(at)
	if err != nil {
		return err
	}
	return pair.Leaf.VerifyHostname(u.Hostname())
}

// site is what the files of the client have to say.
func (e *examination) site(f doctorFlags) client.Site {
	return client.Site{URL: e.url, Upstreams: mirrored(e.cfg), Root: f.root}
}

// traceTimeout bounds a pull and what is asked around it.
const traceTimeout = 5 * time.Minute

// trace has the client pull, and gives what came of it.
func (e *examination) trace(ctx context.Context, f doctorFlags) []doctor.Finding {
	t := doctor.Trace{Cache: doctor.Cache{URL: e.url, HTTP: e.front, Operator: e.running}, Client: f.client, Site: e.site(f), Image: f.image}
	if e.running == nil {
		return []doctor.Finding{{Check: t.Name(), Status: doctor.Warning, Seen: "nothing was pulled, for the cache can not be asked whether it comes through there",
			Advice: "give the address of its admin listener (--admin-listen), or run this command on its host"}}
	}
	return doctor.Run(ctx, []doctor.Check{t}, traceTimeout)
}

// mirrored are the names of the upstreams, the default one first; those that are there
// by default where the settings are not known.
func mirrored(cfg *configs.Config) []string {
	if cfg == nil {
		cfg = configs.Default()
	}
	var names []string
	for name := range cfg.Exact(nil).Upstreams {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		switch cfg.DefaultUpstream {
		case a:
			return -1
		case b:
			return 1
		}
		return strings.Compare(a, b)
	})
	return names
}
