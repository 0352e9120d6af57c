package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/entrepot-dev/entrepot/configs"
)

func newHealthcheck(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Ask a running entrepot whether it is in order",
		Long: `Healthcheck asks /healthz of the admin listener that the same settings would open,
and exits with 1 where the answer is not ok. It is what an image without a shell
runs as its health check. With --ready it asks /readyz.`,
		Example: `  entrepot healthcheck
  HEALTHCHECK CMD ["/entrepot", "healthcheck"]`,
		Args: cobra.NoArgs,
		RunE: does(p.healthcheck),
	}
	cmd.Flags().Bool("ready", false, "ask whether clients may be sent here")
	cmd.Flags().Duration("timeout", 3*time.Second, "`time` to wait for the answer")
	cmd.Flags().String("admin-listen", "", "`address` of the admin listener")
	addOutputFlag(cmd.Flags())
	return cmd
}

func (p *process) healthcheck(cmd *cobra.Command, _ []string) error {
	asJSON, err := asJSON(cmd)
	if err != nil {
		return err
	}
	cfg, broken, err := p.loadToAsk(cmd)
	if err != nil {
		return err
	}
	if broken != nil {
		fmt.Fprintf(p.stderr, "entrepot: warning: %v\n", broken)
	}
	if cfg.Admin.Listen == configs.AdminOff {
		return errors.New("admin.listen is off, so that there is nothing to ask; set it to an address, such as 127.0.0.1:5001")
	}
	timeout, err := cmd.Flags().GetDuration("timeout")
	if err != nil {
		return err
	}
	path := "/healthz"
	if ready, err := cmd.Flags().GetBool("ready"); err != nil {
		return err
	} else if ready {
		path = "/readyz"
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
	defer cancel()
	answer, err := ask(ctx, cfg.Admin, path)
	if err != nil {
		return err
	}
	if asJSON {
		return writeJSON(p.stdout, health{Address: reachable(cfg.Admin.Listen), Path: path, Status: answer})
	}
	_, err = fmt.Fprintln(p.stdout, answer)
	return err
}

// health is what healthcheck prints as JSON.
type health struct {
	Address string `json:"address"`
	Path    string `json:"path"`
	// Status is the answer's text.
	Status string `json:"status"`
}

// reachable gives the address at which this machine reaches a listener.
func reachable(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}

// dialSelf connects to a listener of this machine.
func dialSelf(ctx context.Context, listen string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return d.DialContext(ctx, "tcp", listen)
	}
	// Not looked up as localhost: an image made from scratch may have no file
	// that says what that is.
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", port))
	if err == nil {
		return conn, nil
	}
	if conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort("::1", port)); err == nil {
		return conn, nil
	}
	return nil, err
}

// maxAnswer is the most that is read of an answer, in bytes.
const maxAnswer = 8 << 20

// ask gives what the admin listener says, or an error where that is not ok.
func ask(ctx context.Context, a configs.Admin, path string) (string, error) {
	o, err := newOperatorListener(a)
	if err != nil {
		return "", err
	}
	defer o.transport.CloseIdleConnections()
	listen, url := a.Listen, o.url(path)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := o.transport.RoundTrip(req) // health needs no token
	if errors.Is(err, syscall.ECONNREFUSED) {
		return "", fmt.Errorf("no entrepot listens at %s: start it, or name its admin.listen (--admin-listen, ENTREPOT_ADMIN_LISTEN): %w", reachable(listen), err)
	}
	if err != nil {
		return "", fmt.Errorf("ask %s: %w", url, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return "", fmt.Errorf("ask %s: %w", url, err)
	}
	answer := strings.TrimSpace(string(body))
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s says %s: %s", url, resp.Status, answer)
	}
	return answer, nil
}
