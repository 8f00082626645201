package stack_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/lvsd/lvsd/stack"
	"github.com/lvsd/lvsd/stack/packettest"
)

// reply is what the tests expect of a reply's IP header: a fresh one, whatever the request's was.
func (f family) answer(h packettest.IP) packettest.IP {
	h.Src, h.Dst, h.TTL = f.vip, f.client, 64
	return h
}

// withID sets the identification to that of the frame, which may be any but 0 in a packet that may be fragmented.
func withID(t *testing.T, h packettest.IP, frame []byte) packettest.IP {
	t.Helper()
	if h.Src.Is4() {
		if h.ID = binary.BigEndian.Uint16(packet(frame)[4:]); h.ID == 0 {
			t.Error("identification 0 in a packet that may be fragmented")
		}
	}
	return h
}

func TestReplyEcho(t *testing.T) {
	for _, f := range families {
		for _, size := range []int{0, 1, 56, 1472, 65000} {
			for name, h := range map[string]packettest.IP{"plain": f.request(), "options": fancy(f.request())} {
				t.Run(fmt.Sprintf("%s %s %d", f.name, name, size), func(t *testing.T) {
					h.TOS, h.TTL, h.ID, h.DF = 0x2e, 3, 7, true
					want := f.answer(h)
					want.DF = false
					frame := h.Echo(0x1234, 9, text(size))
					got := decode(t, frame).ReplyEcho()
					same(t, got, want.ICMP(echoReply(f), 0, 0x12340009, text(size)))
					sent(t, got)
					if &got[0] != &frame[0] {
						t.Error("not in place")
					}
				})
			}
		}
	}
}

func echoReply(f family) uint8 {
	if f.vip.Is4() {
		return uint8(layers.ICMPv4TypeEchoReply)
	}
	return uint8(layers.ICMPv6TypeEchoReply)
}

// A reply of nothing but zeros is where the incremental update of RFC 1624 meets the other zero: a checksum of 0 over
// data of 0 is wrong.
func TestReplyEchoOfZeros(t *testing.T) {
	for _, f := range families {
		for _, size := range []int{0, 1, 56} {
			sent(t, decode(t, f.request().Echo(0, 0, make([]byte, size))).ReplyEcho())
			sent(t, decode(t, f.request().Echo(0, 0xffff, make([]byte, size))).ReplyEcho())
		}
	}
}

func TestReplyEchoPartial(t *testing.T) {
	for _, f := range families {
		got := decode(t, packettest.Partial(f.request().Echo(1, 2, text(9)))).ReplyEcho()
		same(t, got, f.reply().ICMP(echoReply(f), 0, 0x00010002, text(9)))
	}
}

// A wrong request gets a wrong reply, which its sender will not take for an answer.
func TestReplyEchoKeepsWrongChecksum(t *testing.T) {
	frame := v4.request().Echo(1, 2, text(9))
	got := decode(t, edit(frame, 30, 0x55)).ReplyEcho()
	if packettest.Verify(packet(got)) == nil {
		t.Error("a wrong checksum was put right")
	}
}

// A request in fragments is answered fragment by fragment; the fragments of the reply make the reply.
func TestReplyEchoFragments(t *testing.T) {
	for _, f := range families {
		for _, h := range []packettest.IP{f.request(), fancy(f.request())} {
			for _, size := range []int{64, 1480, 4096} {
				t.Run(fmt.Sprint(f.name, " ", len(h.Options)+len(h.Extensions), " ", size), func(t *testing.T) {
					h.ID, h.TTL = 7, 9
					want := f.answer(h).ICMP(echoReply(f), 0, 0x00010002, text(9000))
					var packets [][]byte
					for _, frame := range packettest.Fragments(h.Echo(1, 2, text(9000)), 7, size) {
						got := decode(t, frame).ReplyEcho()
						packettest.Check(t, packet(got))
						packets = append(packets, packet(got))
					}
					whole, err := packettest.Reassemble(packets)
					if err != nil {
						t.Fatal(err)
					}
					packettest.Check(t, whole)
					same(t, slices.Concat(make([]byte, stack.OffloadLen), whole), want)
				})
			}
		}
	}
}

