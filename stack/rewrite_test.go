package stack_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/lvsd/lvsd/stack"
	"github.com/lvsd/lvsd/stack/packettest"
)

// The tests of this file rewrite a packet and compare it, byte for byte, with the packet that gopacket makes for the
// new ends: so nothing else has changed, and each checksum is what a full computation makes it. Then a device sends it,
// and gopacket and a slow reference verify what it sent.

// sample is a random packet, to be built with any ends.
type sample struct {
	ip       packettest.IP // without addresses
	protocol uint8
	tcp      layers.TCP // without ports
	data     []byte
	state    checksumState
	size     int // of the segments of a super-packet
}

type checksumState int

const (
	full checksumState = iota
	partial
	super
	superECN
	absent
	checksumStates
)

func (s checksumState) String() string {
	return [...]string{"full", "partial", "super-packet", "super-packet with ECN", "absent"}[s]
}

func randomSample(r *rand.Rand, v4 bool, protocol uint8, state checksumState) sample {
	s := sample{protocol: protocol, state: state, data: randomBytes(r, r.IntN(300)), size: 1 + r.IntN(1400)}
	if state == super || state == superECN {
		s.data = randomBytes(r, 1+r.IntN(20000))
	}
	s.ip = packettest.IP{TOS: uint8(r.Uint32()), TTL: 1 + uint8(r.IntN(254))}
	if v4 {
		s.ip.ID, s.ip.DF = uint16(r.Uint32()), r.IntN(2) == 0
		s.ip.Options = bytes.Repeat([]byte{1}, 4*r.IntN(11)) // no operation
	} else {
		s.ip.FlowLabel = r.Uint32() & 0xfffff
		for range r.IntN(4) {
			extension := []uint8{packettest.HopByHop, packettest.DestinationOptions}[r.IntN(2)]
			s.ip.Extensions = append(s.ip.Extensions, packettest.Pad(extension, 1+r.IntN(5)))
		}
	}
	s.tcp = segment(uint8(r.Uint32()))
	s.tcp.Seq, s.tcp.Ack, s.tcp.Urgent = r.Uint32(), r.Uint32(), uint16(r.Uint32())
	for range r.IntN(5) {
		s.tcp.Options = append(s.tcp.Options, layers.TCPOption{
			OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: randomBytes(r, 2)})
	}
	return s
}

// frame builds the packet with these ends.
func (s sample) frame(src, dst netip.AddrPort) []byte {
	ip, tcp := s.ip, s.tcp
	ip.Src, ip.Dst = src.Addr(), dst.Addr()
	var frame []byte
	checksumAt := 6
	if s.protocol == stack.ProtocolTCP {
		checksumAt = 16
		tcp.SrcPort, tcp.DstPort = layers.TCPPort(src.Port()), layers.TCPPort(dst.Port())
		frame = ip.TCP(tcp, s.data)
	} else {
		frame = ip.UDP(src.Port(), dst.Port(), s.data)
	}
	switch s.state {
	case partial:
		return packettest.Partial(frame)
	case super:
		return packettest.Super(frame, s.size)
	case superECN:
		return packettest.SuperECN(frame, s.size)
	case absent:
		return putTransport(frame, checksumAt, 0)
	}
	return frame
}

// putTransport returns the frame with a 16-bit field of the transport header written over.
func putTransport(frame []byte, at int, v uint16) []byte {
	h, err := packettest.Walk(packet(frame))
	if err != nil {
		panic(err)
	}
	return edit(frame, h.Transport+at, byte(v>>8), byte(v))
}

func transport16(frame []byte, at int) uint16 {
	h, err := packettest.Walk(packet(frame))
	if err != nil {
		panic(err)
	}
	return binary.BigEndian.Uint16(packet(frame)[h.Transport+at:])
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// randomEnd returns an address and port, at times of the kinds that are hard on one's complement arithmetic.
func randomEnd(r *rand.Rand, v4 bool) netip.AddrPort {
	b := randomBytes(r, 16)
	switch r.IntN(4) {
	case 0:
		clear(b[4:])
	case 1:
		for i := range b {
			b[i] = 0xff
		}
	}
	b[0] = []byte{10, 198, 1}[r.IntN(3)]
	port := []uint16{0, 0xffff, uint16(r.Uint32()), uint16(r.Uint32())}[r.IntN(4)]
	if v4 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), port)
	}
	b[0], b[1] = 0xfd, b[0]
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)), port)
}

