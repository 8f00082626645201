package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/lvsd/lvsd/balancer/admin"
	"github.com/lvsd/lvsd/conf"
	"github.com/lvsd/lvsd/tun"
)

// finding is a line of the doctor's report.
type finding struct {
	Grade  grade  `json:"grade"`
	About  string `json:"about"`
	Found  string `json:"found"`
	Remedy string `json:"remedy,omitempty"`
}

type grade string

const (
	good    grade = "ok"
	notice  grade = "note"    // works, but the operator may want to know
	problem grade = "problem" // lvsd cannot serve like this
)

// report is what the doctor found out.
type report struct {
	Findings []finding `json:"findings"`
	Commands []string  `json:"commands"` // that wire the namespace by hand
}

func (r *report) add(g grade, about, found, remedy string) {
	r.Findings = append(r.Findings, finding{g, about, found, remedy})
}

func newDoctor() *cobra.Command {
	var src source
	cmd := &cobra.Command{
		Use:   "doctor [-c FILE]",
		Short: "Find out what this machine allows and what it lacks",
		Long: "Looks at what lvsd needs here: the tun device and its offloads, privileges, forwarding, routes; with -c also\n" +
			"at the services and servers of a file. It changes nothing but to make a tun device for a moment. Exits with 1\n" +
			"if lvsd could not serve. With routes = \"manual\" it also prints the commands that wire the namespace.",
		Example: "  lvsd doctor\n  lvsd doctor -c /etc/lvsd/lvsd.toml\n  lvsd doctor -c lvsd.toml -o json",
		Args:    cobra.NoArgs,
	}
	src.fileFlags(cmd)
	socket := socketFlag(cmd)
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		src.socket = *socket
		c, err := src.load()
		if err != nil {
			return err
		}
		r, err := examine(cmd.Context(), c)
		if err != nil {
			return err
		}
		if *format == "json" {
			err = writeJSON(cmd.OutOrStdout(), r)
		} else {
			err = printReport(cmd.OutOrStdout(), r)
		}
		if err != nil {
			return err
		}
		for _, f := range r.Findings {
			if f.Grade == problem {
				return errReported
			}
		}
		return nil
	}
	return cmd
}