// TestReplyReset has the segments of RFC 9293 section 3.10.7.1: with ACK, <SEQ=SEG.ACK><CTL=RST>; without,
// <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>, where SYN and FIN count one each.
func TestReplyReset(t *testing.T) {
	const seq, ack = 0x01020304, 0x05060708
	type answer struct {
		flags    uint8
		seq, ack uint32
	}
	const (
		fin, syn, psh, acked, urg = 1, 2, 8, 16, 32
		reset                     = stack.FlagRST
		resetAck                  = stack.FlagRST | stack.FlagACK
	)
	for _, tt := range []struct {
		name  string
		flags uint8
		seq   uint32
		data  int
		want  answer
	}{
		{"SYN", syn, seq, 0, answer{resetAck, 0, seq + 1}},
		{"SYN with ECN", syn | 0xc0, seq, 0, answer{resetAck, 0, seq + 1}},
		{"SYN with data", syn, seq, 5, answer{resetAck, 0, seq + 6}},
		{"SYN, the last sequence number", syn, 0xffffffff, 0, answer{resetAck, 0, 0}},
		{"SYN and FIN with data", syn | fin, seq, 5, answer{resetAck, 0, seq + 7}},
		{"nothing", 0, seq, 0, answer{resetAck, 0, seq}},
		{"data", psh | urg, seq, 100, answer{resetAck, 0, seq + 100}},
		{"FIN", fin, seq, 0, answer{resetAck, 0, seq + 1}},
		{"FIN with data", fin, seq, 100, answer{resetAck, 0, seq + 101}},
		{"ACK", acked, seq, 0, answer{reset, ack, 0}},
		{"ACK with data", acked | psh, seq, 100, answer{reset, ack, 0}},
		{"SYN and ACK", syn | acked, seq, 0, answer{reset, ack, 0}},
		{"FIN and ACK", fin | acked, seq, 0, answer{reset, ack, 0}},
	} {
		for _, f := range families {
			for _, h := range []packettest.IP{f.request(), fancy(f.request())} {
				t.Run(f.name+" "+tt.name, func(t *testing.T) {
					h.TOS, h.TTL, h.ID = 0x2e, 9, 7
					request := segment(tt.flags)
					request.Seq, request.Ack = tt.seq, ack
					request.Options = []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: text(2)}}
					frame := h.TCP(request, text(tt.data))
					want := f.reply()
					want.DF = true
					reset := layers.TCP{
						SrcPort: 80, DstPort: 1000, Seq: tt.want.seq, Ack: tt.want.ack,
						RST: true, ACK: tt.want.flags&stack.FlagACK != 0,
					}
					for _, frame := range [][]byte{frame, packettest.Partial(frame)} {
						p := decode(t, roomy(frame))
						got := p.ReplyReset()
						same(t, got, want.TCP(reset, nil))
						sent(t, got)
						checkView(t, p, f, stack.ProtocolTCP)
					}
				})
			}
		}
	}
}

// checkView fails the test unless the packet is a view of the reply that it has become.
func checkView(t *testing.T, p *stack.Packet, f family, protocol uint8) {
	t.Helper()
	if p.Fragmented || p.Partial() || p.Segmented() || p.TTL() != 64 || p.Len() != len(p.Frame())-stack.OffloadLen ||
		p.Flow.Src != addr(f.vip) || p.Flow.Dst != addr(f.client) || p.Flow.Protocol != protocol {
		t.Errorf("%s, fragmented %t, partial %t, segmented %t, TTL %d, Len %d of %d bytes",
			p.Flow, p.Fragmented, p.Partial(), p.Segmented(), p.TTL(), p.Len(), len(p.Frame()))
	}
}

func TestReplyResetToSuperPacket(t *testing.T) {
	request := segment(0)
	for _, f := range families {
		got := decode(t, packettest.Super(f.request().TCP(request, text(20000)), 1400)).ReplyReset()
		want := f.reply()
		want.DF = true
		same(t, got, want.TCP(layers.TCP{SrcPort: 80, DstPort: 1000, Ack: 0x01020304 + 20000, RST: true, ACK: true}, nil))
	}
}

// icmpReply is a reply that quotes the packet, with the header it has.
type icmpReply struct {
	name        string
	reply       func(*stack.Packet) []byte
	v4, v6      [2]uint8
	rest, rest6 uint32
}

var icmpReplies = []icmpReply{
	{"host unreachable", unreachable(stack.UnreachableHost), [2]uint8{3, 1}, [2]uint8{1, 3}, 0, 0},
	{"protocol unreachable", unreachable(stack.UnreachableProtocol), [2]uint8{3, 2}, [2]uint8{4, 1}, 0, 6},
	{"port unreachable", unreachable(stack.UnreachablePort), [2]uint8{3, 3}, [2]uint8{1, 4}, 0, 0},
	{"time exceeded", (*stack.Packet).ReplyTimeExceeded, [2]uint8{11, 0}, [2]uint8{3, 0}, 0, 0},
	{"too big", tooBig(1400), [2]uint8{3, 4}, [2]uint8{2, 0}, 1400, 1400},
	{"too big for the largest link", tooBig(65535), [2]uint8{3, 4}, [2]uint8{2, 0}, 65535, 65535},
}

