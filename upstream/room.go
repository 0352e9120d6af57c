package upstream

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/entrepot-dev/entrepot/oci"
)

// room is what one answer that is being read takes of the memory that there is
// for all of them. It grows with the bytes that have come, not with what is
// announced: an upstream that announces much and sends little takes little. So
// nobody may wait for room while holding some, and who finds none fails.
type room struct {
	memory *semaphore.Weighted // nil is no bound
	taken  int64
}

// errNoRoom says that as much is being read as there is memory for.
var errNoRoom = errors.New("there is no room for what is being read")

// crowdRetry is when a client may come back that found no room.
const crowdRetry = 2 * time.Second

// reader gives r, whose bytes take room as they come.
func (o *room) reader(r io.Reader) io.Reader {
	if o.memory == nil {
		return r
	}
	return roomReader{r, o}
}

// leave gives the room back.
func (o *room) leave() { o.give(o.taken) }

// take takes n bytes more. It reports false if there is no room for them.
func (o *room) take(n int64) bool {
	if o.memory != nil && !o.memory.TryAcquire(n) {
		return false
	}
	o.taken += n
	return true
}

// give gives n bytes back.
func (o *room) give(n int64) {
	if o.memory != nil {
		o.memory.Release(n)
	}
	o.taken -= n
}

type roomReader struct {
	io.Reader
	room *room
}

func (r roomReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	if n > 0 && !r.room.take(int64(n)) {
		return 0, errNoRoom
	}
	return n, err
}

// crowded makes the failure of an answer for which there is no room. It is
// nobody's but our own.
func (r *Registry) crowded(a *answer) *failure {
	r.metrics.Refused.WithLabelValues("manifests").Inc()
	return &failure{status: a.StatusCode, away: a.away, err: &oci.Error{
		Code: oci.CodeUnavailable, Status: http.StatusServiceUnavailable, RetryAfter: crowdRetry, Err: errNoRoom,
		Message: fmt.Sprintf("the cache reads as many manifests as it has memory for (limits.manifests), so that %s is not fetched just now; ask again", a.ask.what),
	}}
}