func examine(ctx context.Context, c *conf.Config) (*report, error) {
	r := new(report)
	running := r.examineSocket(ctx, c.Director.Socket)
	r.examineDevice(c.Director, running)
	w, t := wiringConfig(c.Director), target(c.Spec)
	s, err := tun.SurveyNamespace(w, t)
	if err != nil {
		return nil, fmt.Errorf("look at the network namespace: %w", err)
	}
	r.examineNamespace(s)
	for _, v := range s.VIPs {
		r.examineVIP(v)
	}
	for _, srv := range s.Servers {
		r.examineServer(srv)
	}
	for _, remark := range s.Remarks {
		r.add(notice, remark.About, remark.Problem, remark.Remedy)
	}
	if c.Director.Routes == conf.RoutesManual && len(t.VIPs) > 0 {
		if r.Commands, err = tun.Commands(w, t); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// examineSocket tells whether an lvsd answers already.
func (r *report) examineSocket(ctx context.Context, socket string) bool {
	s, _, err := admin.NewClient(socket).Status(ctx)
	switch {
	case err == nil:
		r.add(good, "lvsd", fmt.Sprintf("runs, version %s, with %s on %s", s.Version, count(len(s.Services), "service"), s.Device.Name), "")
		return true
	case errors.Is(err, os.ErrPermission):
		r.add(notice, "lvsd", err.Error(), "")
		return true
	}
	folder := filepath.Dir(socket)
	for _, err := os.Stat(folder); errors.Is(err, os.ErrNotExist) && folder != "/"; _, err = os.Stat(folder) {
		folder = filepath.Dir(folder)
	}
	if unix.Access(folder, unix.W_OK) != nil {
		r.add(problem, "admin socket", fmt.Sprintf("%s cannot be made: %s is not writable", socket, folder), "choose another place with --socket or LVSD_SOCKET")
	} else {
		r.add(good, "admin socket", socket+" can be made", "")
	}
	return false
}

// examineDevice opens the device as lvsd would, under another name if one is running.
func (r *report) examineDevice(c conf.Director, running bool) {
	name := c.Tun
	if running {
		name = "lvsd-doctor"
	}
	queues := c.QueueCount(runtime.NumCPU())
	device, err := tun.Open(tun.DeviceConfig{Name: name, Queues: queues, Offload: c.Offload})
	if err != nil {
		r.add(problem, "tun device", err.Error(), "")
		return
	}
	defer device.Close()
	o := device.Offloads()
	r.add(good, "tun device", fmt.Sprintf("opened with %s; offloads: %s; I/O mode: poll", count(queues, "queue"), o), "")
	switch {
	case !c.Offload:
		r.add(notice, "offloads", "they are turned off, which makes bulk traffic several times slower", "remove offload = false from [director]")
	case !o.TSO4 || !o.TSO6:
		r.add(notice, "offloads", "this kernel hands out no TCP super-packets, so bulk traffic is several times slower", "")
	case !o.USO:
		r.add(notice, "offloads", "this kernel hands out no UDP super-packets (Linux 6.2 does)", "")
	}
}

func (r *report) examineNamespace(s *tun.Survey) {
	if s.NetAdmin {
		r.add(good, "privileges", "CAP_NET_ADMIN in this network namespace", "")
	}
	forwarding := func(family string, on bool, key string) {
		switch {
		case on:
			r.add(good, family+" forwarding", "is on", "")
		case s.Sysctls && s.NetAdmin:
			r.add(good, family+" forwarding", "is off; lvsd turns it on when it has a service that needs it", "")
		default:
			r.add(notice, family+" forwarding", "is off, and /proc/sys cannot be written here",
				"for a container: `--sysctl "+key+"=1`; else `sysctl -w "+key+"=1` outside")
		}
	}
	forwarding("IPv4", s.Forwarding4, "net.ipv4.ip_forward")
	if s.IPv6 {
		forwarding("IPv6", s.Forwarding6, "net.ipv6.conf.all.forwarding")
	} else {
		r.add(notice, "IPv6", "this kernel has none", "")
	}
	for _, d := range s.Defaults {
		via := ""
		if d.Gateway.IsValid() {
			via = " via " + d.Gateway.String()
		}
		r.add(good, "default route", "by "+d.Interface+via, "")
	}
}

func (r *report) examineVIP(v tun.VIPSurvey) {
	about := "VIP " + v.Address.String()
	switch {
	case v.Owner != "":
		r.add(problem, about, "is an address of "+v.Owner+", so the kernel takes its packets before lvsd sees them", "")
	case v.Routed:
		r.add(good, about, "is routed into the tun device", "")
	case len(v.Subnets) > 0:
		r.add(good, about, "is in the subnet of "+strings.Join(v.Subnets, ", ")+", where lvsd answers for it", "")
	default:
		r.add(good, about, "clients must have a route to it by this machine", "")
	}
}

func (r *report) examineServer(s tun.ServerSurvey) {
	about, p := "real server "+s.Address.String(), s.Path
	if p.Unreachable {
		r.add(problem, about, "cannot be reached: "+p.Reason, "")
		return
	}
	found := fmt.Sprintf("by %s, MTU %d", p.Interface, p.MTU)
	if p.Gateway.IsValid() {
		found = fmt.Sprintf("by %s via %s, MTU %d", p.Interface, p.Gateway, p.MTU)
	}
	r.add(good, about, found+"; its default route must lead here", "")
}

func printReport(w io.Writer, r *report) error {
	mark := map[grade]string{good: "ok     ", notice: "note   ", problem: "PROBLEM"}
	var b strings.Builder
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "%s  %s: %s\n", mark[f.Grade], f.About, f.Found)
		if f.Remedy != "" {
			fmt.Fprintf(&b, "         -> %s\n", f.Remedy)
		}
	}
	if len(r.Commands) > 0 {
		fmt.Fprintf(&b, "\nCommands that wire this namespace by hand, to be run when lvsd is running:\n\n")
		for _, c := range r.Commands {
			fmt.Fprintf(&b, "  %s\n", c)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