// verifySent fails the test unless a device can send the frame and what it sends is sound.
func verifySent(tb testing.TB, frame []byte) {
	tb.Helper()
	packets, err := packettest.Send(frame)
	if err != nil {
		tb.Fatalf("the device refuses it: %v\n%s", err, dump(frame))
	}
	for _, p := range packets {
		packettest.Check(tb, p)
	}
}

func TestRewrite(t *testing.T) {
	for _, v4 := range []bool{true, false} {
		for _, protocol := range []uint8{stack.ProtocolTCP, stack.ProtocolUDP} {
			for state := range checksumStates {
				if state == absent && protocol == stack.ProtocolTCP || state == superECN && protocol == stack.ProtocolUDP {
					continue
				}
				t.Run(fmt.Sprintf("%s v4 %t %s", stack.ProtocolName(protocol), v4, state), func(t *testing.T) {
					r := rand.New(rand.NewPCG(1071, 1624))
					for range 300 {
						testRewrite(t, r, v4, randomSample(r, v4, protocol, state))
					}
				})
			}
		}
	}
}

func testRewrite(t *testing.T, r *rand.Rand, v4 bool, s sample) {
	src, dst, newSrc, newDst := randomEnd(r, v4), randomEnd(r, v4), randomEnd(r, v4), randomEnd(r, v4)
	if src.Addr() == dst.Addr() || newSrc.Addr() == newDst.Addr() || newSrc.Addr() == dst.Addr() || src.Addr() == newDst.Addr() {
		return // land
	}
	frame := s.frame(src, dst)
	p := decode(t, frame)
	which := 1 + r.IntN(3)
	if which&1 != 0 {
		p.SetSource(addr(newSrc.Addr()), newSrc.Port())
		src = newSrc
	}
	if which&2 != 0 {
		p.SetDestination(addr(newDst.Addr()), newDst.Port())
		dst = newDst
	}
	if which == 3 && r.IntN(2) == 0 { // again, and back
		p.SetSource(addr(dst.Addr()), 1)
		p.SetSource(addr(src.Addr()), src.Port())
	}
	p.RestoreTTL()
	s.ip.TTL++
	if s.state == absent {
		s.state = partial // IPVS gives it a checksum (ipvs.md 5.10)
	}
	same(t, frame, s.frame(src, dst))
	want := stack.Flow{Src: addr(src.Addr()), Dst: addr(dst.Addr()), SrcPort: src.Port(), DstPort: dst.Port(), Protocol: s.protocol}
	if p.Flow != want {
		t.Fatalf("Flow is %s, want %s", p.Flow, want)
	}
	verifySent(t, frame)
	if again := decode(t, frame); again.Flow != want {
		t.Fatalf("decoded again: %s, want %s", again.Flow, want)
	}
}

// A checksum of UDP that would become 0 becomes 0xffff, and one that was 0xffff is updated like any other.
func TestRewriteToZeroChecksum(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			client, vip, rip := netip.AddrPortFrom(f.client, 1000), netip.AddrPortFrom(f.vip, 53), netip.AddrPortFrom(f.rip, 8053)
			for _, state := range []checksumState{full, partial} {
				s := sample{protocol: stack.ProtocolUDP, data: []byte{0, 0, 1, 2}}
				// The first word of data makes the sum over the rewritten datagram 0xffff.
				binary.BigEndian.PutUint16(s.data, transport16(s.frame(client, rip), 6))
				s.state = full
				if got := transport16(s.frame(client, rip), 6); got != 0xffff {
					t.Fatalf("the test is wrong: %#04x", got)
				}
				s.state = state
				frame := s.frame(client, vip)
				decode(t, frame).SetDestination(addr(f.rip), 8053)
				same(t, frame, s.frame(client, rip))
				packets, err := packettest.Send(frame)
				if err != nil {
					t.Fatal(err)
				}
				if got := binary.BigEndian.Uint16(packets[0][len(packets[0])-6:]); got != 0xffff {
					t.Errorf("%s: sent with checksum %#04x, want 0xffff", state, got)
				}
				decode(t, frame).SetDestination(addr(f.vip), 53)
				same(t, frame, s.frame(client, vip))
			}
		})
	}
}

