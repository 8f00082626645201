package balancer

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/lvsd/lvsd/balancer/sched"
	"github.com/lvsd/lvsd/stack"
	"github.com/lvsd/lvsd/stack/packettest"
)

// script is a fuzzer's input, read piece by piece. At its end it is all zeros.
type script []byte

func (s *script) byte() byte {
	if len(*s) == 0 {
		return 0
	}
	b := (*s)[0]
	*s = (*s)[1:]
	return b
}

func (s *script) below(n int) int { return int(s.byte()) % n }

func (s *script) bytes(n int) []byte {
	n = min(n, len(*s))
	b := (*s)[:n]
	*s = (*s)[n:]
	return b
}

// fuzzRun is a small director, driven by a script. What comes out is held against what went in.
type fuzzRun struct {
	*testing.T
	*Director
	worker    *Worker
	book      addressBook
	v6        bool
	now       time.Duration
	spec      Spec
	fragments int // seen so far; some may be waiting
}

// FuzzWorker sends frames, sound and broken, through a director that is changed meanwhile.
func FuzzWorker(f *testing.F) {
	f.Add([]byte{})
	// In both families: a TCP connection's life, then everything that is answered.
	for family := range byte(2) {
		f.Add([]byte{family, 0, 0, 0, 2, 0, 1, 0, 16, 0, 0, 0, 16, 0, 0, 0, 17, 0, 1, 0, 17, 4, 200, 5})
		f.Add([]byte{family, 0, 2, 0, 2, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 1, 0, 0, 2, 9, 200, 1, 1, 0, 2, 12, 1})
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		s := script(input)
		run := newFuzzRun(t, s.byte()&1 == 1)
		for steps := 0; len(s) > 0 && steps < 200; steps++ {
			run.step(&s)
			if err := inconsistency(run.Director); err != nil {
				t.Fatalf("step %d: %v", steps, err)
			}
		}
		run.account()
	})
}

func newFuzzRun(t *testing.T, v6 bool) *fuzzRun {
	d, err := New(Options{MaxConnections: 8, Limits: stack.Limits{PerSecond: 1000}})
	if err != nil {
		t.Fatal(err)
	}
	d.conns.seed = [3]uint64{0x9e3779b97f4a7c15, 0xbf58476d1ce4e5b9, 0x94d049bb133111eb} // the same input, the same way
	run := &fuzzRun{T: t, Director: d, worker: d.NewWorker(), book: ends(v6), v6: v6, now: time.Hour, spec: DefaultSpec()}
	t.Cleanup(func() { run.worker.Close(); d.Close() })
	run.apply([]byte{3, 1, 1, 1})
	return run
}

func (run *fuzzRun) step(s *script) {
	switch s.below(6) {
	case 0: // a packet of our making
		run.send(run.frame(s))
	case 1: // with bytes of it changed
		frame := run.frame(s)
		for range s.below(6) {
			frame[s.below(len(frame))] = s.byte()
		}
		run.send(frame)
	case 2: // in fragments, in another order
		frames := packettest.Fragments(run.frame(s), uint32(s.below(3)), 8*(1+s.below(12)))
		for range min(len(frames), 12) {
			run.send(frames[s.below(len(frames))])
		}
	case 3: // of the fuzzer's making
		run.send(append(make([]byte, 0, stack.MinFrameCap), s.bytes(s.below(120))...))
	case 4:
		run.now += time.Duration(s.byte()) * time.Second
		if s.byte()&1 == 1 {
			run.Expire(run.now)
		}
	case 5:
		run.apply(s.bytes(4))
	}
}

// frame is one of the packets that matter: of both protocols between all kinds of ends, with any flags, and ICMP.
func (run *fuzzRun) frame(s *script) []byte {
	protocol := [...]uint8{stack.ProtocolTCP, stack.ProtocolUDP}
	pairs := [...][2]string{
		{"c1", "vip"}, {"rs1", "c1"}, {"c2", "vip"}, {"c1", "closed"}, {"c1", "vip2"}, {"c1", "owned"}, {"rs1", "other"}, {"rs2", "c1"},
	}
	end := func(name string) netip.AddrPort { return run.book.end(run, name) }
	which, pair := s.below(6), pairs[s.below(len(pairs))]
	src, dst := end(pair[0]), end(pair[1])
	if which < 3 {
		frame := rawFrame(protocol[which&1], src, dst, s.byte())
		frame = append(frame, s.bytes(s.below(40))...)
		run.fixLength(frame, protocol[which&1])
		return frame
	}
	ip := packettest.IP{Src: src.Addr(), Dst: dst.Addr(), TTL: 62}
	switch which {
	case 3:
		return slices.Grow(ip.Echo(1, 2, s.bytes(s.below(40))), stack.MinFrameCap)
	case 4:
		return slices.Grow(ip.Frame(100+s.byte()%100, s.bytes(s.below(40))), stack.MinFrameCap)
	}
	quoted := rawFrame(protocol[s.below(2)], dst, src, s.byte())[stack.OffloadLen:]
	if pair[0] == "rs1" || pair[0] == "rs2" {
		quoted = rawFrame(protocol[s.below(2)], dst, src, s.byte())[stack.OffloadLen:]
	}
	icmpType := [...][2]byte{{3, 1}, {11, 3}, {4, 2}}[s.below(3)]
	family := 0
	if run.v6 {
		family = 1
	}
	return ip.ICMP(icmpType[family], s.byte(), 1300, quoted[:len(quoted)-s.below(len(quoted))])
}

