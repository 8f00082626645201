package balancer

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lvsd/lvsd/stack"
)

// rig is a director with one worker and a clock of its own, driven by scripts. A script has a step a line:
//
//	c1 -> vip SYN => c1 -> rs1 SYN       a packet, and what comes out; see wire_test.go. More than one is joined by &.
//	c1 -> vip RST => drop stray_reset    nothing comes out and the reason is counted
//	c1 -> vip ACK => nothing             nothing comes out and nothing is counted
//	conn c1 -> vip SYN_RECV 1m0s         the connection's state, and the time it has left; or "none"
//	counts rs1 1/0                       the server's active and inactive connections
//	wait 59.996s
//	expire                               Director.Expire
//	set rs2:0                            add a server or change its weight
//	remove rs2
//	tune expire_nodest_conn 0
//
// After each step everything the director keeps is checked against itself.
type rig struct {
	testing.TB
	*Director
	worker  *Worker
	book    addressBook
	now     time.Duration
	spec    Spec
	service ServiceSpec // at vip
}

// ends are the address book of a family. The service is at vip; vip2 is a VIP only for tests that make it one, and owned
// lies in the prefix that own tells the director of.
func ends(v6 bool) addressBook {
	var book addressBook
	for _, e := range [...]struct{ name, v4, v6 string }{
		{"c1", "172.16.0.1:1001", "[fd00:c::1]:1001"},
		{"c2", "172.16.0.2:1002", "[fd00:c::2]:1002"},
		{"c3", "172.16.0.3:1003", "[fd00:c::3]:1003"},
		{"c1-again", "172.16.0.1:2001", "[fd00:c::1]:2001"},
		{"ftp", "172.16.0.4:20", "[fd00:c::4]:20"},
		{"vip", "10.0.0.1:80", "[fd00:a::1]:80"},
		{"closed", "10.0.0.1:81", "[fd00:a::1]:81"},
		{"vip2", "10.0.0.2:80", "[fd00:a::2]:80"},
		{"owned", "10.0.1.9:80", "[fd00:0:1::9]:80"},
		{"rs1", "192.168.1.11:8080", "[fd00:b::11]:8080"},
		{"rs2", "192.168.1.12:8080", "[fd00:b::12]:8080"},
		{"rs3", "192.168.1.13:8080", "[fd00:b::13]:8080"},
		{"rs1-other", "192.168.1.11:9999", "[fd00:b::11]:9999"},
		{"router", "172.30.0.1:0", "[fd00:e::1]:0"},
		{"other", "9.9.9.9:9953", "[2001:db8::9]:9953"},
		{"director", "192.168.1.1:0", "[fd00:b::1]:0"},
	} {
		text := e.v4
		if v6 {
			text = e.v6
		}
		book = append(book, namedEnd{e.name, netip.MustParseAddrPort(text)})
	}
	return book
}

// networks are a protocol and an address family each.
var networks = []string{"tcp4", "tcp6", "udp4", "udp6"}

// newRig returns a rig for one of the networks. The service at vip is scheduled by rr and has rs1.
func newRig(tb testing.TB, network string) *rig {
	return newRigWith(tb, network, Options{MaxConnections: 1000})
}

func newRigWith(tb testing.TB, network string, o Options) *rig {
	tb.Helper()
	d, err := New(o)
	if err != nil {
		tb.Fatal(err)
	}
	r := &rig{TB: tb, Director: d, worker: d.NewWorker(), book: ends(network[3] == '6'), now: time.Hour, spec: DefaultSpec()}
	tb.Cleanup(func() {
		r.worker.Close()
		if err := d.Close(); err != nil {
			tb.Error(err)
		}
	})
	r.service = ServiceSpec{Protocol: TCP, Address: r.end("vip"), Scheduler: "rr"}
	if network[:3] == "udp" {
		r.service.Protocol = UDP
	}
	r.setServers("rs1")
	return r
}

func (r *rig) end(name string) netip.AddrPort { r.Helper(); return r.book.end(r, name) }

// apply changes the spec and applies it.
func (r *rig) apply(change func(*Spec)) []Change {
	r.Helper()
	change(&r.spec)
	changes, err := r.Apply(r.spec, r.now)
	if err != nil {
		r.Fatal(err)
	}
	r.checkInvariants()
	return changes
}

// setServers gives the service servers, "rs1" or "rs1:0" with a weight, after taking those away that it has. They are
// picked in this order, for the last one is added first.
func (r *rig) setServers(names ...string) {
	r.Helper()
	r.edit(func(svc *ServiceSpec) { svc.Servers = nil })
	r.edit(func(svc *ServiceSpec) {
		for _, name := range slices.Backward(names) {
			svc.Servers = append(svc.Servers, r.serverSpec(name))
		}
	})
}

// serverSpec is a server as setServers names it.
func (r *rig) serverSpec(name string) ServerSpec {
	r.Helper()
	weight := 1
	name, number, _ := strings.Cut(name, ":")
	fmt.Sscan(number, &weight)
	return ServerSpec{Address: r.end(name), Weight: weight}
}

// edit changes the service.
func (r *rig) edit(change func(*ServiceSpec)) []Change {
	r.Helper()
	return r.apply(func(s *Spec) {
		change(&r.service)
		r.service.Servers = slices.Clone(r.service.Servers)
		s.Services = slices.Clone(s.Services)
		if i := slices.IndexFunc(s.Services, func(svc ServiceSpec) bool { return svc.key() == r.service.key() }); i >= 0 {
			s.Services[i] = r.service
		} else {
			s.Services = append(s.Services, r.service)
		}
	})
}

