package app

import (
	"fmt"
	"reflect"
	"sync"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/entrepot-dev/entrepot/access"
	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/operator"
	"github.com/entrepot-dev/entrepot/rewrite"
)

func newReload(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have the running entrepot read its configuration again",
		Long: `Reload has the running entrepot read its file again, as a SIGHUP does, with the
environment and the flags that it was started with. A configuration that is wrong
changes nothing. Transfers and fetches under way go on as they began; requests that
come after it meet the new configuration. What can only change with a restart is named.`,
		Example: `  entrepot reload
  systemctl reload entrepot`,
		Args: cobra.NoArgs,
		RunE: p.asks(p.reload),
	}
	addOperatorFlags(cmd.Flags())
	return cmd
}

func (p *process) reload(o *operation, cmd *cobra.Command, _ []string) error {
	asJSON, err := asJSON(cmd)
	if err != nil {
		return err
	}
	var r operator.Reloaded
	if err := o.Post(o.ctx, "reload", nil, nil, &r); err != nil {
		return err
	}
	if asJSON {
		return writeJSON(p.stdout, r)
	}
	if len(r.Changed) == 0 {
		fmt.Fprintln(p.stdout, "nothing has changed that can change without a restart")
	}
	for _, key := range r.Changed {
		fmt.Fprintf(p.stdout, "changed: %s\n", key)
	}
	for _, key := range r.NeedRestart {
		fmt.Fprintf(p.stdout, "needs a restart: %s\n", key)
	}
	return nil
}

// follow makes the configuration that load gives the one in force. Where that can not
// be, nothing changes.
func (p *parts) follow(load func() (*configs.Config, error)) (operator.Reloaded, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next, err := load()
	if err != nil {
		return operator.Reloaded{}, fmt.Errorf("the configuration stays as it was: %w", err)
	}
	changed, _ := configs.Changed(p.loaded, next)
	_, later := configs.Changed(p.started, next)
	if err := p.exchange(next, p.remain(next)); err != nil {
		return operator.Reloaded{}, fmt.Errorf("the configuration stays as it was: %w", err)
	}
	p.loaded = next
	if level, err := zapcore.ParseLevel(next.Log.Level); err == nil { // it has been checked
		p.level.SetLevel(level)
	}
	p.log.Info("the configuration has been read again", zap.Strings("changed", changed), zap.Strings("need_restart", later))
	warnOf(next, p.log)
	select {
	case p.reloaded <- struct{}{}:
	default:
	}
	return operator.Reloaded{Changed: changed, NeedRestart: later}, nil
}

// exchange puts what of next can be in force without a restart in force, with members
// instead of its patterns. The caller holds p.mu.
func (p *parts) exchange(next *configs.Config, members map[string]*member) (err error) {
	all := next
	next = p.exact(all, members)
	made, err := p.newMirrors(next)
	guard := p.guard
	defer func() {
		if err == nil {
			return
		}
		for _, n := range made {
			n.registry.Close()
			if n.leases != nil {
				n.leases.Close()
			}
		}
		if guard != nil && guard != p.guard {
			guard.Close()
		}
	}()
	if err != nil {
		return err
	}
	// The guard reads the issuer's authorities when it is made, and their file may have changed.
	if next.Auth.OIDC.CA != "" || !reflect.DeepEqual(p.loaded.Auth, next.Auth) || !reflect.DeepEqual(p.loaded.Access, next.Access) {
		// Whether certificates name clients is the listener's, which stays.
		fitting := *next
		fitting.TLS = p.started.TLS
		if guard, err = newGuard(&fitting, p.guard, p.log, p.metrics); err != nil {
			return err
		}
	}
	mirrors := map[string]*mirror{}
	for name := range next.Upstreams {
		switch old, n := p.mirrors[name], made[name]; {
		case old == nil:
			mirrors[name] = n.mirror()
		case n == nil:
			mirrors[name] = old
		default:
			mirrors[name] = &mirror{configured: n.configured, live: old.live, leases: n.leases}
		}
	}
	// The router comes last: a name that it knows is known to the others.
	routes := p.joining(routing(next), all)
	if _, err := rewrite.NewRouter(routes); err != nil {
		return err
	}
	if err := p.cache.Reconfigure(settings(next, p.upstreams(next, mirrors))); err != nil {
		return err
	}
	p.retire(mirrors, guard)
	for name, n := range made {
		if old := p.mirrors[name]; old != nil {
			old.live.Exchange(n.registry)
		}
	}
	p.front.Admit(guard, p.admission(mirrors))
	p.guard, p.mirrors, p.members = guard, mirrors, members
	return p.router.Replace(routes)
}

// retire ends what the reload before this one has replaced, which no request uses any
// more, and notes what this one replaces.
func (p *parts) retire(mirrors map[string]*mirror, guard *access.Guard) {
	for _, end := range p.outdated {
		end()
	}
	p.outdated = nil
	for name, old := range p.mirrors {
		switch now := mirrors[name]; {
		case now == nil:
			p.outdated = append(p.outdated, old.live.Close)
			if old.leases != nil {
				p.outdated = append(p.outdated, old.leases.Close)
			}
		case old.leases != nil && old.leases != now.leases:
			p.outdated = append(p.outdated, old.leases.Close)
		}
	}
	if p.guard != nil && guard != p.guard {
		p.outdated = append(p.outdated, p.guard.Close)
	}
}

// followHangups reloads at each SIGHUP until stop is called.
func (p *process) followHangups(reload func() (operator.Reloaded, error), log *zap.Logger) (stop func()) {
	if p.hangups == nil {
		return func() {}
	}
	received, unnotify := p.hangups()
	var loop sync.WaitGroup
	end := make(chan struct{})
	loop.Go(func() {
		for {
			select {
			case <-received:
				if _, err := reload(); err != nil {
					log.Error("SIGHUP", zap.Error(err))
				}
			case <-end:
				return
			}
		}
	})
	return func() {
		unnotify()
		close(end)
		loop.Wait()
	}
}