func unreachable(what stack.Unreachable) func(*stack.Packet) []byte {
	return func(p *stack.Packet) []byte { return p.ReplyUnreachable(what) }
}

func tooBig(mtu int) func(*stack.Packet) []byte {
	return func(p *stack.Packet) []byte { return p.ReplyTooBig(mtu) }
}

// expect builds the reply to a packet that f's client sent to its VIP.
func (r icmpReply) expect(t *testing.T, f family, request, got []byte) []byte {
	h, typeCode, rest, limit := f.reply(), r.v6, r.rest6, 1280-40-8
	if f.vip.Is4() {
		h.TOS = 0xc0 // internetwork control (RFC 1812 section 4.3.2.5)
		h, typeCode, rest, limit = withID(t, h, got), r.v4, r.rest, 576-20-8
	}
	quote := packet(request)
	return h.ICMP(typeCode[0], typeCode[1], rest, quote[:min(len(quote), limit)])
}

func TestReplyErrors(t *testing.T) {
	for _, f := range families {
		long := text(3000)
		udp := func(n int) []byte { return f.request().UDP(1000, 53, long[:n]) }
		headers := len(packet(udp(0)))
		limit := map[string]int{"v4": 576 - 20 - 8, "v6": 1280 - 40 - 8}[f.name]
		frames := map[string][]byte{
			"shortest":               f.request().Frame(99, nil),
			"UDP":                    udp(0),
			"UDP without a checksum": putTransport(udp(9), 6, 0),
			"one byte under a quote": udp(limit - headers - 1),
			"exactly a quote":        udp(limit - headers),
			"one byte over a quote":  udp(limit - headers + 1),
			"long":                   udp(3000),
			"TCP":                    f.request().TCP(segment(stack.FlagSYN), nil),
			"partial TCP":            packettest.Partial(f.request().TCP(segment(stack.FlagACK), long[:9])),
			"TCP super-packet":       packettest.Super(f.request().TCP(segment(stack.FlagACK), long), 1400),
			"options":                fancy(f.request()).UDP(1000, 53, long[:99]),
			"padding":                append(udp(20), text(40)...),
			"echo":                   f.request().Echo(1, 2, long[:33]),
			"first fragment":         packettest.Fragments(udp(3000), 7, 1448)[0],
		}
		for name, frame := range frames {
			for _, r := range icmpReplies {
				if f == v6 && (name == "options" || name == "first fragment") && r.v6 == [2]uint8{4, 1} {
					continue // see TestReplyUnreachableProtocolPointer
				}
				t.Run(fmt.Sprintf("%s %s to %s", f.name, r.name, name), func(t *testing.T) {
					// A frame that has no room behind it, and one that has.
					for _, frame := range [][]byte{slices.Clip(bytes.Clone(frame)), roomy(frame)} {
						p := decode(t, frame)
						if !p.Answerable() {
							t.Error("not answerable")
						}
						request := bytes.Clone(p.Frame())
						got := r.reply(p)
						if &p.Frame()[0] != &got[0] || len(p.Frame()) != len(got) {
							t.Error("Frame is not the reply")
						}
						same(t, got, r.expect(t, f, request, got))
						sent(t, got)
						checkView(t, p, f, map[family]uint8{v4: stack.ProtocolICMP, v6: stack.ProtocolICMPv6}[f])
					}
				})
			}
		}
	}
}

// The pointer says which octet names the protocol that nobody speaks (RFC 4443 section 3.4): with extension headers it is
// the first of the last one.
func TestReplyUnreachableProtocolPointer(t *testing.T) {
	for n := range 4 {
		got := decode(t, roomy(extended(v6.request(), n).Frame(99, text(8)))).ReplyUnreachable(stack.UnreachableProtocol)
		want := uint32(6)
		if n > 0 {
			want = uint32(40 + 8*(n-1))
		}
		if pointer := binary.BigEndian.Uint32(packet(got)[44:]); pointer != want {
			t.Errorf("%d extension headers: the pointer is %d, want %d", n, pointer, want)
		}
	}
}

