package balancer

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/lvsd/lvsd/stack"
)

// model is what a director should do, written for the reader: maps, no clock ticks, no sharing. It decides everything
// but which of the eligible servers a new client gets.
type model struct {
	services  map[serviceKey]*modelService
	conns     map[modelKey]*modelConn // by client and VIP
	replies   map[modelKey]*modelConn // by client and RIP; services share no servers
	tunables  Tunables
	active    map[string]bool
	timeouts  map[string]time.Duration
	next      map[string]string // by "INPUT SYN ESTABLISHED"
	drops     map[string]uint64
	answers   map[string]uint64
	passed    uint64
	forgotten int
}

type modelKey struct {
	client, other netip.AddrPort
	protocol      uint8
}

type modelService struct {
	servers []*modelServer
	removed []*modelServer
	past    Traffic
}

type modelServer struct {
	addr      netip.AddrPort
	weight    int
	removed   bool
	idle      bool
	idleSince time.Duration
	conns     int
	active    int
	traffic   Traffic
}

type modelConn struct {
	client   netip.AddrPort
	vip      netip.AddrPort
	server   *modelServer
	protocol uint8
	state    string
	expires  time.Duration
	packets  uint32
}

func newModel() *model {
	m := &model{
		services: make(map[serviceKey]*modelService), conns: make(map[modelKey]*modelConn), replies: make(map[modelKey]*modelConn),
		active: make(map[string]bool), timeouts: make(map[string]time.Duration), next: make(map[string]string),
		drops: make(map[string]uint64), answers: make(map[string]uint64), tunables: DefaultTunables(),
	}
	names := make(map[string]string)
	for _, row := range rows(stateTable) {
		names[row[1]] = row[2]
		seconds, _ := time.ParseDuration(row[3] + "s")
		m.timeouts[row[2]], m.active[row[2]] = seconds, row[4] == "yes"
	}
	table := rows(transitionTable)
	for _, row := range table[1:] {
		for i, to := range row[2:] {
			m.next[row[0]+" "+row[1]+" "+names[table[0][i]]] = names[to]
		}
	}
	m.timeouts["UDP"] = 5 * time.Minute
	return m
}

func (m *model) end(c *modelConn) {
	c.server.conns--
	if m.active[c.state] {
		c.server.active--
	}
	delete(m.conns, modelKey{c.client, c.vip, c.protocol})
	delete(m.replies, modelKey{c.client, c.server.addr, c.protocol})
}

func (m *model) advance(c *modelConn, direction string, flags uint8, now time.Duration) {
	before := m.active[c.state]
	if c.protocol == stack.ProtocolTCP {
		event := ""
		for _, e := range []struct {
			name string
			bit  uint8
		}{{"RST", 4}, {"SYN", 2}, {"FIN", 1}, {"ACK", 16}} {
			if event == "" && flags&e.bit != 0 {
				event = e.name
			}
		}
		c.state = cmp.Or(m.next[direction+" "+event+" "+c.state], "CLOSE")
	}
	c.expires = now + m.timeouts[c.state]
	if after := m.active[c.state]; after && !before {
		c.server.active++
	} else if before && !after {
		c.server.active--
	}
}

// request tells what becomes of a packet of a client: "forward" to the server, or another outcome. picked is who got it
// if it went to a server, which is asked only for a new connection.
func (m *model) request(
	protocol uint8, client, vip netip.AddrPort, flags uint8, bytes uint64, picked netip.AddrPort, now time.Duration,
) string {
	c := m.conns[modelKey{client, vip, protocol}]
	if c != nil && c.expires <= now {
		m.end(c)
		c = nil
	}
	if c != nil && flags&stack.FlagSYN != 0 {
		finished := c.state == "TIME_WAIT" || c.state == "CLOSE"
		if m.tunables.ExpireNodestConn && c.server.weight == 0 || m.tunables.ConnReuseMode != 0 && finished {
			m.end(c)
			c = nil
		}
	}
	if c != nil && c.server.removed {
		if !m.tunables.ExpireNodestConn {
			m.drops["server_removed"]++
			return "dropped"
		}
		m.end(c)
		c = nil
	}
	if c == nil {
		svc := m.services[serviceKey{stack.AddrFrom(vip.Addr()), vip.Port(), protocol}]
		if protocol == stack.ProtocolTCP {
			if flags&stack.FlagRST != 0 {
				m.drops["stray_reset"]++
				return "dropped"
			}
			if flags&stack.FlagSYN == 0 && !m.tunables.SloppyTCP || svc == nil {
				m.answers["tcp_reset"]++
				return "answered"
			}
		}
		var server *modelServer
		if svc != nil {
			eligible := slices.ContainsFunc(svc.servers, func(s *modelServer) bool { return s.weight > 0 })
			for _, s := range svc.servers {
				if s.addr == picked && s.weight > 0 {
					server = s
				}
			}
			if eligible && server == nil {
				return "forward to an eligible server"
			}
		}
		if server == nil {
			m.answers["port_unreachable"]++
			return "answered"
		}
		c = &modelConn{client: client, vip: vip, server: server, protocol: protocol, state: "NONE"}
		if protocol == stack.ProtocolUDP {
			c.state = "UDP"
		}
		m.conns[modelKey{client, vip, protocol}], m.replies[modelKey{client, server.addr, protocol}] = c, c
		server.conns++
		server.traffic.Conns++
	}
	c.packets++
	m.advance(c, "INPUT", flags, now)
	c.server.traffic.InPackets++
	c.server.traffic.InBytes += bytes
	if picked != c.server.addr {
		return "forward to " + c.server.addr.String()
	}
	return "forward"
}

