package doctor

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/go-units"

	"github.com/entrepot-dev/entrepot/doctor/client"
	"github.com/entrepot-dev/entrepot/operator"
)

const (
	// markTimeout is how long a request of our own may take to be told of.
	markTimeout = 10 * time.Second
	// settle is how long after it others may be told of that were before it.
	settle = 500 * time.Millisecond
	// watchFor is for how long is watched at most: a pull has two minutes, and what is
	// run beside it less.
	watchFor = 4 * time.Minute
	// maxRequests is how many are kept of a pull.
	maxRequests = 1000
)

// Cache is a running cache as its clients and its operator reach it.
type Cache struct {
	// URL is where clients reach it, and HTTP sends requests there.
	URL  string
	HTTP http.RoundTripper
	// Operator uses the API of its admin listener.
	Operator *operator.Client
}

// errStranger says that two listeners are not of one process.
var errStranger = errors.New("a request to it was not seen there: that admin listener is of another Entrepot")

// Address sends the cache a request and gives the address of this machine as the cache
// sees it. It fails where the cache and the admin listener are not of one process.
func (c Cache) Address(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	mark := newMark()
	address := ""
	err := c.watch(ctx, operator.Interest{Agent: mark}, func() error { return c.knock(ctx, mark) }, func(r *operator.Request) bool {
		address = r.Client
		return true
	})
	if err == nil || address != "" {
		return address, nil
	}
	if ctx.Err() != nil && context.Cause(ctx) == context.DeadlineExceeded {
		err = errStranger
	}
	return "", err
}

// newMark makes a text that no other request has.
func newMark() string { return "entrepot-doctor/" + strings.ToLower(rand.Text()) }

// knock sends the cache a request with a mark.
func (c Cache) knock(ctx context.Context, mark string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL+"/v2/", nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", mark)
	resp, err := c.HTTP.RoundTrip(req)
	if err != nil {
		return err
	}
	_, _ = io.CopyN(io.Discard, resp.Body, maxGreeting)
	return resp.Body.Close()
}

// errEnough ends a watch.
var errEnough = errors.New("enough has been seen")