// set adds a server to the service or changes its weight; remove takes one away.
func (r *rig) set(name string) {
	r.Helper()
	srv := r.serverSpec(name)
	r.edit(func(svc *ServiceSpec) {
		if i := slices.IndexFunc(svc.Servers, func(s ServerSpec) bool { return s.Address == srv.Address }); i >= 0 {
			svc.Servers[i] = srv
		} else {
			svc.Servers = append(svc.Servers, srv)
		}
	})
}

func (r *rig) remove(name string) {
	r.Helper()
	r.edit(func(svc *ServiceSpec) {
		svc.Servers = slices.DeleteFunc(svc.Servers, func(s ServerSpec) bool { return s.Address == r.end(name) })
	})
}

// own tells the director of the prefix that owned lies in.
func (r *rig) own() {
	r.SetEnvironment(Environment{Owned: []netip.Prefix{
		netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("fd00:0:1::/64"),
	}})
}

// forward takes frames through the director and returns what comes out, as copies.
func (r *rig) forward(frames ...[]byte) [][]byte {
	r.Helper()
	var out [][]byte
	for _, frame := range r.worker.Forward(frames, r.now) {
		out = append(out, slices.Clone(frame))
	}
	r.checkInvariants()
	return out
}

// send takes one packet through the director and returns in text what comes out or how it was dropped.
func (r *rig) send(text string) string {
	r.Helper()
	return r.sendFor(text, "")
}

// sendFor is send for an expectation: it tells of the options that the expectation names.
func (r *rig) sendFor(text, want string) string {
	r.Helper()
	drops := r.Status().Drops
	return r.outcome(drops, r.forward(r.book.frame(r, text)), want)
}

func (r *rig) outcome(before map[string]uint64, frames [][]byte, want string) string {
	r.Helper()
	var results []string
	for _, frame := range frames {
		results = append(results, r.describe(frame, want))
	}
	for reason, n := range r.Status().Drops {
		for range n - before[reason] {
			results = append(results, "drop "+reason)
		}
	}
	if results == nil {
		return "nothing"
	}
	return strings.Join(results, " & ")
}

// describe reads a frame, with those options that the expectation names.
func (r *rig) describe(frame []byte, want string) string {
	r.Helper()
	text, packet, header := r.book.read(r, frame), frame[stack.OffloadLen:], stack.Offload(frame)
	for _, option := range [...]struct {
		name string
		set  bool
		text string
	}{
		{" ttl=", true, fmt.Sprint(ttlOf(frame))},
		{" len=", true, fmt.Sprint(len(packet))},
		{" df", packet[0]>>4 == 4 && packet[6]&0x40 != 0, ""},
		{" partial", header.Flags()&stack.OffloadNeedsChecksum != 0, ""},
		{" gso=", header.Segmentation() != stack.SegmentNone, fmt.Sprint(header.SegmentSize())},
	} {
		if option.set && strings.Contains(want, option.name) {
			text += option.name + option.text
		}
	}
	return text
}

// script runs a script.
func (r *rig) script(script string) {
	r.Helper()
	for i, line := range strings.Split(script, "\n") {
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if problem := r.step(line); problem != "" {
			r.Errorf("line %d, %q: %s", i, line, problem)
		}
	}
}

func (r *rig) step(line string) (problem string) {
	r.Helper()
	verb, rest, _ := strings.Cut(line, " ")
	if packet, want, ok := strings.Cut(line, " => "); ok {
		want = strings.Join(strings.Fields(want), " ")
		if got := r.sendFor(packet, want); got != want {
			return "got " + got
		}
		return ""
	}
	var err error
	switch words := strings.Fields(rest); verb {
	case "wait":
		var d time.Duration
		d, err = time.ParseDuration(rest)
		r.now += d
	case "expire":
		r.Expire(r.now)
		r.checkInvariants()
	case "set":
		r.set(rest)
	case "remove":
		r.remove(rest)
	case "tune":
		value, _ := strconv.Atoi(words[1])
		r.apply(func(s *Spec) { err = s.Tunables.Set(words[0], value) })
	case "conn":
		want := strings.Join(words[3:], " ")
		if got := r.conn(words[0], words[2]); got != want {
			return "got " + got
		}
	case "counts":
		srv := r.server(words[0])
		if got := fmt.Sprintf("%d/%d", srv.Active, srv.Inactive); got != words[1] {
			return "got " + got
		}
	default:
		return "no such step"
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// conn tells the state of the connection between a client and a VIP, and the time it has left.
func (r *rig) conn(client, vip string) string {
	r.Helper()
	found := "none"
	r.Connections(r.now, func(c Conn) bool {
		if c.Client != r.end(client) || c.Virtual != r.end(vip) {
			return true
		}
		found = c.State + " " + c.Expires.String()
		return false
	})
	return found
}

// server is the status of a server of the first service that has it.
func (r *rig) server(name string) ServerStatus {
	r.Helper()
	for _, svc := range r.Status().Services {
		for _, srv := range svc.Servers {
			if srv.Address == r.end(name) {
				return srv
			}
		}
	}
	r.Fatalf("no service has server %s", name)
	return ServerStatus{}
}

// flow is the flow of a packet between two named ends.
func (r *rig) flow(protocol uint8, src, dst string) stack.Flow {
	r.Helper()
	s, d := r.end(src), r.end(dst)
	return stack.Flow{
		Src: stack.AddrFrom(s.Addr()), Dst: stack.AddrFrom(d.Addr()), SrcPort: s.Port(), DstPort: d.Port(), Protocol: protocol,
	}
}

// everyNetwork runs a test on TCP and UDP, IPv4 and IPv6, or on those named.
func everyNetwork(t *testing.T, test func(*rig), only ...string) {
	t.Helper()
	if only == nil {
		only = networks
	}
	for _, network := range only {
		t.Run(network, func(t *testing.T) { test(newRig(t, network)) })
	}
}
