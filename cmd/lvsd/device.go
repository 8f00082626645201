package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/lvsd/lvsd/balancer"
	"github.com/lvsd/lvsd/balancer/admin"
	"github.com/lvsd/lvsd/stack"
	"github.com/lvsd/lvsd/tun"
)

// A device that is deleted is made again, but not for ever: somebody may not want it.
const (
	maxDeletions   = 5
	deletionWindow = time.Minute
)

// keepDevice serves the tun device, and another one whenever somebody deletes it.
func (d *director) keepDevice(ctx context.Context) error {
	var deletions []time.Duration
	for {
		err := d.serveDevice(ctx)
		if !errors.Is(err, tun.ErrGone) {
			return err
		}
		now := d.clock()
		deletions = append(deletions, now)
		if n := len(deletions); n > maxDeletions && now-deletions[n-1-maxDeletions] < deletionWindow {
			return fmt.Errorf("%w %d times within %v; giving up, as somebody else seems to want the name %s",
				err, maxDeletions+1, deletionWindow, d.config.Director.Tun)
		}
		d.log.Warn("the tun device was deleted; making it again", "device", d.config.Director.Tun)
	}
}

// serveDevice opens the device, leads the traffic into it and forwards what comes until ctx is done.
func (d *director) serveDevice(ctx context.Context) error {
	c := d.config.Director
	device, err := tun.Open(tun.DeviceConfig{Name: c.Tun, Queues: c.QueueCount(runtime.NumCPU()), Offload: c.Offload})
	if err != nil {
		return err
	}
	defer device.Close()
	d.device.Store(device)
	defer d.device.Store(nil)

	g, ctx := errgroup.WithContext(ctx)
	for _, q := range device.Queues() {
		g.Go(func() error {
			err := d.balancer.Serve(q, d.clock)
			if errors.Is(err, os.ErrClosed) {
				return nil
			}
			return err
		})
	}
	g.Go(func() error {
		if err := d.wire(); err != nil {
			return err
		}
		d.log.Info("ready", "version", version, "device", c.Tun, "queues", len(device.Queues()),
			"offloads", device.Offloads().String(), "socket", c.Socket, "services", len(d.balancer.Spec().Services))
		_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return device.Close()
	})
	return g.Wait()
}

// wire makes the network namespace fit what the balancer runs.
func (d *director) wire() error {
	remarks, err := d.wiring.Apply(target(d.balancer.Spec()))
	d.remark(remarks)
	if err != nil {
		return fmt.Errorf("lead traffic into %s: %w", d.config.Director.Tun, err)
	}
	return nil
}

// remark logs what is new among the remarks about the namespace.
func (d *director) remark(remarks []tun.Remark) {
	known := make(map[tun.Remark]bool)
	if old := d.remarks.Swap(&remarks); old != nil {
		for _, r := range *old {
			known[r] = true
		}
	}
	for _, r := range remarks {
		if !known[r] {
			d.log.Warn(r.String())
		}
	}
}

// follow tells the balancer what has changed around it.
func (d *director) follow(p tun.Paths) {
	d.remark(p.Remarks)
	env := balancer.Environment{Paths: make(map[netip.Addr]balancer.Path, len(p.Servers)), Owned: p.Owned, Local: p.Local, SendLocal: p.SendLocal}
	for rip, path := range p.Servers {
		env.Paths[rip] = balancer.Path{MTU: path.MTU, Unreachable: path.Unreachable, Source: path.Source}
	}
	d.balancer.SetEnvironment(env)
}

// status answers the admin socket.
func (d *director) status() admin.Status {
	s := admin.Status{Version: version, Started: d.started, Status: d.balancer.Status()}
	s.Device.Name = d.config.Director.Tun
	if device := d.device.Load(); device != nil {
		s.Device.IO = "poll"
		s.Device.Offloads = strings.Fields(device.Offloads().String())
		for _, q := range device.Queues() {
			t := q.Stats()
			s.Device.Queues = append(s.Device.Queues, admin.Queue{FramesIn: t.FramesIn, FramesOut: t.FramesOut, Wakeups: t.Wakeups, Refused: t.Refused.Total()})
		}
	}
	if remarks := d.remarks.Load(); remarks != nil {
		for _, r := range *remarks {
			s.Remarks = append(s.Remarks, r.String())
		}
	}
	return s
}

// hostLimits are the limits that the host itself obeys for the answers that lvsd gives in its place.
func hostLimits() stack.Limits {
	limits := stack.DefaultLimits()
	if n, err := sysctl("net.ipv4.icmp_ratelimit"); err == nil {
		limits.PerAddress = time.Duration(n) * time.Millisecond
	}
	if n, err := sysctl("net.ipv4.icmp_msgs_per_sec"); err == nil {
		limits.PerSecond = n
	}
	return limits
}

func sysctl(name string) (int, error) {
	data, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

func monotonicNow() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return time.Duration(t.Nano())
}
