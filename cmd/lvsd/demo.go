package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/lvsd/lvsd/balancer/admin"
	"github.com/lvsd/lvsd/integration/lab"
)

func newDemo() *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See it work, in network namespaces of its own",
		Long: "Builds a client, a director and three real servers in network namespaces, sends TCP, UDP and pings through the\n" +
			"director over IPv4 and IPv6, drains a server, and shows what happened. Takes a few seconds and leaves nothing\n" +
			"behind. Needs root, or a user namespace and a /dev/net/tun that this user may open; no program but this one.\n" +
			"Exits with 0 only if all of it held.",
		Example: "  lvsd demo\n  lvsd demo --keep     stay, to be played with, until Ctrl-C",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "stay until Ctrl-C, and print commands to play with")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := lab.Check(); err != nil {
			return demoAsUser(cmd.Context(), keep, err)
		}
		return runDemo(cmd.Context(), cmd.OutOrStdout(), keep)
	}
	return cmd
}

// demoAsUser runs the demo inside a user namespace, because it cannot run here for the reason given.
func demoAsUser(ctx context.Context, keep bool, reason error) error {
	args := []string{"demo"}
	if keep {
		args = append(args, "--keep")
	}
	err := lab.EnterUserNamespace(ctx, args...)
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return errReported // the demo inside has said it
	}
	if err != nil {
		return fmt.Errorf("%w (and without one: %w)", err, reason)
	}
	return nil
}

// demo is the stage: the network, the director in it, and the audience.
type demo struct {
	net    *lab.Network
	out    io.Writer
	folder string
	lvsd   *lab.Cmd
	log    bytes.Buffer // of lvsd; read only after it ended
	exited chan error
}

const demoPort = "80"

func runDemo(ctx context.Context, out io.Writer, keep bool) (err error) {
	d := &demo{out: out, exited: make(chan error, 1)}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.setUp(ctx); err != nil {
		return err
	}
	for _, step := range demoSteps {
		if err := d.play(ctx, step); err != nil {
			return fmt.Errorf("%s: %w%s", step.title, err, d.lastWords())
		}
	}
	if keep {
		d.printCommands()
		<-ctx.Done()
		fmt.Fprintln(out)
	}
	if err := d.play(ctx, demoStep{"SIGTERM takes everything away", (*demo).stop}); err != nil {
		return fmt.Errorf("stop: %w%s", err, d.lastWords())
	}
	fmt.Fprintln(out, "\nAll of it held.")
	return nil
}

// demoStep is a claim and the proof of it. The proof returns what there was to see.
type demoStep struct {
	title string
	prove func(*demo, context.Context) ([]string, error)
}

func (d *demo) play(ctx context.Context, step demoStep) error {
	if ctx.Err() == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
	} else {
		ctx = context.WithoutCancel(ctx) // Ctrl-C ended --keep; what is left is to stop
	}
	lines, err := step.prove(d, ctx)
	if err != nil {
		fmt.Fprintf(d.out, "FAILED  %s\n", step.title)
		return err
	}
	fmt.Fprintf(d.out, "  ok    %s\n", step.title)
	for _, line := range lines {
		fmt.Fprintf(d.out, "          %s\n", line)
	}
	return nil
}

// setUp builds the network, starts the servers in it, and lvsd between them.
func (d *demo) setUp(ctx context.Context) (err error) {
	if d.folder, err = os.MkdirTemp("", "lvsd-demo-"); err != nil {
		return err
	}
	if d.net, err = lab.New(lab.Options{PointToPoint: true}); err != nil {
		return err
	}
	for _, s := range d.net.Servers {
		for _, start := range []func() (*lab.Service, error){
			func() (*lab.Service, error) { return s.ServeHTTP(":8080") },
			func() (*lab.Service, error) { return s.ServeUDPEcho(":5353") },
			func() (*lab.Service, error) { return s.ServeTCPEcho(":7000") },
			func() (*lab.Service, error) { return s.ServeDiscard(":9000") },
		} {
			if _, err := start(); err != nil {
				return err
			}
		}
	}
	d.printTopology()
	if err := d.writeConfig(""); err != nil {
		return err
	}
	return d.start(ctx)
}