// reply tells what becomes of a packet of a server: from which address it goes on.
func (m *model) reply(protocol uint8, server, client netip.AddrPort, flags uint8, bytes uint64, now time.Duration) netip.AddrPort {
	c := m.replies[modelKey{client, server, protocol}]
	if c != nil && c.expires <= now {
		m.end(c)
		c = nil
	}
	if c == nil {
		m.passed++
		return server
	}
	m.advance(c, "OUTPUT", flags, now)
	if !c.server.removed {
		c.server.traffic.OutPackets++
		c.server.traffic.OutBytes += bytes
	}
	return c.vip
}

// sweep is what Expire and a removal do to connections.
func (m *model) sweep(now time.Duration) {
	for _, c := range m.conns {
		if c.expires <= now || m.tunables.ExpireNodestConn && c.server.removed {
			m.end(c)
		}
	}
}

func (m *model) expire(now time.Duration) {
	m.sweep(now)
	for _, svc := range m.services {
		svc.removed = slices.DeleteFunc(svc.removed, func(s *modelServer) bool {
			switch {
			case s.conns > 0:
				s.idle = false
			case !s.idle:
				s.idle, s.idleSince = true, now
			case now-s.idleSince >= 2*time.Minute:
				svc.past.add(&s.traffic)
				m.forgotten++
				return true
			}
			return false
		})
	}
}

// replaceServers makes a service have these servers, and tells whether one was removed.
func (m *model) replaceServers(svc *modelService, servers []ServerSpec) (removed bool) {
	svc.servers = slices.DeleteFunc(svc.servers, func(s *modelServer) bool {
		if slices.ContainsFunc(servers, func(spec ServerSpec) bool { return spec.Address == s.addr }) {
			return false
		}
		s.removed, s.idle, removed = true, false, true
		svc.removed = append(svc.removed, s)
		return true
	})
	for _, spec := range servers {
		at := slices.IndexFunc(svc.servers, func(s *modelServer) bool { return s.addr == spec.Address })
		if at < 0 {
			back := slices.IndexFunc(svc.removed, func(s *modelServer) bool { return s.addr == spec.Address })
			s := &modelServer{addr: spec.Address}
			if back >= 0 {
				s = svc.removed[back]
				svc.removed = slices.Delete(svc.removed, back, back+1)
			}
			s.removed = false
			at = len(svc.servers)
			svc.servers = append(svc.servers, s)
		}
		svc.servers[at].weight = spec.Weight
	}
	return removed
}

// modelRun drives a director and the model by the same random events.
type modelRun struct {
	*rig
	*model
	random *rand.Rand
	spec   Spec
}