// watch has seen told of requests, from before begun is called, until seen gives true or
// ctx ends.
func (c Cache) watch(ctx context.Context, i operator.Interest, begun func() error, seen func(*operator.Request) bool) error {
	query := url.Values{"seconds": {fmt.Sprint(int(watchFor / time.Second))}}
	for name, value := range map[string]string{"repository": i.Repository, "client": i.Client, "agent": i.Agent} {
		if value != "" {
			query.Set(name, value)
		}
	}
	first := true
	err := c.Operator.Run(ctx, "watch", query, nil, func(event json.RawMessage) error {
		var w operator.Watched
		switch err := json.Unmarshal(event, &w); {
		case err != nil:
			return err
		case first:
			first = false
			return begun()
		case w.Request != nil && seen(w.Request):
			return errEnough
		}
		return nil
	}, nil)
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// Trace pulls an image by a client and says whether the pull came through the cache.
type Trace struct {
	Cache
	// Client is the client's name, Site what its files have to say.
	Client string
	Site   client.Site
	// Image is what is pulled, in full: "docker.io/library/hello-world:latest".
	Image string
}

// Name is that of the client and "pull".
func (t Trace) Name() string { return t.Client + " pull" }

// pullSeen is what was seen of a pull from both sides.
type pullSeen struct {
	client.Pulled
	// ours are the requests for the image that came from this machine, others those
	// that came from elsewhere at the same time.
	ours, others []operator.Request
	// address is that of this machine as the cache sees it.
	address string
}

// Look pulls, and asks the cache what it saw of that.
func (t Trace) Look(ctx context.Context) []Finding {
	named, err := reference.ParseNormalizedNamed(t.Image)
	if err != nil {
		return []Finding{{Status: Failure, Seen: fmt.Sprintf("%q is no reference of an image", t.Image), Advice: "give one such as docker.io/library/hello-world"}}
	}
	puller, err := client.NewPuller(t.Client, t.Site)
	if err != nil {
		return []Finding{{Status: Warning, Seen: "nothing was pulled: " + err.Error(), Advice: "run this command where the client is installed"}}
	}
	seen, err := t.pull(ctx, puller, reference.Path(named))
	if err != nil {
		return []Finding{{Status: Failure, Seen: "nothing was pulled, for the cache's requests can not be watched: " + err.Error(), Advice: "see the admin listener above"}}
	}
	found := []Finding{seen.verdict(t.Image)}
	if found[0].Status != OK && len(seen.ours) == 0 {
		for _, r := range client.Reasons(ctx, t.Client, t.Site, reference.Domain(named)) {
			found = append(found, Finding{Status: Warning, Seen: r.Seen, Advice: r.Advice})
		}
	}
	return found
}

// pull pulls while the cache's requests are watched.
func (t Trace) pull(ctx context.Context, puller *client.Puller, repository string) (*pullSeen, error) {
	address, err := t.Address(ctx)
	if err != nil {
		return nil, err
	}
	s := &pullSeen{address: address}
	end := newMark()
	ctx, stop := context.WithTimeout(ctx, watchFor)
	defer stop()
	began, ended, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	endedNow := sync.OnceFunc(func() { close(ended) }) // the request may be sent again
	// It is waited for below, and the requests of s are its own until then.
	go func() {
		done <- t.watch(ctx, operator.Interest{Repository: repository, Client: address, Agent: end}, func() error {
			close(began)
			return nil
		}, func(r *operator.Request) bool {
			switch {
			case r.UserAgent == end:
				endedNow()
			case r.Kind == "ping" || r.Repository != repository && !strings.HasSuffix(r.Repository, "/"+repository):
			case r.Client == address:
				s.ours = append(s.ours, *r)
			default:
				s.others = append(s.others, *r)
			}
			return len(s.ours)+len(s.others) >= maxRequests
		})
	}()
	select {
	case <-began:
	case err := <-done:
		return nil, err
	}
	s.Pulled = puller.Pull(ctx, t.Image)
	if err := t.knock(ctx, end); err != nil {
		stop()
		return nil, errors.Join(err, <-done)
	}
	// What was before a request of our own has been told with it, or is any moment.
	select {
	case err := <-done: // before its time, but for one that has seen enough
		return s, err
	case <-ended:
		time.Sleep(settle)
	case <-time.After(markTimeout):
	}
	stop()
	<-done
	return s, nil
}

// verdict judges what was seen.
func (s *pullSeen) verdict(image string) Finding {
	var heads, gets, blobs, refused int
	var bytes int64
	why := ""
	for _, r := range s.ours {
		switch {
		case r.Kind != "manifest" && r.Kind != "blob":
		case r.Status >= 400:
			refused++
			why = fmt.Sprintf("%d", r.Status)
			if r.Error != "" {
				why += ": " + r.Error
			}
		case r.Kind == "blob":
			blobs, bytes = blobs+1, bytes+r.Bytes
		case r.Kind == "manifest" && r.Method == http.MethodHead:
			heads++
		case r.Kind == "manifest":
			gets++
		}
	}
	came := fmt.Sprintf("%d requests for manifests and %d for blobs, %s", heads+gets, blobs, units.BytesSize(float64(bytes)))
	switch answered := heads + gets + blobs; {
	case s.Err != nil && answered+refused == 0:
		return Finding{Status: Failure, Seen: fmt.Sprintf("%s failed, and asked the cache for nothing: %v", s.Command, s.Err), Advice: "see what it says, and below"}
	case s.Err != nil && refused > 0:
		return Finding{Status: Failure, Seen: fmt.Sprintf("%s failed; the cache answered it %s", s.Command, why), Advice: "mend what the cache says"}
	case s.Err != nil:
		return Finding{Status: Failure, Seen: fmt.Sprintf("%s failed, though the cache answered it (%s): %v", s.Command, came, s.Err), Advice: "see what it says"}
	case answered+refused == 0 && len(s.others) > 0:
		return Finding{Status: Warning, Seen: fmt.Sprintf("%s has pulled; the cache was asked for the image by %s, and sees this machine as %s", s.Command, s.others[0].Client, s.address),
			Advice: "if that is the client's address (of a virtual machine, of another interface), all is well"}
	case answered+refused == 0:
		return Finding{Status: Failure, Seen: fmt.Sprintf("silent bypass: %s has pulled %s, and has asked the cache for nothing of it", s.Command, image),
			Advice: "the client went to the registry itself; the reasons that were found follow, else see its log"}
	case answered == 0:
		return Finding{Status: Failure, Seen: fmt.Sprintf("silent bypass: the cache answered %s with %s, and the client went to the registry itself", s.Command, why), Advice: "mend what the cache says"}
	case refused > 0 && blobs == 0 && !s.Here:
		return Finding{Status: Failure, Seen: fmt.Sprintf("silent bypass: the cache answered a part of %s with %s (%s), and the client had the rest from the registry itself", s.Command, why, came), Advice: "mend what the cache says"}
	case refused > 0:
		return Finding{Status: Warning, Seen: fmt.Sprintf("%s came through the cache, but for %d requests that it answered %s (%s)", s.Command, refused, why, came),
			Advice: "the client had those from the registry itself, or asked again; mend what the cache says"}
	case blobs > 0 || s.Here:
		seen := fmt.Sprintf("%s came through the cache: %s", s.Command, came)
		if blobs == 0 {
			seen += "; the image was there before, so that nothing else was asked for"
		}
		return Finding{Status: OK, Seen: seen}
	}
	return Finding{Status: Warning, Seen: fmt.Sprintf("%s has asked the cache what the tag stands for, and had no blob from it (%s)", s.Command, came),
		Advice: "either the content was there before, or the client had it from the registry itself: try an image that is not there (--image)"}
}
