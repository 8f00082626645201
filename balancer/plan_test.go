package balancer

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// specOf builds a spec from lines in the manner of ipvsadm-save:
//
//	tcp 10.0.0.1:80 rr
//	  192.168.1.11:8080 1
func specOf(tb testing.TB, text string) Spec {
	tb.Helper()
	spec := DefaultSpec()
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case words[0] == "tcp" || words[0] == "udp":
			svc := ServiceSpec{Protocol: TCP, Address: netip.MustParseAddrPort(words[1])}
			if words[0] == "udp" {
				svc.Protocol = UDP
			}
			if len(words) > 2 {
				svc.Scheduler = words[2]
			}
			spec.Services = append(spec.Services, svc)
		default:
			svc := &spec.Services[len(spec.Services)-1]
			weight := 0
			for _, digit := range words[1] {
				weight = 10*weight + int(digit-'0')
			}
			svc.Servers = append(svc.Servers, ServerSpec{netip.MustParseAddrPort(words[0]), weight})
		}
	}
	return spec
}

// settings changes what is not a service, in a function so that it fits into a table.
func settings(spec Spec, change func(*Spec)) Spec {
	change(&spec)
	return spec
}

const planFrom = `
	tcp 10.0.0.1:80 rr
	  192.168.1.11:8080 1
	  192.168.1.12:8080 2
	udp [2001:db8::1]:53
	  [fd00::11]:53 1
`

func TestPlanTexts(t *testing.T) {
	for _, c := range []struct {
		name, from string
		to         Spec
		want       string
	}{
		{"nothing", planFrom, specOf(t, planFrom), ""},
		{"the default scheduler by name", "tcp 10.0.0.1:80", specOf(t, "tcp 10.0.0.1:80 wlc"), ""},
		{"another order of services", planFrom, settings(specOf(t, planFrom), func(s *Spec) { slices.Reverse(s.Services) }), ""},
		{"from nothing", "", specOf(t, planFrom), `
			add service tcp 10.0.0.1:80 (rr)
			add server 192.168.1.11:8080 to tcp 10.0.0.1:80 (weight 1)
			add server 192.168.1.12:8080 to tcp 10.0.0.1:80 (weight 2)
			add service udp [2001:db8::1]:53 (wlc)
			add server [fd00::11]:53 to udp [2001:db8::1]:53 (weight 1)
		`},
		{"to nothing", planFrom, specOf(t, ""), `
			remove service tcp 10.0.0.1:80 (2 servers)
			remove service udp [2001:db8::1]:53 (1 server)
		`},
		{"a service without servers", "tcp 10.0.0.1:80", specOf(t, ""), `remove service tcp 10.0.0.1:80 (0 servers)`},
		{"everything at once", planFrom, settings(specOf(t, `
			udp 10.0.0.9:53 lc
			tcp 10.0.0.1:80 wrr
			  192.168.1.13:8080 5
			  192.168.1.12:8080 0
		`), func(s *Spec) {
			s.Timeouts = Timeouts{TCP: 24 * time.Hour, TCPFin: 90 * time.Second, UDP: time.Second}
			s.Tunables = Tunables{ConnReuseMode: 3, SloppyTCP: true}
		}), `
			add service udp 10.0.0.9:53 (lc)
			change service tcp 10.0.0.1:80: scheduler rr -> wrr
			remove server 192.168.1.11:8080 from tcp 10.0.0.1:80
			change server 192.168.1.12:8080 of tcp 10.0.0.1:80: weight 2 -> 0
			add server 192.168.1.13:8080 to tcp 10.0.0.1:80 (weight 5)
			remove service udp [2001:db8::1]:53 (1 server)
			set timeout tcp: 15m0s -> 24h0m0s
			set timeout tcpfin: 2m0s -> 1m30s
			set timeout udp: 5m0s -> 1s
			set tunable conn_reuse_mode: 1 -> 3
			set tunable expire_nodest_conn: 1 -> 0
			set tunable expire_quiescent_template: 1 -> 0
			set tunable sloppy_tcp: 0 -> 1
		`},
		{"timeouts left out", planFrom, settings(specOf(t, planFrom), func(s *Spec) { s.Timeouts = Timeouts{} }), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := New(Options{MaxConnections: 10})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if _, err := d.Apply(specOf(t, c.from), 0); err != nil {
				t.Fatal(err)
			}
			planned, err := d.Plan(c.to)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := planText(planned), trimLines(c.want); got != want {
				t.Errorf("the plan is\n%s\nwant\n%s", got, want)
			}
			again, err := d.Plan(c.to)
			if err != nil || planText(again) != planText(planned) {
				t.Errorf("a plan that was made has changed something: %v\n%s", err, planText(again))
			}
			applied, err := d.Apply(c.to, 0)
			if err != nil || planText(applied) != planText(planned) {
				t.Errorf("the work is not the plan: %v\n%s", err, planText(applied))
			}
			if left, err := d.Plan(c.to); err != nil || len(left) != 0 {
				t.Errorf("after it there is left to do: %v\n%s", err, planText(left))
			}
		})
	}
}

func planText(changes []Change) string {
	var lines []string
	for _, c := range changes {
		lines = append(lines, c.String())
	}
	return strings.Join(lines, "\n")
}

func trimLines(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}
