package balancer

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// fieldErrors returns the fields that an error is about, with the beginnings of what it says.
func fieldErrors(tb testing.TB, err error) map[string]string {
	tb.Helper()
	found := make(map[string]string)
	var walk func(error)
	walk = func(err error) {
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range joined.Unwrap() {
				walk(e)
			}
			return
		}
		var field *FieldError
		if !errors.As(err, &field) {
			tb.Fatalf("%v is not a FieldError", err)
		}
		if before, twice := found[field.Field]; twice {
			tb.Errorf("two errors about %s: %q, %q", field.Field, before, field.Problem)
		}
		found[field.Field] = field.Problem
	}
	if err != nil {
		walk(err)
	}
	return found
}

func TestValidateFindsEverything(t *testing.T) {
	port := netip.MustParseAddrPort
	spec := Spec{
		Timeouts: Timeouts{TCP: -time.Second, TCPFin: 1500 * time.Millisecond, UDP: MaxTimeout + time.Second},
		Tunables: Tunables{ConnReuseMode: 4},
		Services: []ServiceSpec{
			{Protocol: 132, Address: port("10.0.0.1:80"), Scheduler: "best", Servers: []ServerSpec{
				{Address: port("192.168.1.11:80"), Weight: -1},
				{Address: port("192.168.1.12:0"), Weight: MaxWeight + 1},
				{Address: port("[fd00::1]:80")},
				{Address: port("192.168.1.11:80")},
				{},
			}},
			{Protocol: TCP, Address: port("10.0.0.2:80")},
			{Protocol: TCP, Address: port("10.0.0.2:80")},
			{Protocol: UDP, Address: port("10.0.0.2:80")},
			{Protocol: TCP},
			{Protocol: TCP, Address: port("127.0.0.1:80")},
			{Protocol: TCP, Address: port("0.0.0.0:80")},
			{Protocol: TCP, Address: port("224.0.0.1:80")},
			{Protocol: TCP, Address: port("255.255.255.255:80")},
			{Protocol: TCP, Address: port("[::ffff:10.0.0.3]:80")},
			{Protocol: TCP, Address: port("[fe80::1]:80")},
			{Protocol: TCP, Address: port("[2001:db8::1%eth0]:80")},
			{Protocol: TCP, Address: port("[ff02::1]:80")},
			{Protocol: TCP, Address: port("[::1]:80")},
			{Protocol: TCP, Address: port("[::]:80")},
			{Protocol: TCP, Address: port("10.0.0.4:0")},
		},
	}
	want := map[string]string{
		"service[0].protocol":          "tcp or udp",
		"service[0].scheduler":         `"best" is not one of lc,`,
		"service[0].server[0].weight":  "0 to 2147483647",
		"service[0].server[1].address": "port 0",
		"service[0].server[1].weight":  "0 to 2147483647",
		"service[0].server[2].address": "another address family",
		"service[0].server[3].address": "already server[0]",
		"service[0].server[4].address": "must be an address and a port",
		"service[2].address":           "already service[1]",
		"service[4].address":           "must be an address and a port",
		"service[5].address":           "cannot be routed",
		"service[6].address":           "cannot be routed",
		"service[7].address":           "cannot be routed",
		"service[8].address":           "cannot be routed",
		"service[9].address":           "write 10.0.0.3",
		"service[10].address":          "link-local",
		"service[11].address":          "link-local",
		"service[12].address":          "cannot be routed",
		"service[13].address":          "cannot be routed",
		"service[14].address":          "cannot be routed",
		"service[15].address":          "port 0",
		"timeouts.tcp":                 "whole seconds",
		"timeouts.tcpfin":              "whole seconds",
		"timeouts.udp":                 "whole seconds",
		"tunables.conn_reuse_mode":     "one of 0, 1, 2, 3",
	}
	err := spec.Validate()
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != len(want) || !strings.HasPrefix(lines[0], "service[0].protocol: must") {
		t.Errorf("the error has %d lines, the first is %q", len(lines), lines[0])
	}
	got := fieldErrors(t, err)
	for field, problem := range want {
		said := strings.NewReplacer("not an address that packets can be routed", "cannot be routed").Replace(got[field])
		if !strings.Contains(said, problem) {
			t.Errorf("%s: %q, want %q", field, got[field], problem)
		}
	}
	for field := range got {
		if _, ok := want[field]; !ok {
			t.Errorf("%s: %q, which is right", field, got[field])
		}
	}
}