// fixLength makes the lengths of a raw frame say what it has, and its checksum that of a sender with offload.
func (run *fuzzRun) fixLength(frame []byte, protocol uint8) {
	packet, ipLen := frame[stack.OffloadLen:], 20
	if run.v6 {
		ipLen = 40
		binary.BigEndian.PutUint16(packet[4:], uint16(len(packet)-ipLen))
	} else {
		binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
		packet[10], packet[11] = 0, 0
		binary.BigEndian.PutUint16(packet[10:], ^packettest.Sum(packet[:20]))
	}
	if protocol == stack.ProtocolUDP {
		binary.BigEndian.PutUint16(packet[ipLen+4:], uint16(len(packet)-ipLen))
	}
	copy(frame, packettest.Partial(frame))
}

// send takes a frame through the director. What comes out must be a packet, and must not come back to us.
func (run *fuzzRun) send(frame []byte) {
	var in stack.Packet
	sound := in.Decode(slices.Clone(frame)) == stack.NoProblem
	if sound && in.Fragmented {
		run.fragments++
	}
	snapshot := run.snapshot.Load()
	checked := false // what a device takes as it is, it must take when we are through with it
	if sound {
		packets, err := packettest.Send(in.Frame())
		checked = err == nil && packettest.Verify(packets[0]) == nil
	}
	for _, out := range run.worker.Forward([][]byte{frame}, run.now) {
		if !sound {
			run.Fatalf("a frame that is not sound became % x", out)
		}
		var p stack.Packet
		if problem := p.Decode(slices.Clone(out)); problem != stack.NoProblem {
			run.Fatalf("what came out is not sound (%s): % x", problem, out)
		}
		packets, err := packettest.Send(out)
		if checked && err != nil {
			run.Fatalf("the device refuses % x: %v", out, err)
		}
		if checked && !in.Fragmented {
			packettest.Check(run, packets[0])
		}
		if snapshot.owns(p.Flow.Dst) {
			run.Fatalf("%s came out, which comes back: % x", p.Flow, out)
		}
	}
}

// account checks that every frame is somewhere: sent, dropped, or a fragment that waits.
func (run *fuzzRun) account() {
	status := run.Status()
	waiting := int(status.Frames.In) - int(status.Frames.Out)
	for _, n := range status.Drops {
		waiting -= int(n)
	}
	if waiting < 0 || waiting > run.fragments {
		run.Fatalf("%d frames are neither sent nor dropped, of %d fragments: %+v, drops %v",
			waiting, run.fragments, status.Frames, status.Drops)
	}
}

// apply makes the director another one: which servers, of which weight, which tunables, which surroundings.
func (run *fuzzRun) apply(input []byte) {
	s := script(input)
	run.spec = DefaultSpec()
	servers, weight := s.byte(), int(s.byte()%3)
	for i, protocol := range []Protocol{TCP, UDP} {
		svc := ServiceSpec{Protocol: protocol, Address: run.book.end(run, "vip")}
		svc.Scheduler = sched.Names()[int(servers>>4)%len(sched.Names())]
		for j, name := range []string{"rs1", "rs2", "rs3"} {
			if servers>>j&1 == 1 {
				svc.Servers = append(svc.Servers, ServerSpec{run.book.end(run, name), weight * (j + i) % 3})
			}
		}
		if servers&0x88 != 0x88 { // else there is no service
			run.spec.Services = append(run.spec.Services, svc)
		}
	}
	bits := s.byte()
	run.spec.Tunables = Tunables{ConnReuseMode: int(bits & 3), ExpireNodestConn: bits&4 != 0, SloppyTCP: bits&8 != 0}
	if _, err := run.Apply(run.spec, run.now); err != nil {
		run.Fatal(err)
	}
	bits = s.byte()
	vip, owned := run.book.end(run, "vip").Addr(), run.book.end(run, "owned").Addr()
	env := Environment{
		Owned: []netip.Prefix{netip.PrefixFrom(vip, vip.BitLen()), netip.PrefixFrom(owned, owned.BitLen()-8)},
		Paths: map[netip.Addr]Path{run.book.end(run, "rs1").Addr(): {MTU: int(bits&3) * 30, Unreachable: bits&4 != 0}},
		Local: []netip.Addr{run.book.end(run, "director").Addr()},
	}
	run.SetEnvironment(env)
}

