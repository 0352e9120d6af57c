package app

import (
	"context"

	"github.com/entrepot-dev/entrepot/operator"
	"github.com/entrepot-dev/entrepot/server"
)

// watch tells of the clients' requests until ctx ends.
func (p *parts) watch(ctx context.Context, i operator.Interest, began func() error, tell func(*operator.Request) error) (dropped int64, err error) {
	w, err := p.front.Watch(server.Interest(i))
	if err != nil {
		return 0, err
	}
	defer w.Stop()
	if err := began(); err != nil {
		return 0, err
	}
	for {
		select {
		case s := <-w.Requests:
			err := tell(&operator.Request{
				Time: s.At, Method: s.Method, Kind: s.Kind, Upstream: s.Upstream, Repository: s.Repository, Reference: s.Reference,
				Outcome: s.Outcome, Reason: s.Reason, Error: s.Error, Status: s.Status, Bytes: s.Bytes, Client: s.Client, UserAgent: s.UserAgent,
			})
			if err != nil {
				return w.Dropped(), err
			}
		case <-ctx.Done():
			return w.Dropped(), ctx.Err()
		}
	}
}