func TestValidSpecs(t *testing.T) {
	for _, spec := range []Spec{
		{},
		DefaultSpec(),
		specOf(t, planFrom),
		specOf(t, `
			tcp 169.254.1.1:1
			tcp 10.0.0.1:65535 wrr
			  10.0.0.2:1 0
			  10.0.0.2:2 2147483647
			udp 10.0.0.1:65535 lc
			tcp [2001:db8::1]:80 rr
			  [2001:db8::2]:80 1
		`),
		{Timeouts: Timeouts{TCP: MaxTimeout, TCPFin: time.Second, UDP: MaxTimeout}, Tunables: Tunables{ConnReuseMode: 3}},
	} {
		if err := spec.Validate(); err != nil {
			t.Errorf("%+v: %v", spec, err)
		}
	}
}

// TestServerMustNotBeAVIP: what is sent to an address that is routed into the director comes back to it, forever.
func TestServerMustNotBeAVIP(t *testing.T) {
	for _, text := range []string{
		"tcp 10.0.0.1:80\n 10.0.0.1:80 1",
		"tcp 10.0.0.1:80\n 10.0.0.1:8080 1",
		"tcp 10.0.0.1:80\n 10.0.0.2:80 1\n tcp 10.0.0.2:80",
		"tcp [2001:db8::1]:80\n [2001:db8::1]:81 1",
	} {
		if spec := specOf(t, text); spec.Validate() == nil {
			t.Errorf("a server that is a VIP is valid:\n%s", text)
		}
	}
}

// TestApplyIsAllOrNothing: one thing that is wrong keeps all the others from being done.
func TestApplyIsAllOrNothing(t *testing.T) {
	r := newRig(t, "tcp4")
	r.setServers("rs1", "rs2")
	before := r.Spec()
	for name, change := range map[string]func(*Spec){
		"service":  func(s *Spec) { s.Services[1].Address = netip.AddrPort{} },
		"server":   func(s *Spec) { s.Services[0].Servers[1].Weight = -1 },
		"timeout":  func(s *Spec) { s.Timeouts.UDP = time.Millisecond },
		"tunables": func(s *Spec) { s.Tunables.ConnReuseMode = -1 },
	} {
		spec := before.withDefaults()
		spec.Services[0].Scheduler = "lc"
		spec.Services[0].Servers[0].Weight = 0
		spec.Services = append(spec.Services, ServiceSpec{Protocol: UDP, Address: r.end("vip2")})
		spec.Timeouts.TCP = time.Second
		spec.Tunables.SloppyTCP = true
		change(&spec)
		for what, do := range map[string]func() ([]Change, error){
			"Plan":  func() ([]Change, error) { return r.Plan(spec) },
			"Apply": func() ([]Change, error) { return r.Apply(spec, r.now) },
		} {
			changes, err := do()
			if len(fieldErrors(t, err)) != 1 || changes != nil {
				t.Errorf("%s with a wrong %s: %v, %v", what, name, changes, err)
			}
		}
		if got := r.Spec(); !reflect.DeepEqual(got, before) {
			t.Errorf("a spec with a wrong %s changed something: %+v", name, got)
		}
	}
	r.script(`
		c1 -> vip SYN   => c1 -> rs1 SYN
		c1 -> vip ACK   => c1 -> rs1 ACK
		c2 -> vip ACK   => vip -> c2 RST
		conn c1 -> vip ESTABLISHED 15m0s
	`)
}

// TestSpecRoundTrip: what was applied is what is told, complete and a copy.
func TestSpecRoundTrip(t *testing.T) {
	r := newRig(t, "tcp4")
	spec := specOf(t, planFrom)
	spec.Timeouts = Timeouts{TCP: time.Minute}
	if _, err := r.Apply(spec, 0); err != nil {
		t.Fatal(err)
	}
	want := specOf(t, planFrom)
	want.Services[1].Scheduler = "wlc"
	want.Timeouts = Timeouts{TCP: time.Minute, TCPFin: 2 * time.Minute, UDP: 5 * time.Minute}
	got := r.Spec()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("applied %+v\ntold    %+v", want, got)
	}
	got.Services[0].Servers[0].Weight = 77
	got.Services[0].Scheduler = "lc"
	spec.Services[0].Servers[0].Weight = 78
	if got := r.Spec(); !reflect.DeepEqual(got, want) {
		t.Error("the director shares memory with a spec that it took or gave")
	}
	if changes, err := r.Apply(r.Spec(), 0); err != nil || len(changes) != 0 {
		t.Errorf("applying what runs changes %v, %v", changes, err)
	}
}
