package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/lvsd/lvsd/balancer/admin"
)

func newStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show what a running lvsd does",
		Long:    "Shows the services of a running director with their servers, connections and traffic, its device, and what it\ndropped and why.",
		Example: "  lvsd status\n  lvsd status -o json | jq .connections\n  lvsd status --socket /tmp/lvsd.sock",
		Args:    cobra.NoArgs,
	}
	socket := socketFlag(cmd)
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, text, err := admin.NewClient(cmp.Or(*socket, admin.DefaultSocket)).Status(cmd.Context())
		if err != nil {
			return err
		}
		if *format == "json" {
			_, err := cmd.OutOrStdout().Write(text)
			return err
		}
		return printStatus(cmd.OutOrStdout(), s, time.Now())
	}
	return cmd
}

func printStatus(w io.Writer, s *admin.Status, now time.Time) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(out, "lvsd\t%s, up %s\n", s.Version, now.Sub(s.Started).Round(time.Second))
	fmt.Fprintf(out, "device\t%s, %s, %s, offloads: %s\n", s.Device.Name, cmp.Or(s.Device.IO, "gone"),
		count(len(s.Device.Queues), "queue"), strings.Join(s.Device.Offloads, " "))
	fmt.Fprintf(out, "frames\t%d in (%s, %s each), %d out (%s), %d of them only passed on\n", s.Frames.In, bytesText(s.Frames.InBytes),
		bytesText(s.Frames.Average), s.Frames.Out, bytesText(s.Frames.OutBytes), s.Frames.Passed)
	fmt.Fprintf(out, "connections\t%d of at most %d\n", s.Connections, s.MaxConnections)
	fmt.Fprintf(out, "answers\t%s\n", figures(s.Answers))
	fmt.Fprintf(out, "drops\t%s\n", figures(s.Drops))
	for _, r := range s.Remarks {
		fmt.Fprintf(out, "remark\t%s\n", r)
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if len(s.Services) == 0 {
		_, err := fmt.Fprintln(w, "\nno services")
		return err
	}
	fmt.Fprintln(w)
	out = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "SERVICE / SERVER\tSCHEDULER / WEIGHT\tACTIVE\tINACTIVE\tCONNECTIONS\tIN\tOUT\t")
	for _, svc := range s.Services {
		active, inactive := 0, 0
		for _, srv := range svc.Servers {
			active += srv.Active
			inactive += srv.Inactive
		}
		fmt.Fprintf(out, "%s %s\t%s\t%d\t%d\t%d\t%s\t%s\t\n", svc.Protocol, svc.Address, svc.Scheduler, active, inactive,
			svc.Traffic.Conns, bytesText(svc.Traffic.InBytes), bytesText(svc.Traffic.OutBytes))
		for _, srv := range svc.Servers {
			note := ""
			switch {
			case srv.Unreachable:
				note = "unreachable"
			case srv.Weight == 0:
				note = "quiesced"
			}
			fmt.Fprintf(out, "  %s\t%d\t%d\t%d\t%d\t%s\t%s\t%s\n", srv.Address, srv.Weight, srv.Active, srv.Inactive,
				srv.Traffic.Conns, bytesText(srv.Traffic.InBytes), bytesText(srv.Traffic.OutBytes), note)
		}
	}
	return out.Flush()
}

// figures writes named counters, largest first.
func figures(m map[string]uint64) string {
	if len(m) == 0 {
		return "none"
	}
	names := slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		return cmp.Or(cmp.Compare(m[b], m[a]), cmp.Compare(a, b))
	})
	for i, name := range names {
		names[i] = fmt.Sprintf("%s %d", name, m[name])
	}
	return strings.Join(names, ", ")
}