// TestDirectorAgainstModel compares the fate of each of a million packets, and now and then all that is counted.
func TestDirectorAgainstModel(t *testing.T) {
	events := 1_000_000
	if testing.Short() {
		events /= 10
	}
	run := &modelRun{model: newModel(), random: rand.New(rand.NewPCG(1, 2))}
	run.rig = newRigWith(t, "tcp4", Options{MaxConnections: 1 << 16})
	second := run.NewWorker()
	defer second.Close()
	workers := [...]*Worker{run.worker, second}
	run.spec = DefaultSpec()
	for i, text := range []string{"10.0.0.1:80", "10.0.0.2:53", "[fd00:a::1]:80", "[fd00:a::2]:53", "10.0.0.1:443"} {
		protocol := [...]Protocol{TCP, UDP}[i%2]
		scheduler := [...]string{"rr", "wrr", "lc", "wlc"}[i%4]
		svc := ServiceSpec{Protocol: protocol, Address: netip.MustParseAddrPort(text), Scheduler: scheduler}
		run.spec.Services = append(run.spec.Services, svc)
	}
	for i := range run.spec.Services {
		svc := &run.spec.Services[i]
		run.services[svc.key()] = new(modelService)
	}
	run.change()
	for i := range events {
		var problem string
		switch dice := run.random.IntN(10_000); {
		case dice < 2:
			run.change()
		case dice < 5:
			run.now += time.Duration(run.random.IntN(400*250)) * tickLength
		case dice < 200:
			run.now += time.Duration(run.random.IntN(200)) * tickLength
		case dice < 220:
			run.Expire(run.now)
			run.expire(run.now)
		case dice < 6500:
			problem = run.sendRequest(workers[i%2])
		default:
			problem = run.sendReply(workers[i%2])
		}
		if problem == "" && i%(events/100) == 0 {
			problem = run.difference()
		}
		if problem != "" {
			t.Fatalf("event %d at %v: %s", i, run.now, problem)
		}
	}
	if problem := run.difference(); problem != "" {
		t.Fatal(problem)
	}
	t.Logf("%d connections at the end, %d servers forgotten, drops %v, answers %v, %d passed",
		len(run.conns), run.forgotten, run.drops, run.answers, run.passed)
}

func (run *modelRun) client(v6 bool) netip.AddrPort {
	return clientAddr(run.random.IntN(10)+50_000*run.random.IntN(20), v6)
}

func (run *modelRun) flags() uint8 {
	return [...]uint8{
		stack.FlagSYN, stack.FlagSYN, stack.FlagACK, stack.FlagACK, stack.FlagACK, stack.FlagFIN | stack.FlagACK, stack.FlagRST,
		stack.FlagSYN | stack.FlagACK, stack.FlagFIN, 0, uint8(run.random.IntN(256)),
	}[run.random.IntN(11)]
}

func (run *modelRun) sendRequest(w *Worker) string {
	svc := run.spec.Services[run.random.IntN(len(run.spec.Services))]
	client, flags := run.client(svc.Address.Addr().Is6()), run.flags()
	if svc.Protocol == UDP {
		flags = 0
	}
	vip := svc.Address
	if run.random.IntN(50) == 0 {
		vip = netip.AddrPortFrom(vip.Addr(), 81) // no service
	}
	frame := rawFrame(uint8(svc.Protocol), client, vip, flags)
	bytes := uint64(len(frame) - stack.OffloadLen)
	got, picked := run.outcome(w.Forward([][]byte{frame}, run.now), client, vip)
	want := run.request(uint8(svc.Protocol), client, vip, flags, bytes, picked, run.now)
	if got != want {
		return fmt.Sprintf("%s %v -> %v %s: %s (%v), want %s", svc.Protocol, client, vip, flagNames(flags), got, picked, want)
	}
	return ""
}

// outcome tells what became of a request, and which server got it.
func (run *modelRun) outcome(frames [][]byte, client, vip netip.AddrPort) (string, netip.AddrPort) {
	if len(frames) == 0 {
		return "dropped", netip.AddrPort{}
	}
	var p stack.Packet
	if problem := p.Decode(frames[0]); problem != stack.NoProblem || len(frames) > 1 {
		return fmt.Sprintf("%d frames, %s", len(frames), problem), netip.AddrPort{}
	}
	src, dst := netip.AddrPortFrom(p.Flow.Src.Netip(), p.Flow.SrcPort), netip.AddrPortFrom(p.Flow.Dst.Netip(), p.Flow.DstPort)
	switch {
	case src == client:
		return "forward", dst
	case src.Addr() == vip.Addr() && dst.Addr() == client.Addr():
		return "answered", netip.AddrPort{}
	}
	return "sent as " + p.Flow.String(), netip.AddrPort{}
}

func (run *modelRun) sendReply(w *Worker) string {
	i := run.random.IntN(len(run.spec.Services))
	svc := run.spec.Services[i]
	server, client, flags := run.serverAddr(i), run.client(svc.Address.Addr().Is6()), run.flags()
	if svc.Protocol == UDP {
		flags = 0
	}
	if c := run.conns[modelKey{client, svc.Address, uint8(svc.Protocol)}]; c != nil && run.random.IntN(10) > 0 {
		server = c.server.addr
	}
	frame := rawFrame(uint8(svc.Protocol), server, client, flags)
	bytes := uint64(len(frame) - stack.OffloadLen)
	out := w.Forward([][]byte{frame}, run.now)
	want := run.reply(uint8(svc.Protocol), server, client, flags, bytes, run.now)
	var p stack.Packet
	if len(out) != 1 || p.Decode(out[0]) != stack.NoProblem {
		return fmt.Sprintf("a reply of %v became %d frames", server, len(out))
	}
	got, to := netip.AddrPortFrom(p.Flow.Src.Netip(), p.Flow.SrcPort), netip.AddrPortFrom(p.Flow.Dst.Netip(), p.Flow.DstPort)
	if got != want || to != client {
		return fmt.Sprintf("%s %v -> %v %s goes on from %v to %v, want from %v",
			svc.Protocol, server, client, flagNames(flags), got, to, want)
	}
	return ""
}