// A UDP datagram may be shorter than its packet (RFC 9868 has options there). The checksum that it is given covers the
// datagram alone.
func TestRewriteAbsentChecksumWithSurplus(t *testing.T) {
	for _, surplus := range []int{1, 2, 7} {
		frame := putTransport(v4.request().UDP(1000, 53, text(20+surplus)), 6, 0)
		frame = resealed4(putTransport(frame, 4, 28))
		packettest.Check(t, packet(frame))
		decode(t, frame).SetDestination(addr(v4.rip), 8053)
		verifySent(t, frame)
	}
}

// resealed4 returns the frame with a header checksum that fits.
func resealed4(frame []byte) []byte {
	p := slices.Clone(packet(frame))
	n := int(p[0]&15) * 4
	p[10], p[11] = 0, 0
	binary.BigEndian.PutUint16(p[10:], ^packettest.Sum(p[:n]))
	return slices.Concat(frame[:stack.OffloadLen], p)
}

// IPVS does not verify checksums, and neither do we: what was wrong by some amount stays wrong by it.
func TestRewriteKeepsWrongChecksums(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 2))
	for _, f := range families {
		for _, protocol := range []uint8{stack.ProtocolTCP, stack.ProtocolUDP} {
			at := map[uint8]int{stack.ProtocolTCP: 16, stack.ProtocolUDP: 6}[protocol]
			s := sample{protocol: protocol, tcp: segment(stack.FlagSYN), data: text(11)}
			before := s.frame(netip.AddrPortFrom(f.client, 1000), netip.AddrPortFrom(f.vip, 80))
			after := s.frame(netip.AddrPortFrom(f.client, 1000), netip.AddrPortFrom(f.rip, 8080))
			for range 500 {
				wrong := uint16(1 + r.IntN(0xfffe))
				frame := putTransport(before, at, add(transport16(before, at), wrong))
				if transport16(frame, at) == 0 {
					continue // of UDP it would mean that there is none
				}
				decode(t, frame).SetDestination(addr(f.rip), 8080)
				if got, want := transport16(frame, at), add(transport16(after, at), wrong); got%0xffff != want%0xffff {
					t.Fatalf("%s %s: wrong by %#04x it became %#04x, want %#04x", f.name, stack.ProtocolName(protocol), wrong, got, want)
				}
				if packettest.Verify(packet(frame)) == nil {
					t.Fatalf("%s %s: wrong by %#04x, and sound after the translation", f.name, stack.ProtocolName(protocol), wrong)
				}
			}
		}
	}
	// The IPv4 header's too.
	frame := edit(v4.request().UDP(1000, 53, nil), 10, 0x12, 0x34)
	p := decode(t, frame)
	p.SetDestination(addr(v4.rip), 53)
	p.RestoreTTL()
	if packettest.Sum(packet(frame)[:20]) == 0xffff {
		t.Error("a wrong IPv4 header checksum was put right")
	}
}

// add adds in one's complement arithmetic.
func add(a, b uint16) uint16 {
	return packettest.Sum(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, a), b))
}

