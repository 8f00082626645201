package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/lvsd/lvsd/balancer"
	"github.com/lvsd/lvsd/balancer/admin"
	"github.com/lvsd/lvsd/conf"
	"github.com/lvsd/lvsd/tun"
)

func newRun() *cobra.Command {
	var src source
	var logFormat, logLevel string
	cmd := &cobra.Command{
		Use:   "run [-c FILE]",
		Short: "Balance, in the foreground",
		Long: "Runs the director until SIGTERM or SIGINT, which take away every route, rule and neighbour entry it made.\n" +
			"SIGHUP reads the file again and changes what differs; connections go on, and a bad file changes nothing.\n" +
			"Without a file the director starts without services.",
		Example: "  lvsd run -c /etc/lvsd/lvsd.toml\n" +
			"  lvsd run -c lvsd.toml --socket /tmp/lvsd.sock --tune expire_nodest_conn=0\n" +
			"  kill -HUP $(pidof lvsd)             read the file again",
		Args: cobra.NoArgs,
	}
	src.fileFlags(cmd)
	src.tuneFlag(cmd)
	socket := socketFlag(cmd)
	cmd.Flags().StringVar(&logFormat, "log-format", "text", "format of the log on standard error: text or json")
	cmd.Flags().StringVar(&logLevel, "log-level", "info", "least level that is logged: debug, info, warn or error")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		src.socket = *socket
		log, err := newLogger(cmd.ErrOrStderr(), logFormat, logLevel)
		if err != nil {
			return &usageError{err}
		}
		d, err := newDirector(src, log)
		if err != nil {
			return err
		}
		return d.run(cmd.Context())
	}
	return cmd
}

func newLogger(w io.Writer, format, level string) (*slog.Logger, error) {
	var opts slog.HandlerOptions
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q is not one of debug, info, warn, error", level)
	}
	opts.Level = l
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, &opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, &opts)), nil
	}
	return nil, fmt.Errorf("--log-format %q is not one of text, json", format)
}

// director is a running lvsd: the parts, wired together. This file is the only place that does so.
type director struct {
	source   source
	log      *slog.Logger
	started  time.Time
	config   *conf.Config // as at the start
	balancer *balancer.Director
	wiring   *tun.Wiring
	device   atomic.Pointer[tun.Device] // nil while there is none
	remarks  atomic.Pointer[[]tun.Remark]
}

func newDirector(src source, log *slog.Logger) (*director, error) {
	c, err := src.load()
	if err != nil {
		return nil, err
	}
	return &director{source: src, log: log, started: time.Now(), config: c}, nil
}

// clock is the time that the balancer goes by: since the start, monotonic.
func (d *director) clock() time.Duration { return time.Since(d.started) }

// run starts the parts in the order in which each needs the ones before, serves until ctx is done or a part fails, and
// takes them away in the reverse order.
func (d *director) run(ctx context.Context) (err error) {
	c := d.config.Director
	listener, err := admin.Listen(c.Socket)
	if err != nil {
		return err
	}
	defer listener.Close()

	d.balancer, err = balancer.New(balancer.Options{MaxConnections: c.Connections, Limits: hostLimits()})
	if err != nil {
		return err
	}
	defer d.balancer.Close()
	if _, err := d.balancer.Apply(d.config.Spec, d.clock()); err != nil {
		return err
	}

	d.wiring, err = tun.NewWiring(wiringConfig(c), d.log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.wiring.Close()) }()

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.keepDevice(ctx) })
	g.Go(func() error { return d.wiring.Watch(ctx, d.follow) })
	g.Go(func() error { return admin.Serve(ctx, listener, admin.Handler(d.status)) })
	g.Go(func() error { return d.expire(ctx) })
	g.Go(func() error { return d.reloadOnHangup(ctx) })
	return g.Wait()
}

func wiringConfig(c conf.Director) tun.WiringConfig {
	return tun.WiringConfig{Device: c.Tun, Manual: c.Routes == conf.RoutesManual, Table: c.Table, Priority: c.Priority}
}

// target is what the namespace must be wired for, by what the balancer runs.
func target(spec balancer.Spec) tun.Target {
	var t tun.Target
	for _, svc := range spec.Services {
		t.VIPs = append(t.VIPs, svc.Address.Addr())
		for _, srv := range svc.Servers {
			t.RIPs = append(t.RIPs, srv.Address.Addr())
		}
	}
	return t
}

// expire takes idle connections out of the table.
func (d *director) expire(ctx context.Context) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			d.balancer.Expire(d.clock())
		}
	}
}

// reloadOnHangup reads the file again on each SIGHUP.
func (d *director) reloadOnHangup(ctx context.Context) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangup:
			_, _ = daemon.SdNotify(false, daemon.SdNotifyReloading+"\n"+monotonicUsec())
			if err := d.reload(); err != nil {
				d.log.Error("reload failed; nothing was changed", "err", err)
			}
			_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
		}
	}
}

// reload makes what runs what the file says now, all or nothing.
func (d *director) reload() error {
	c, err := d.source.load()
	if err != nil {
		return err
	}
	for _, key := range d.config.Director.RestartKeys(c.Director) {
		d.log.Warn("a changed key waits for a restart", "key", key)
	}
	changes, err := d.balancer.Apply(c.Spec, d.clock())
	if err != nil {
		return err
	}
	for _, change := range changes {
		d.log.Info("reload: " + change.String())
	}
	d.log.Info("reloaded", "file", d.source.path, "changes", len(changes))
	if err := d.wire(); err != nil {
		d.log.Error("reloaded, but the network namespace does not fit", "err", err)
	}
	return nil
}

// monotonicUsec is what systemd wants beside RELOADING.
func monotonicUsec() string {
	return fmt.Sprintf("MONOTONIC_USEC=%d", monotonicNow().Microseconds())
}
