package doctor

import (
	"errors"
	"net/http"
	"testing"

	"github.com/entrepot-dev/entrepot/doctor/client"
	"github.com/entrepot-dev/entrepot/operator"
)

func TestAVerdictSaysWhereAPullWentThrough(t *testing.T) {
	head := operator.Request{Method: http.MethodHead, Kind: "manifest", Status: 200, Client: "10.0.0.7"}
	get := operator.Request{Method: http.MethodGet, Kind: "manifest", Status: 200, Client: "10.0.0.7"}
	blob := operator.Request{Method: http.MethodGet, Kind: "blob", Status: 200, Bytes: 2048, Client: "10.0.0.7"}
	denied := operator.Request{Method: http.MethodGet, Kind: "manifest", Status: 403, Error: "not for you", Client: "10.0.0.7"}
	for name, c := range map[string]struct {
		here   bool
		err    error
		ours   []operator.Request
		others []operator.Request
		status Status
		seen   string
	}{
		"all of it":            {ours: []operator.Request{head, get, blob, blob}, status: OK, seen: "came through the cache: 2 requests for manifests and 2 for blobs, 4KiB"},
		"there before":         {here: true, ours: []operator.Request{head}, status: OK, seen: "was there before"},
		"the tag alone":        {ours: []operator.Request{head}, status: Warning, seen: "had no blob from it"},
		"none":                 {status: Failure, seen: "silent bypass: docker pull has pulled x, and has asked the cache for nothing"},
		"refused":              {ours: []operator.Request{denied}, status: Failure, seen: "silent bypass: the cache answered docker pull with 403: not for you"},
		"the blobs elsewhere":  {ours: []operator.Request{head, denied}, status: Failure, seen: "the rest from the registry itself"},
		"one was retried":      {ours: []operator.Request{denied, get, blob}, status: Warning, seen: "but for 1 requests that it answered 403: not for you"},
		"referrers are none":   {ours: []operator.Request{get, blob, {Method: http.MethodGet, Kind: "referrers", Status: 404}}, status: OK, seen: "came through"},
		"from another address": {others: []operator.Request{get}, status: Warning, seen: "sees this machine as 10.0.0.1"},
		"failed":               {err: errors.New("no daemon"), status: Failure, seen: "asked the cache for nothing: no daemon"},
		"failed and refused":   {err: errors.New("denied"), ours: []operator.Request{denied}, status: Failure, seen: "answered it 403: not for you"},
		"failed all the same":  {err: errors.New("no room"), ours: []operator.Request{get, blob}, status: Failure, seen: "though the cache answered it"},
	} {
		t.Run(name, func(t *testing.T) {
			s := pullSeen{Pulled: client.Pulled{Command: "docker pull", Here: c.here, Err: c.err}, ours: c.ours, others: c.others, address: "10.0.0.1"}
			want(t, []Finding{s.verdict("x")}, c.status, c.seen)
		})
	}
}