// Packets that may be fragmented are told apart by their identification (RFC 6864).
func TestReplyIdentifications(t *testing.T) {
	p, seen := new(stack.Packet), map[uint16]bool{}
	for range 1000 {
		p.Decode(roomy(v4.request().UDP(1000, 53, nil)))
		id := binary.BigEndian.Uint16(packet(p.ReplyUnreachable(stack.UnreachablePort))[4:])
		if seen[id] {
			t.Fatalf("identification %d again", id)
		}
		seen[id] = true
	}
}

// A reply gives its hop back like any packet that leaves.
func TestReplyRestoreTTL(t *testing.T) {
	for _, f := range families {
		p := decode(t, roomy(f.request().TCP(segment(stack.FlagSYN), nil)))
		p.ReplyReset()
		p.RestoreTTL()
		if p.TTL() != 65 {
			t.Errorf("%s: TTL %d, want 65", f.name, p.TTL())
		}
		sent(t, p.Frame())
	}
}

func TestAnswerable(t *testing.T) {
	quote4, quote6 := packet(v4.reply().UDP(80, 1000, nil)), packet(v6.reply().UDP(80, 1000, nil))
	fragments4 := packettest.Fragments(v4.request().UDP(1000, 53, text(99)), 7, 48)
	fragments6 := packettest.Fragments(v6.request().UDP(1000, 53, text(99)), 7, 48)
	icmp6 := packettest.Fragments(v6.request().ICMP(1, 0, 0, text(99)), 7, 48)
	for _, tt := range []struct {
		name  string
		frame []byte
		want  bool
	}{
		{"v4 TCP", v4.request().TCP(segment(stack.FlagSYN), nil), true},
		{"v4 UDP", v4.request().UDP(1000, 53, nil), true},
		{"v4 echo", v4.request().Echo(1, 2, nil), true},
		{"v4 protocol that nobody speaks", v4.request().Frame(99, nil), true},
		{"v4 first fragment", fragments4[0], true},
		{"v4 later fragment", fragments4[1], false},
		{"v4 unreachable", v4.request().ICMP(3, 1, 0, quote4), false},
		{"v4 source quench", v4.request().ICMP(4, 0, 0, quote4), false},
		{"v4 redirect", v4.request().ICMP(5, 1, 0, quote4), false},
		{"v4 time exceeded", v4.request().ICMP(11, 0, 0, quote4), false},
		{"v4 parameter problem", v4.request().ICMP(12, 0, 0, quote4), false},
		{"v6 TCP", v6.request().TCP(segment(stack.FlagSYN), nil), true},
		{"v6 echo", v6.request().Echo(1, 2, nil), true},
		{"v6 first fragment", fragments6[0], true},
		{"v6 later fragment", fragments6[1], true},
		{"v6 later fragment of ICMPv6, which may be an error", icmp6[1], false},
		{"v6 unreachable", v6.request().ICMP(1, 0, 0, quote6), false},
		{"v6 error of a kind to come", v6.request().ICMP(127, 0, 0, quote6), false},
		{"v6 redirect", v6.request().ICMP(137, 0, 0, text(32)), false},
	} {
		if got := decode(t, tt.frame).Answerable(); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.name, got, tt.want)
		}
	}
}

func TestRepliesAllocateNothing(t *testing.T) {
	for _, f := range families {
		type reply struct {
			name    string
			request []byte
			make    func(*stack.Packet) []byte
		}
		replies := []reply{
			{"echo", f.request().Echo(1, 2, text(56)), (*stack.Packet).ReplyEcho},
			{"reset", f.request().TCP(segment(stack.FlagSYN), nil), (*stack.Packet).ReplyReset},
		}
		for _, r := range icmpReplies {
			replies = append(replies,
				reply{r.name + " to a short packet", f.request().UDP(1000, 53, nil), r.reply},
				reply{r.name + " to a long packet", f.request().UDP(1000, 53, text(9000)), r.reply})
		}
		for _, r := range replies {
			buffer, p := make([]byte, max(len(r.request), stack.MinFrameCap)), new(stack.Packet)
			n := testing.AllocsPerRun(100, func() {
				frame := buffer[:copy(buffer, r.request)]
				if p.Decode(frame) != stack.NoProblem {
					panic("not sound")
				}
				if got := r.make(p); &got[0] != &buffer[0] {
					panic("not in place")
				}
			})
			if n != 0 {
				t.Errorf("%s %s: %v allocations", f.name, r.name, n)
			}
		}
	}
}