// All fragments of a datagram, each rewritten by itself, are the fragments of the rewritten datagram. A datagram without
// a checksum gets none, for no fragment has all the data.
func TestRewriteFragments(t *testing.T) {
	r := rand.New(rand.NewPCG(791, 815))
	for _, f := range families {
		for _, protocol := range []uint8{stack.ProtocolTCP, stack.ProtocolUDP} {
			for _, state := range []checksumState{full, absent} {
				if state == absent && (protocol == stack.ProtocolTCP || f == v6) {
					continue
				}
				t.Run(fmt.Sprint(f.name, " ", stack.ProtocolName(protocol), " ", state), func(t *testing.T) {
					for range 50 {
						s := randomSample(r, f == v4, protocol, state)
						if f == v6 && len(s.ip.Extensions) > 0 {
							s.ip.Extensions = s.ip.Extensions[:1]
						}
						s.ip.DF = false
						s.data = randomBytes(r, 200+r.IntN(4000))
						size := 8 * (16 + r.IntN(100))
						client, vip, rip := netip.AddrPortFrom(f.client, 1000), netip.AddrPortFrom(f.vip, 80), netip.AddrPortFrom(f.rip, 8080)
						got := packettest.Fragments(s.frame(client, vip), 77, size)
						s.ip.TTL++
						want := packettest.Fragments(s.frame(client, rip), 77, size)
						var packets [][]byte
						for i, frame := range got {
							p := decode(t, frame)
							p.SetDestination(addr(f.rip), 8080)
							p.RestoreTTL()
							same(t, frame, want[i])
							packets = append(packets, packet(frame))
							if later := p.Kind == stack.KindLaterFragment; later != (i > 0) || later && p.Flow.DstPort != 0 {
								t.Fatalf("fragment %d is of kind %d, flow %s", i, p.Kind, p.Flow)
							}
						}
						whole, err := packettest.Reassemble(packets)
						if err != nil {
							t.Fatal(err)
						}
						packettest.Check(t, whole)
					}
				})
			}
		}
	}
}

// Also not one that claims to be all of its datagram.
func TestRewriteFragmentThatLooksWhole(t *testing.T) {
	frame := resealed4(edit(putTransport(v4.request().UDP(1000, 53, text(16)), 6, 0), 6, 0x20)) // more to come
	p := decode(t, frame)
	p.SetDestination(addr(v4.rip), 8053)
	if p.Partial() || transport16(frame, 6) != 0 || frame[0] != 0 {
		t.Errorf("a fragment was given a checksum: %s", dump(frame))
	}
}

func TestRestoreTTL(t *testing.T) {
	for _, f := range families {
		for ttl := 1; ttl < 256; ttl++ {
			h := fancy(f.request())
			h.TTL = uint8(ttl)
			frame := h.UDP(1000, 53, nil)
			p := decode(t, frame)
			p.RestoreTTL()
			h.TTL = uint8(min(ttl+1, 255))
			same(t, frame, h.UDP(1000, 53, nil))
			if p.TTL() != h.TTL {
				t.Errorf("%s: %d became %d", f.name, ttl, p.TTL())
			}
		}
	}
}

func TestRewriteAllocatesNothing(t *testing.T) {
	for _, f := range families {
		tcp, udp := segment(stack.FlagACK), text(5000)
		for name, template := range map[string][]byte{
			"TCP":            f.request().TCP(tcp, nil),
			"UDP":            f.request().UDP(1000, 53, udp),
			"partial":        packettest.Partial(f.request().TCP(tcp, nil)),
			"absent":         putTransport(f.request().UDP(1000, 53, udp), 6, 0),
			"super-packet":   packettest.Super(fancy(f.request()).TCP(tcp, udp), 1400),
			"first fragment": packettest.Fragments(f.request().UDP(1000, 53, udp), 7, 1480)[0],
			"later fragment": packettest.Fragments(f.request().UDP(1000, 53, udp), 7, 1480)[1],
		} {
			frame, p := slices.Clone(template), new(stack.Packet)
			rip, client := addr(f.rip), addr(f.client)
			n := testing.AllocsPerRun(100, func() {
				copy(frame, template)
				if p.Decode(frame) == stack.NoProblem {
					p.SetDestination(rip, 8080)
					p.SetSource(client, 2000)
					p.RestoreTTL()
				}
			})
			if n != 0 {
				t.Errorf("%s %s: %v allocations", f.name, name, n)
			}
		}
	}
}