// FuzzSpec applies two specs that the fuzzer makes, one after the other. Nothing panics; what is refused changes nothing;
// what is taken is what runs.
func FuzzSpec(f *testing.F) {
	f.Add([]byte{}, []byte{})
	f.Add([]byte{2, 0, 0, 1, 2, 0, 1, 1, 1, 1, 1, 2, 1, 0, 1}, []byte{2, 0, 0, 2, 2, 1, 1, 1, 0, 5, 0, 0, 3, 1, 1, 0, 9})
	f.Add([]byte{1, 1, 4, 1, 3, 4, 1, 5, 0, 6, 255}, []byte{3, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0})
	f.Fuzz(func(t *testing.T, one, two []byte) {
		d, err := New(Options{MaxConnections: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		running := DefaultSpec()
		for _, input := range [][]byte{one, two, one} {
			spec := fuzzSpec(input)
			planned, planErr := d.Plan(spec)
			applied, err := d.Apply(spec, time.Hour)
			if valid := spec.Validate() == nil; valid != (err == nil) || valid != (planErr == nil) {
				t.Fatalf("Validate says %v, Plan %v, Apply %v", spec.Validate(), planErr, err)
			}
			if planText(planned) != planText(applied) {
				t.Fatalf("planned\n%s\nand done\n%s", planText(planned), planText(applied))
			}
			if err == nil {
				running = spec.withDefaults()
			}
			if got := sorted(d.Spec()); !reflect.DeepEqual(got, sorted(running)) {
				t.Fatalf("Spec is %+v, want %+v", got, running)
			}
			if diff := notRunning(d, &running); diff != "" {
				t.Fatal(diff)
			}
			if err := inconsistency(d); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// sorted returns a spec with its servers in the order of their addresses. Which order they have is tested elsewhere.
func sorted(spec Spec) Spec {
	spec = spec.withDefaults()
	for _, svc := range spec.Services {
		slices.SortFunc(svc.Servers, func(a, b ServerSpec) int { return a.Address.Compare(b.Address) })
	}
	return spec
}

// fuzzSpec makes a spec of a script, mostly of values that are valid.
func fuzzSpec(input []byte) Spec {
	s := script(input)
	addrs := [...]string{
		"10.0.0.1", "10.0.0.2", "192.168.1.1", "fd00::1", "fd00::2", "::ffff:10.0.0.1", "fe80::1%eth0", "127.0.0.1", "0.0.0.0", "::",
	}
	addr := func() netip.AddrPort {
		i := s.below(256)
		if i >= 250 {
			return netip.AddrPort{}
		}
		return netip.AddrPortFrom(netip.MustParseAddr(addrs[min(i/40, len(addrs)-1)]), uint16(s.below(4)+80*(i&1)))
	}
	spec := DefaultSpec()
	for range s.below(6) {
		svc := ServiceSpec{Protocol: [...]Protocol{TCP, UDP, 132}[min(s.below(32)/15, 2)], Address: addr()}
		if i := s.below(7); i > 0 {
			svc.Scheduler = append(sched.Names(), "fifo", "sh")[i-1]
		}
		for range s.below(5) {
			weights := [...]int{0, 1, 2, 100, MaxWeight, MaxWeight + 1, -1, math.MinInt}
			svc.Servers = append(svc.Servers, ServerSpec{addr(), weights[min(s.below(256)/40, len(weights)-1)]})
		}
		spec.Services = append(spec.Services, svc)
	}
	for _, timeout := range []*time.Duration{&spec.Timeouts.TCP, &spec.Timeouts.TCPFin, &spec.Timeouts.UDP} {
		*timeout = [...]time.Duration{0, time.Second, MaxTimeout, 0, 0, 0, time.Millisecond, -1, math.MaxInt64}[s.below(9)*s.below(2)]
	}
	spec.Tunables.ConnReuseMode = s.below(4)
	spec.Tunables.SloppyTCP = s.below(2) == 1
	return spec
}

// notRunning tells in what the services that run differ from a spec.
func notRunning(d *Director, spec *Spec) string {
	status := d.Status()
	if len(status.Services) != len(spec.Services) {
		return fmt.Sprintf("%d services run, want %d", len(status.Services), len(spec.Services))
	}
	for _, want := range spec.Services {
		i := slices.IndexFunc(status.Services, func(s ServiceStatus) bool {
			return s.Protocol == want.Protocol && s.Address == want.Address
		})
		if i < 0 {
			return fmt.Sprintf("%s %s does not run", want.Protocol, want.Address)
		}
		got := status.Services[i]
		if got.Scheduler != want.Scheduler || len(got.Servers) != len(want.Servers) {
			return fmt.Sprintf("%+v runs, want %+v", got, want)
		}
		for _, srv := range want.Servers {
			if !slices.ContainsFunc(got.Servers, func(s ServerStatus) bool {
				return s.Address == srv.Address && s.Weight == srv.Weight
			}) {
				return fmt.Sprintf("%+v runs, want %+v", got, want)
			}
		}
	}
	snapshot := d.snapshot.Load()
	if snapshot.tunables != spec.Tunables || *snapshot.timeouts != *newStateTimeouts(spec.Timeouts) {
		return fmt.Sprintf("%+v are in force, want %+v", snapshot.tunables, spec.Tunables)
	}
	return ""
}