// serverAddr is one of the servers that a service may have.
func (run *modelRun) serverAddr(service int) netip.AddrPort {
	n := uint8(run.random.IntN(5) + 10*service)
	if run.spec.Services[service].Address.Addr().Is6() {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte{0: 0xfd, 3: 0xb, 15: n}), 8080)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, 1, n}), 8080)
}

// change gives every service some servers, or changes a tunable.
func (run *modelRun) change() {
	run.spec = run.spec.withDefaults()
	switch run.random.IntN(4) {
	case 0:
		run.spec.Tunables = Tunables{
			ConnReuseMode: run.random.IntN(2), ExpireNodestConn: run.random.IntN(2) == 0, SloppyTCP: run.random.IntN(4) == 0,
		}
	default:
		for i := range run.spec.Services {
			svc := &run.spec.Services[i]
			svc.Servers = nil
			for range run.random.IntN(6) {
				srv := ServerSpec{run.serverAddr(i), run.random.IntN(4)}
				if !slices.ContainsFunc(svc.Servers, func(s ServerSpec) bool { return s.Address == srv.Address }) {
					svc.Servers = append(svc.Servers, srv)
				}
			}
		}
	}
	if _, err := run.Apply(run.spec, run.now); err != nil {
		run.Fatal(err)
	}
	run.tunables = run.spec.Tunables
	removed := false
	for i := range run.spec.Services {
		svc := &run.spec.Services[i]
		removed = run.replaceServers(run.services[svc.key()], svc.Servers) || removed
	}
	if removed && run.tunables.ExpireNodestConn {
		run.sweep(run.now)
	}
}

// difference compares everything that director and model count.
func (run *modelRun) difference() string {
	if err := inconsistency(run.Director); err != nil {
		return err.Error()
	}
	got := run.Status()
	if got.Connections != len(run.conns) {
		return fmt.Sprintf("%d connections, want %d", got.Connections, len(run.conns))
	}
	for _, s := range got.Services {
		svc := run.services[serviceKey{stack.AddrFrom(s.Address.Addr()), s.Address.Port(), uint8(s.Protocol)}]
		want := svc.past
		for _, srv := range slices.Concat(svc.servers, svc.removed) {
			want.add(&srv.traffic)
		}
		if s.Traffic != want {
			return fmt.Sprintf("%v counts %+v, want %+v", s.Address, s.Traffic, want)
		}
		if len(s.Servers) != len(svc.servers) {
			return fmt.Sprintf("%v has %d servers, want %d", s.Address, len(s.Servers), len(svc.servers))
		}
		for _, srv := range s.Servers {
			i := slices.IndexFunc(svc.servers, func(m *modelServer) bool { return m.addr == srv.Address })
			want := svc.servers[i]
			if srv.Active != want.active || srv.Inactive != want.conns-want.active ||
				srv.Traffic != want.traffic || srv.Weight != want.weight {
				return fmt.Sprintf("%v has %+v, want %+v", srv.Address, srv, *want)
			}
		}
	}
	for name, n := range run.drops {
		if got.Drops[name] != n {
			return fmt.Sprintf("%d drops by %s, want %d", got.Drops[name], name, n)
		}
	}
	for name, n := range run.answers {
		if got.Answers[name] != n {
			return fmt.Sprintf("%d answers %s, want %d", got.Answers[name], name, n)
		}
	}
	if got.Frames.Passed != run.passed {
		return fmt.Sprintf("%d frames passed, want %d", got.Frames.Passed, run.passed)
	}
	problem := ""
	run.Connections(run.now, func(c Conn) bool {
		want := run.conns[modelKey{c.Client, c.Virtual, uint8(c.Protocol)}]
		if want == nil {
			problem = fmt.Sprintf("there is %+v", c)
		} else if (c != Conn{c.Protocol, want.client, want.vip, want.server.addr, want.state, want.expires - run.now, want.packets}) {
			problem = fmt.Sprintf("there is %+v, want %+v", c, *want)
		}
		return problem == ""
	})
	return problem
}