func (d *demo) printTopology() {
	fmt.Fprintf(d.out, "\n  %-12s          director               %-9s %s  %s\n", "client1", "server1", d.net.Servers[0].IPv4, d.net.Servers[0].IPv6)
	fmt.Fprintf(d.out, "  %-12s -------- [ lvs0 <-> lvsd ] ------ %-9s %s  %s\n", d.net.Clients[0].IPv4, "server2", d.net.Servers[1].IPv4, d.net.Servers[1].IPv6)
	fmt.Fprintf(d.out, "  %-12s          VIP %-14s     %-9s %s  %s\n", d.net.Clients[0].IPv6, d.net.VIP4, "server3", d.net.Servers[2].IPv4, d.net.Servers[2].IPv6)
	fmt.Fprintf(d.out, "  %-12s              %-14s\n\n", "", d.net.VIP6)
}

// writeConfig writes the director's file, with the named server drained.
func (d *demo) writeConfig(drained string) error {
	var b strings.Builder
	for _, vip := range d.net.VIPs() {
		for _, svc := range []struct{ protocol, port, serverPort string }{
			{"tcp", demoPort, "8080"}, {"udp", "53", "5353"}, {"tcp", "7000", "7000"}, {"tcp", "9000", "9000"},
		} {
			fmt.Fprintf(&b, "[[service]]\naddress = %q\nprotocol = %q\nscheduler = \"rr\"\n", hostPort(vip, svc.port), svc.protocol)
			for _, s := range d.net.Servers {
				addr, weight := s.IPv4, 1
				if vip.Is6() {
					addr = s.IPv6
				}
				if s.Name == drained {
					weight = 0
				}
				fmt.Fprintf(&b, "[[service.server]]\naddress = %q\nweight = %d\n", hostPort(addr, svc.serverPort), weight)
			}
		}
	}
	return os.WriteFile(d.config(), []byte(b.String()), 0o644)
}

func (d *demo) config() string { return filepath.Join(d.folder, "lvsd.toml") }
func (d *demo) socket() string { return filepath.Join(d.folder, "lvsd.sock") }

// start runs `lvsd run` in the director's namespace and waits until it answers.
func (d *demo) start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	d.lvsd = d.net.Director.Command(context.WithoutCancel(ctx), self, "run", "-c", d.config(), "--socket", d.socket())
	d.lvsd.Stdout, d.lvsd.Stderr = &d.log, &d.log
	if err := d.lvsd.Start(); err != nil {
		return err
	}
	go func() { d.exited <- d.lvsd.Wait() }()
	return d.await(ctx, "lvsd to be ready", func(s *admin.Status) bool { return s.Device.IO != "" })
}

// await polls the director's status until it is as wanted.
func (d *demo) await(ctx context.Context, what string, wanted func(*admin.Status) bool) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		s, err := d.status(ctx)
		if err == nil && wanted(s) {
			return nil
		}
		select {
		case err := <-d.exited:
			d.exited <- err
			return fmt.Errorf("lvsd ended: %w%s", cmp.Or(err, errors.New("exit status 0")), d.lastWords())
		case <-ctx.Done():
			return fmt.Errorf("waited in vain for %s: %w", what, cmp.Or(err, ctx.Err()))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (d *demo) status(ctx context.Context) (*admin.Status, error) {
	s, _, err := admin.NewClient(d.socket()).Status(ctx)
	return s, err
}

// stop ends lvsd and looks whether it left anything.
func (d *demo) stop(ctx context.Context) ([]string, error) {
	if err := d.lvsd.Process.Signal(syscall.SIGTERM); err != nil {
		return nil, err
	}
	select {
	case err := <-d.exited:
		d.exited <- err
		if err != nil {
			return nil, fmt.Errorf("lvsd ended: %w", err)
		}
	case <-ctx.Done():
		return nil, errors.New("lvsd did not end")
	}
	return d.leftovers()
}

// lastWords is what a lvsd that ended has logged.
func (d *demo) lastWords() string {
	select {
	case err := <-d.exited:
		d.exited <- err
		return "\nlvsd's log:\n" + d.log.String()
	default:
		return ""
	}
}

func (d *demo) close() error {
	var errs []error
	if d.net != nil {
		errs = append(errs, d.net.Close())
	}
	if d.folder != "" {
		errs = append(errs, os.RemoveAll(d.folder))
	}
	return errors.Join(errs...)
}

func (d *demo) printCommands() {
	client, director := d.net.Clients[0].Enter(), d.net.Director.Enter()
	fmt.Fprintf(d.out, `
The network stays until Ctrl-C. From another terminal:

  %[1]s curl http://%[3]s/
  %[1]s curl 'http://[%[4]s]/'
  %[1]s ping %[3]s
  %[2]s ip route
  lvsd status --socket %[5]s
  $EDITOR %[6]s; kill -HUP %[7]d      change services and servers
`, client, director, d.net.VIP4, d.net.VIP6, d.socket(), d.config(), d.lvsd.Process.Pid)
}
