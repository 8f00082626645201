package stack_test

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/lvsd/lvsd/stack"
	"github.com/lvsd/lvsd/stack/packettest"
)

// view is what Decode has learned.
type view struct {
	kind     stack.Kind
	flow     string
	flags    uint8
	fragment stack.Fragment
	quoted   string
}

func look(p *stack.Packet) view {
	v := view{kind: p.Kind, flow: p.Flow.String(), flags: p.TCPFlags}
	if p.Fragmented {
		v.fragment = p.Fragment
	}
	if p.HasQuote {
		v.quoted = p.Quoted.String()
	}
	return v
}

const noOffload = "00000000000000000000 "

const (
	tcp4  = "tcp 172.16.0.1:1000 > 10.0.0.1:80"
	udp4  = "udp 172.16.0.1:1000 > 10.0.0.1:53"
	icmp4 = "icmp 172.16.0.1:0 > 10.0.0.1:0"
	tcp6  = "tcp [fd01::1]:1000 > [fd00::1]:80"
	udp6  = "udp [fd01::1]:1000 > [fd00::1]:53"
	icmp6 = "icmpv6 [fd01::1]:0 > [fd00::1]:0"
)

// Addresses of the wire formats below: 172.16.0.1 > 10.0.0.1, fd01::1 > fd00::1.
const (
	addresses4 = "ac100001 0a000001 "
	addresses6 = "fd010000000000000000000000000001 fd000000000000000000000000000001 "
	segment20  = "03e80050 01020304 00000000 50020200 00000000 "
)

type decodeTest struct {
	name  string
	frame []byte
	want  view
}

var decodeTests = []decodeTest{
	{"v4 TCP SYN", wire(noOffload + "45000028 12344000 40060000" + addresses4 + segment20),
		view{kind: stack.KindTCP, flow: tcp4, flags: stack.FlagSYN}},
	{"v4 TCP with IP options", wire(noOffload + "48000034 12344000 40060000" + addresses4 +
		"0707040000000000 01010100" + segment20),
		view{kind: stack.KindTCP, flow: tcp4, flags: stack.FlagSYN}},
	{"v4 TCP with 40 bytes of IP options", wire(noOffload + "4f000050 12344000 40060000" + addresses4 +
		"0101010101010101 0101010101010101 0101010101010101 0101010101010101 0101010101010101" + segment20),
		view{kind: stack.KindTCP, flow: tcp4, flags: stack.FlagSYN}},
	{"v4 TCP with TCP options", v4.request().TCP(layers.TCP{SrcPort: 1000, DstPort: 80, ACK: true, FIN: true,
		Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 180}}}}, text(9)),
		view{kind: stack.KindTCP, flow: tcp4, flags: stack.FlagACK | stack.FlagFIN}},
	{"v4 TCP, header is all there is", wire(noOffload + "4500002c 00000000 40060000" + addresses4 +
		"03e80050 01020304 00000000 60040200 00000000 02040218"),
		view{kind: stack.KindTCP, flow: tcp4, flags: stack.FlagRST}},
	{"v4 TCP, the reserved flag of RFC 3514", wire(noOffload + "45000028 12348000 40060000" + addresses4 + segment20),
		view{kind: stack.KindTCP, flow: tcp4, flags: stack.FlagSYN}},
	{"v4 TCP with padding behind the packet", wire(noOffload + "45000028 12344000 40060000" + addresses4 + segment20 +
		"deadbeef00"),
		view{kind: stack.KindTCP, flow: tcp4, flags: stack.FlagSYN}},
	{"v4 UDP", wire(noOffload + "4500001d 00000000 40110000" + addresses4 + "03e80035 00090000 61"),
		view{kind: stack.KindUDP, flow: udp4}},
	{"v4 UDP without data", wire(noOffload + "4500001c 00000000 40110000" + addresses4 + "03e80035 00080000"),
		view{kind: stack.KindUDP, flow: udp4}},
	{"v4 UDP shorter than its packet", wire(noOffload + "45000020 00000000 40110000" + addresses4 + "03e80035 00080000 00000000"),
		view{kind: stack.KindUDP, flow: udp4}},
	{"v4 echo", wire(noOffload + "4500001c 00000000 40010000" + addresses4 + "0800f7ff 00000000"),
		view{kind: stack.KindEcho, flow: icmp4}},
	{"v4 echo reply", v4.request().ICMP(0, 0, 0, nil), view{kind: stack.KindOther, flow: icmp4}},
	{"v4 redirect", v4.request().ICMP(5, 1, 0x0a000001, text(28)), view{kind: stack.KindOther, flow: icmp4}},
	{"v4 parameter problem", v4.request().ICMP(12, 0, 0, text(28)), view{kind: stack.KindOther, flow: icmp4}},
	{"v4 timestamp", v4.request().ICMP(13, 0, 0, text(12)), view{kind: stack.KindOther, flow: icmp4}},
	{"v4 ICMPv6", v4.request().Frame(58, text(8)), view{kind: stack.KindOther, flow: "icmpv6 172.16.0.1:0 > 10.0.0.1:0"}},
	{"v4 SCTP", v4.request().Frame(132, text(12)), view{kind: stack.KindOther, flow: "132 172.16.0.1:0 > 10.0.0.1:0"}},
	{"v4 GRE without a byte", v4.request().Frame(47, nil), view{kind: stack.KindOther, flow: "47 172.16.0.1:0 > 10.0.0.1:0"}},
	{"v4 first fragment", wire(noOffload + "45000024 00072000 40110000" + addresses4 + "03e80035 10000000 0102030405060708"),
		view{kind: stack.KindUDP, flow: udp4, fragment: stack.Fragment{ID: 7, Len: 16, More: true}}},
	{"v4 first fragment of TCP", wire(noOffload + "4500002c 00072000 40060000" + addresses4 + segment20 + "01020304"),
		view{kind: stack.KindTCP, flow: tcp4, flags: stack.FlagSYN, fragment: stack.Fragment{ID: 7, Len: 24, More: true}}},
	{"v4 first fragment of an echo", wire(noOffload + "4500001c 00072000 40010000" + addresses4 + "0800f7ff 00000000"),
		view{kind: stack.KindEcho, flow: icmp4, fragment: stack.Fragment{ID: 7, Len: 8, More: true}}},
	{"v4 middle fragment", wire(noOffload + "4500001c ffff2003 40110000" + addresses4 + "0102030405060708"),
		view{kind: stack.KindLaterFragment, flow: "udp 172.16.0.1:0 > 10.0.0.1:0",
			fragment: stack.Fragment{ID: 0xffff, Offset: 24, Len: 8, More: true}}},
	{"v4 last fragment", wire(noOffload + "45000015 00071fff 40110000" + addresses4 + "01"),
		view{kind: stack.KindLaterFragment, flow: "udp 172.16.0.1:0 > 10.0.0.1:0",
			fragment: stack.Fragment{ID: 7, Offset: 65528, Len: 1}}},
	{"v4 fragment with DF", wire(noOffload + "45000015 00074002 40060000" + addresses4 + "01"),
		view{kind: stack.KindLaterFragment, flow: "tcp 172.16.0.1:0 > 10.0.0.1:0",
			fragment: stack.Fragment{ID: 7, Offset: 16, Len: 1}}},
	{"v4 super-packet", packettest.Super(v4.request().TCP(segment(stack.FlagACK), text(60000)), 1448),
		view{kind: stack.KindTCP, flow: tcp4, flags: stack.FlagACK}},
	{"v4 error", v4.request().ICMP(3, 1, 0, packet(v4.reply().UDP(80, 1000, nil))),
		view{kind: stack.KindError, flow: icmp4, quoted: "udp 10.0.0.1:80 > 172.16.0.1:1000"}},

	{"v6 TCP SYN", wire(noOffload + "6abcdef0 0014 06 40" + addresses6 + segment20),
		view{kind: stack.KindTCP, flow: tcp6, flags: stack.FlagSYN}},
	{"v6 TCP with padding behind the packet", wire(noOffload + "60000000 0014 06 40" + addresses6 + segment20 + "deadbeef"),
		view{kind: stack.KindTCP, flow: tcp6, flags: stack.FlagSYN}},
	{"v6 UDP", wire(noOffload + "60000000 0009 11 40" + addresses6 + "03e80035 00090000 61"),
		view{kind: stack.KindUDP, flow: udp6}},
	{"v6 echo", v6.request().Echo(1, 2, text(3)), view{kind: stack.KindEcho, flow: icmp6}},
	{"v6 echo reply", v6.request().ICMP(129, 0, 0, nil), view{kind: stack.KindOther, flow: icmp6}},
	{"v6 router solicitation", v6.request().ICMP(133, 0, 0, nil), view{kind: stack.KindOther, flow: icmp6}},
	{"v6 ICMPv4", v6.request().Frame(1, text(8)), view{kind: stack.KindOther, flow: "icmp [fd01::1]:0 > [fd00::1]:0"}},
	{"v6 no next header", v6.request().Frame(59, nil), view{kind: stack.KindOther, flow: "59 [fd01::1]:0 > [fd00::1]:0"}},
	{"v6 ESP", v6.request().Frame(50, text(40)), view{kind: stack.KindOther, flow: "50 [fd01::1]:0 > [fd00::1]:0"}},
	{"v6 hop-by-hop", wire(noOffload + "60000000 001c 00 40" + addresses6 + "06000104 00000000" + segment20),
		view{kind: stack.KindTCP, flow: tcp6, flags: stack.FlagSYN}},
	{"v6 destination options of 16 bytes", wire(noOffload + "60000000 0024 3c 40" + addresses6 +
		"0601010c 00000000 00000000 00000000" + segment20),
		view{kind: stack.KindTCP, flow: tcp6, flags: stack.FlagSYN}},
	{"v6 routing header used up", wire(noOffload + "60000000 001c 2b 40" + addresses6 + "06000400 00000000" + segment20),
		view{kind: stack.KindTCP, flow: tcp6, flags: stack.FlagSYN}},
	{"v6 the chain of RFC 8200 section 4.1", wire(noOffload + "60000000 0030 00 40" + addresses6 + "3c000104 00000000" +
		"2b000104 00000000" + "3c000400 00000000" + "11000104 00000000" + "03e80035 00100000 0102030405060708"),
		view{kind: stack.KindUDP, flow: udp6}},
	{"v6 as many extension headers as we follow", extended(v6.request(), stack.MaxExtensions).UDP(1000, 53, nil),
		view{kind: stack.KindUDP, flow: udp6}},
	{"v6 atomic fragment", wire(noOffload + "60000000 001c 2c 40" + addresses6 + "06000000 00000007" + segment20),
		view{kind: stack.KindTCP, flow: tcp6, flags: stack.FlagSYN}},
	{"v6 atomic fragment with reserved bits", wire(noOffload + "60000000 001c 2c 40" + addresses6 + "06ff0006 00000007" + segment20),
		view{kind: stack.KindTCP, flow: tcp6, flags: stack.FlagSYN}},
	{"v6 atomic fragment between others", packettest.Atomic(fancy(v6.request()).UDP(1000, 53, text(5)), 9),
		view{kind: stack.KindUDP, flow: udp6}},
	{"v6 first fragment", wire(noOffload + "60000000 0018 2c 40" + addresses6 + "11000001 01020304" + "03e80035 10000000 0102030405060708"),
		view{kind: stack.KindUDP, flow: udp6, fragment: stack.Fragment{ID: 0x01020304, Len: 16, More: true}}},
	{"v6 first fragment, options behind its header", wire(noOffload + "60000000 0018 2c 40" + addresses6 +
		"3c000001 01020304" + "11000104 00000000" + "03e80035 10000000"),
		view{kind: stack.KindUDP, flow: udp6, fragment: stack.Fragment{ID: 0x01020304, Len: 16, More: true}}},
	{"v6 first fragment, options before its header", wire(noOffload + "60000000 0018 00 40" + addresses6 +
		"2c000104 00000000" + "11000001 01020304" + "03e80035 10000000"),
		view{kind: stack.KindUDP, flow: udp6, fragment: stack.Fragment{ID: 0x01020304, Len: 8, More: true}}},
	{"v6 first fragment of an echo", wire(noOffload + "60000000 0010 2c 40" + addresses6 + "3a000001 00000007" + "80000000 00010002"),
		view{kind: stack.KindEcho, flow: icmp6, fragment: stack.Fragment{ID: 7, Len: 8, More: true}}},
	{"v6 last fragment", wire(noOffload + "60000000 0009 2c 40" + addresses6 + "11000018 01020304" + "61"),
		view{kind: stack.KindLaterFragment, flow: "udp [fd01::1]:0 > [fd00::1]:0",
			fragment: stack.Fragment{ID: 0x01020304, Offset: 24, Len: 1}}},
	{"v6 later fragment whose data looks like a header", wire(noOffload + "60000000 0010 2c 40" + addresses6 +
		"3c000019 01020304" + "06ff000000000000"),
		view{kind: stack.KindLaterFragment, flow: "60 [fd01::1]:0 > [fd00::1]:0",
			fragment: stack.Fragment{ID: 0x01020304, Offset: 24, Len: 8, More: true}}},
	{"v6 error", v6.request().ICMP(2, 0, 1280, packet(v6.reply().UDP(80, 1000, nil))),
		view{kind: stack.KindError, flow: icmp6, quoted: "udp [fd00::1]:80 > [fd01::1]:1000"}},
	{"v6 super-packet", packettest.SuperECN(fancy(v6.request()).TCP(segment(stack.FlagACK), text(60000)), 1428),
		view{kind: stack.KindTCP, flow: tcp6, flags: stack.FlagACK}},
}

// extended returns the header with n extension headers.
func extended(h packettest.IP, n int) packettest.IP {
	h.Extensions = slices.Repeat([]packettest.Extension{packettest.Pad(packettest.DestinationOptions, 1)}, n)
	return h
}

func TestDecode(t *testing.T) {
	for _, tt := range decodeTests {
		t.Run(tt.name, func(t *testing.T) {
			before := bytes.Clone(tt.frame)
			p := decode(t, tt.frame)
			if got := look(p); got != tt.want {
				t.Errorf("\ngot  %+v\nwant %+v", got, tt.want)
			}
			if !bytes.Equal(tt.frame, before) {
				t.Error("Decode has changed the frame")
			}
		})
	}
}

// A Packet is used again and again: nothing may be left of the frame before.
func TestDecodeAgain(t *testing.T) {
	p := new(stack.Packet)
	for _, before := range decodeTests {
		for _, tt := range decodeTests {
			if problem := p.Decode(before.frame); problem != stack.NoProblem {
				t.Errorf("%s: %s", before.name, problem)
			}
			if problem := p.Decode(tt.frame); problem != stack.NoProblem {
				t.Errorf("%s: %s", tt.name, problem)
			}
			if got := look(p); got != tt.want {
				t.Fatalf("%s after %s:\ngot  %+v\nwant %+v", tt.name, before.name, got, tt.want)
			}
		}
	}
}

// problemTest is a frame that has a problem, or none in spite of appearances.
type problemTest struct {
	name  string
	frame []byte
	want  stack.Problem
}

func (tt problemTest) run(t *testing.T) {
	p := new(stack.Packet)
	if got := p.Decode(tt.frame); got != tt.want {
		t.Errorf("%s, want %s", got, tt.want)
	}
}

func TestDecodeProblems(t *testing.T) {
	for _, tt := range problemTests() {
		t.Run(tt.name, tt.run)
	}
}

func problemTests() []problemTest {
	syn4, syn6 := v4.request().TCP(segment(stack.FlagSYN), nil), v6.request().TCP(segment(stack.FlagSYN), nil)
	udp4, udp6 := v4.request().UDP(1000, 53, text(16)), v6.request().UDP(1000, 53, text(16))
	from4 := func(a string) []byte { return edit(syn4, 12, netip.MustParseAddr(a).AsSlice()...) }
	to4 := func(a string) []byte { return edit(syn4, 16, netip.MustParseAddr(a).AsSlice()...) }
	from6 := func(a string) []byte { b := netip.MustParseAddr(a).As16(); return edit(syn6, 8, b[:]...) }
	to6 := func(a string) []byte { b := netip.MustParseAddr(a).As16(); return edit(syn6, 24, b[:]...) }
	with6 := func(e packettest.Extension) []byte {
		h := v6.request()
		h.Extensions = []packettest.Extension{e}
		return h.UDP(1000, 53, text(16))
	}
	frag4 := func(offset uint16, more bool, protocol uint8, n int) []byte {
		if more {
			offset |= 0x2000
		}
		frame := v4.request().Frame(protocol, text(n))
		return edit(frame, 6, byte(offset>>8), byte(offset))
	}
	frag6 := func(bits uint16, protocol uint8, n int) []byte {
		return v6.request().Frame(packettest.Fragment, slices.Concat([]byte{protocol, 0, byte(bits >> 8), byte(bits), 0, 0, 0, 7}, text(n)))
	}
	const (
		more4 = true
		last4 = false
		more6 = 1
	)
	return []problemTest{
		{"nothing", nil, stack.Truncated},
		{"an offload header alone", syn4[:stack.OffloadLen], stack.Truncated},
		{"19 bytes", syn4[:stack.OffloadLen+19], stack.Truncated},
		{"v4 one byte short", syn4[:len(syn4)-1], stack.Truncated},
		{"v6 39 bytes", syn6[:stack.OffloadLen+39], stack.Truncated},
		{"v6 one byte short", syn6[:len(syn6)-1], stack.Truncated},

		{"version 0", edit(syn4, 0, 0x05), stack.BadVersion},
		{"version 5", edit(syn4, 0, 0x55), stack.BadVersion},
		{"version 15", edit(syn6, 0, 0xff), stack.BadVersion},

		{"v4 header of 0 bytes", edit(syn4, 0, 0x40), stack.BadIPHeader},
		{"v4 header of 16 bytes", edit(syn4, 0, 0x44), stack.BadIPHeader},
		{"v4 header longer than the packet", edit(syn4, 0, 0x4f), stack.BadIPHeader},
		{"v4 packet shorter than its header", edit(syn4, 2, 0, 19), stack.BadIPHeader},
		{"v4 packet of 0 bytes", edit(syn4, 2, 0, 0), stack.BadIPHeader},

		{"v4 land", from4("10.0.0.1"), stack.BadAddress},
		{"v4 from this network", from4("0.1.2.3"), stack.BadAddress},
		{"v4 from loopback", from4("127.1.2.3"), stack.BadAddress},
		{"v4 from multicast", from4("224.0.0.1"), stack.BadAddress},
		{"v4 from multicast, the last", from4("239.255.255.255"), stack.BadAddress},
		{"v4 from broadcast", from4("255.255.255.255"), stack.BadAddress},
		{"v4 to this network", to4("0.0.0.0"), stack.BadAddress},
		{"v4 to loopback", to4("127.0.0.1"), stack.BadAddress},
		{"v4 to multicast", to4("239.1.2.3"), stack.BadAddress},
		{"v4 to broadcast", to4("255.255.255.255"), stack.BadAddress},
		{"v6 land", from6("fd00::1"), stack.BadAddress},
		{"v6 from nowhere", from6("::"), stack.BadAddress},
		{"v6 from loopback", from6("::1"), stack.BadAddress},
		{"v6 from multicast", from6("ff02::1"), stack.BadAddress},
		{"v6 from an IPv4-mapped address", from6("::ffff:172.16.0.1"), stack.BadAddress},
		{"v6 to nowhere", to6("::"), stack.BadAddress},
		{"v6 to loopback", to6("::1"), stack.BadAddress},
		{"v6 to multicast", to6("ff0e::101"), stack.BadAddress},
		{"v6 to an IPv4-mapped address", to6("::ffff:10.0.0.1"), stack.BadAddress},

		{"v6 too many extension headers", extended(v6.request(), stack.MaxExtensions+1).UDP(1000, 53, nil), stack.BadExtensionHeaders},
		{"v6 extension headers without end", extended(v6.request(), 8000).UDP(1000, 53, nil), stack.BadExtensionHeaders},
		{"v6 atomic fragments without end", v6.request().Frame(packettest.Fragment,
			bytes.Repeat([]byte{packettest.Fragment, 0, 0, 0, 0, 0, 0, 7}, 1000)), stack.BadExtensionHeaders},
		{"v6 routing header with a segment left", with6(routing(1)), stack.BadExtensionHeaders},
		{"v6 routing header of type 0 (RFC 5095)", with6(packettest.Extension{Type: packettest.Routing,
			Data: append([]byte{0, 1, 0, 0, 0, 0}, text(16)...)}), stack.BadExtensionHeaders},
		{"v6 hop-by-hop header that is not there", v6.request().Frame(packettest.HopByHop, nil), stack.BadExtensionHeaders},
		{"v6 hop-by-hop header of 7 bytes", v6.request().Frame(packettest.HopByHop, make([]byte, 7)), stack.BadExtensionHeaders},
		{"v6 hop-by-hop header longer than the packet", v6.request().Frame(packettest.HopByHop, []byte{17, 1, 1, 4, 0, 0, 0, 0}),
			stack.BadExtensionHeaders},
		{"v6 hop-by-hop header longer than any packet", v6.request().Frame(packettest.HopByHop, []byte{17, 255, 1, 4, 0, 0, 0, 0}),
			stack.BadExtensionHeaders},
		{"v6 fragment header that is cut", v6.request().Frame(packettest.Fragment, make([]byte, 7)), stack.BadExtensionHeaders},
		{"v6 fragment of a fragment", v6.request().Frame(packettest.Fragment,
			append(wire("2c000001 00000007 11000001 00000008"), text(8)...)), stack.BadExtensionHeaders},
		{"v6 first fragment without all of its chain (RFC 7112)", frag6(more6, packettest.DestinationOptions, 8), stack.BadExtensionHeaders},

		{"v4 fragment of 0 bytes", frag4(5, last4, 17, 0), stack.BadFragment},
		{"v4 first fragment of 0 bytes", frag4(0, more4, 17, 0), stack.BadFragment},
		{"v4 fragment not of 8 bytes", frag4(5, more4, 17, 12), stack.BadFragment},
		{"v4 first fragment not of 8 bytes", frag4(0, more4, 17, 12), stack.BadFragment},
		{"v4 ping of death", frag4(0x1fff, last4, 1, 8), stack.BadFragment},
		{"v4 tiny first fragment of TCP (RFC 1858)", frag4(0, more4, 6, 16), stack.BadFragment},
		{"v4 fragment that would overwrite TCP's flags (RFC 1858)", frag4(1, more4, 6, 16), stack.BadFragment},
		{"v6 fragment of 0 bytes", frag6(40, 17, 0), stack.BadFragment},
		{"v6 first fragment of 0 bytes", frag6(more6, 17, 0), stack.BadFragment},
		{"v6 fragment not of 8 bytes", frag6(40|more6, 17, 12), stack.BadFragment},
		{"v6 ping of death", frag6(0xfff8, 58, 8), stack.BadFragment},
		{"v6 tiny first fragment of TCP", frag6(more6, 6, 16), stack.BadFragment},

		{"v4 TCP of 19 bytes", v4.request().Frame(6, packet(syn4)[20:39]), stack.BadTransportHeader},
		{"v4 TCP header of 16 bytes", edit(syn4, 32, 4<<4), stack.BadTransportHeader},
		{"v4 TCP header longer than the packet", edit(syn4, 32, 6<<4), stack.BadTransportHeader},
		{"v6 TCP header longer than the packet", edit(syn6, 52, 15<<4), stack.BadTransportHeader},
		{"v4 UDP of 7 bytes", v4.request().Frame(17, make([]byte, 7)), stack.BadTransportHeader},
		{"v4 UDP length 7", edit(udp4, 24, 0, 7), stack.BadTransportHeader},
		{"v4 UDP length 0", edit(udp4, 24, 0, 0), stack.BadTransportHeader},
		{"v4 UDP longer than the packet", edit(udp4, 24, 0, 25), stack.BadTransportHeader},
		{"v6 UDP longer than the packet", edit(udp6, 44, 0xff, 0xff), stack.BadTransportHeader},
		{"v6 jumbogram", edit(udp6, 44, 0, 0), stack.BadTransportHeader},
		{"v4 ICMP of 7 bytes", v4.request().Frame(1, make([]byte, 7)), stack.BadTransportHeader},
		{"v6 ICMP of 7 bytes", v6.request().Frame(58, make([]byte, 7)), stack.BadTransportHeader},
		{"v6 TCP of 12 bytes behind options", fancy(v6.request()).Frame(6, make([]byte, 12)), stack.BadTransportHeader},
	}
}

// The neighbours of addresses that no forwarded packet may have are as good as any.
func TestDecodeSoundAddresses(t *testing.T) {
	for _, s := range []string{
		"1.0.0.0", "126.255.255.255", "128.0.0.0", "223.255.255.255", "240.0.0.0", "255.255.255.254",
		"::2", "::fffe:ffff:ffff", "::1:0:0:0", "::ffff:0:10.0.0.1", "64:ff9b::10.0.0.1", "feff::1",
	} {
		f, a := v4, netip.MustParseAddr(s)
		if a.Is6() {
			f = v6
		}
		decode(t, packettest.IP{Src: a, Dst: f.vip}.UDP(1000, 53, nil))
		decode(t, packettest.IP{Src: f.client, Dst: a}.UDP(1000, 53, nil))
	}
}

func TestDecodeOffload(t *testing.T) {
	for _, tt := range offloadTests() {
		t.Run(tt.name, tt.run)
	}
}

// offloadTests has the offload headers that contradict their packet. Linux answers EINVAL to those marked so when they
// are written to a tun device (measured on 6.18).
func offloadTests() []problemTest {
	tcp, udp := v4.request().TCP(segment(stack.FlagACK), text(3000)), v4.request().UDP(1000, 53, text(3000))
	tcp6, udp6 := v6.request().TCP(segment(stack.FlagACK), text(3000)), v6.request().UDP(1000, 53, text(3000))
	echo := v4.request().Echo(1, 2, text(100))
	first, later := packettest.Fragments(udp, 7, 1480)[0], packettest.Fragments(udp, 7, 1480)[1]
	offload := func(frame []byte, flags, kind uint8, headerLen, size, start, offset uint16) []byte {
		frame = slices.Clone(frame)
		stack.Offload(frame).Encode(flags, kind, headerLen, size, start, offset)
		return frame
	}
	const (
		partial, valid = stack.OffloadNeedsChecksum, stack.OffloadDataValid
		tso4, tso6     = stack.SegmentTCPv4, stack.SegmentTCPv6
		uso, ecn       = stack.SegmentUDP, 0x80
	)
	return []problemTest{
		{"nothing to do", tcp, stack.NoProblem},
		{"verified already", offload(tcp, valid, 0, 0, 0, 0, 0), stack.NoProblem},
		{"partial TCP", offload(tcp, partial, 0, 0, 0, 20, 16), stack.NoProblem},
		{"partial UDP", offload(udp6, partial, 0, 0, 0, 40, 6), stack.NoProblem},
		{"partial and verified", offload(udp, partial|valid, 0, 0, 0, 20, 6), stack.NoProblem},
		{"partial SCTP", offload(v4.request().Frame(132, text(20)), partial, 0, 0, 0, 20, 8), stack.NoProblem},
		{"TSO", offload(tcp, partial, tso4, 40, 1400, 20, 16), stack.NoProblem},
		{"TSO with ECN", offload(tcp6, partial, tso6|ecn, 60, 1400, 40, 16), stack.NoProblem},
		{"TSO with a full checksum", offload(tcp, 0, tso4, 40, 1400, 0, 0), stack.NoProblem},
		{"TSO without hdr_len", offload(tcp, partial, tso4, 0, 1400, 20, 16), stack.NoProblem},
		{"TSO with hdr_len of all the packet", offload(tcp, partial, tso4, 3040, 1400, 20, 16), stack.NoProblem},
		{"USO as read from a tun device", offload(udp, partial, uso, 28, 1400, 20, 6), stack.NoProblem},
		{"USO over IPv6", offload(udp6, partial, uso, 48, 1400, 40, 6), stack.NoProblem},

		{"unknown flag", offload(tcp, 4, 0, 0, 0, 0, 0), stack.BadOffloadHeader},
		{"hdr_len behind the packet, EINVAL", offload(tcp, partial, tso4, 3041, 1400, 20, 16), stack.BadOffloadHeader},
		{"hdr_len behind a packet that asks for nothing, EINVAL", offload(tcp, 0, 0, 3041, 0, 0, 0), stack.BadOffloadHeader},
		{"checksum in the IP header", offload(tcp, partial, 0, 0, 0, 0, 10), stack.BadOffloadHeader},
		{"checksum from inside the IP header", offload(tcp, partial, 0, 0, 0, 12, 24), stack.BadOffloadHeader},
		{"checksum of SCTP from inside the IP header", offload(v4.request().Frame(132, text(20)), partial, 0, 0, 0, 12, 16),
			stack.BadOffloadHeader},
		{"checksum of TCP from elsewhere", offload(tcp, partial, 0, 0, 0, 24, 12), stack.BadOffloadHeader},
		{"checksum of TCP where UDP has it", offload(tcp, partial, 0, 0, 0, 20, 6), stack.BadOffloadHeader},
		{"checksum of UDP where TCP has it", offload(udp, partial, 0, 0, 0, 20, 16), stack.BadOffloadHeader},
		{"checksum of an echo where UDP has it", offload(echo, partial, 0, 0, 0, 20, 6), stack.BadOffloadHeader},
		{"checksum of an echo from elsewhere", offload(echo, partial, 0, 0, 0, 22, 0), stack.BadOffloadHeader},
		{"checksum behind the packet, EINVAL", offload(v4.request().Frame(132, text(20)), partial, 0, 0, 0, 20, 19), stack.BadOffloadHeader},
		{"checksum far behind the packet, EINVAL", offload(v4.request().Frame(132, text(20)), partial, 0, 0, 0, 0xffff, 0xffff),
			stack.BadOffloadHeader},
		{"partial first fragment", offload(first, partial, 0, 0, 0, 20, 6), stack.BadOffloadHeader},
		{"partial later fragment", offload(later, partial, 0, 0, 0, 20, 6), stack.BadOffloadHeader},
		{"TSO of a fragment", offload(first, 0, uso, 0, 1400, 0, 0), stack.BadOffloadHeader},
		{"TSO of UDP, EINVAL", offload(udp, partial, tso4, 28, 1400, 20, 6), stack.BadOffloadHeader},
		{"TSO of an echo, EINVAL", offload(echo, 0, tso4, 28, 50, 0, 0), stack.BadOffloadHeader},
		{"TSO of an echo with a partial checksum, EINVAL", offload(echo, partial, tso4, 28, 50, 20, 2), stack.BadOffloadHeader},
		{"TSO of IPv4 in IPv6, EINVAL", offload(tcp6, partial, tso4, 60, 1400, 40, 16), stack.BadOffloadHeader},
		{"TSO of IPv6 in IPv4, EINVAL", offload(tcp, partial, tso6, 40, 1400, 20, 16), stack.BadOffloadHeader},
		{"USO of TCP, EINVAL", offload(tcp, partial, uso, 40, 1400, 20, 16), stack.BadOffloadHeader},
		{"USO without a partial checksum, EINVAL", offload(udp, 0, uso, 28, 1400, 0, 0), stack.BadOffloadHeader},
		{"USO with ECN, EINVAL", offload(udp, partial, uso|ecn, 28, 1400, 20, 6), stack.BadOffloadHeader},
		{"ECN without TSO, EINVAL", offload(tcp, partial, ecn, 40, 1400, 20, 16), stack.BadOffloadHeader},
		{"UFO", offload(udp, partial, 3, 28, 1400, 20, 6), stack.BadOffloadHeader},
		{"unknown kind, EINVAL", offload(tcp, partial, 9, 40, 1400, 20, 16), stack.BadOffloadHeader},
		{"segments of 0 bytes, EINVAL", offload(tcp, partial, tso4, 40, 0, 20, 16), stack.BadOffloadHeader},
		{"segments of 65535 bytes, EINVAL", offload(tcp, partial, tso4, 40, 0xffff, 20, 16), stack.BadOffloadHeader},
	}
}

// An ICMP message with a partial checksum is given its full one.
func TestDecodeCompletesICMP(t *testing.T) {
	for _, f := range families {
		for name, frame := range map[string][]byte{
			"echo":  fancy(f.request()).Echo(1, 2, text(77)),
			"error": fancy(f.request()).ICMP(unreachableType(f), 0, 0, packet(f.reply().UDP(80, 1000, text(9)))),
		} {
			t.Run(f.name+" "+name, func(t *testing.T) {
				p := decode(t, packettest.Partial(frame))
				same(t, p.Frame(), frame)
				if !p.ErrorChecksumValid() {
					t.Error("ErrorChecksumValid says no")
				}
			})
		}
	}
}

func unreachableType(f family) uint8 {
	if f.vip.Is4() {
		return 3
	}
	return 1
}

// A frame that ends anywhere before the end of its packet is truncated.
func TestDecodeTruncatedAnywhere(t *testing.T) {
	for _, tt := range decodeTests {
		whole := decode(t, tt.frame).Frame()
		for n := range min(len(whole), 200) {
			p := new(stack.Packet)
			if got := p.Decode(whole[:n]); got != stack.Truncated {
				t.Errorf("%s, cut after %d bytes: %s, want truncated", tt.name, n, got)
			}
		}
	}
}

// A packet whose own length says that it ends within its headers has a problem; one that ends within its data has none.
func TestDecodeCutAnywhere(t *testing.T) {
	tcp := segment(stack.FlagACK)
	tcp.Options = []layers.TCPOption{{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: text(8)}}
	for _, f := range families {
		h := fancy(f.request())
		for name, frame := range map[string][]byte{"TCP": h.TCP(tcp, text(5)), "echo": h.Echo(1, 2, text(5))} {
			t.Run(f.name+" "+name, func(t *testing.T) {
				headers := len(packet(frame)) - 5
				for n := range len(packet(frame)) {
					p := new(stack.Packet)
					if got := p.Decode(cut(frame, n)); (got == stack.NoProblem) != (n >= headers) {
						t.Errorf("cut after %d of %d bytes of headers: %s", n, headers, got)
					}
				}
			})
		}
	}
}

// TestDecodeQuoted has the packets that ICMP errors quote. The VIP sent them to the client.
func TestDecodeQuoted(t *testing.T) {
	const (
		quoted4 = "tcp 10.0.0.1:80 > 172.16.0.1:1000"
		quoted6 = "tcp [fd00::1]:80 > [fd01::1]:1000"
		none    = ""
	)
	answer := layers.TCP{SrcPort: 80, DstPort: 1000, ACK: true}
	whole4, whole6 := packet(v4.reply().TCP(answer, text(40))), packet(v6.reply().TCP(answer, text(40)))
	options4, extensions6 := packet(fancy(v4.reply()).TCP(answer, text(40))), packet(fancy(v6.reply()).TCP(answer, text(40)))
	datagram4, datagram6 := v4.reply().UDP(80, 1000, text(40)), v6.reply().UDP(80, 1000, text(40))
	fragments4, fragments6 := packettest.Fragments(datagram4, 7, 24), packettest.Fragments(datagram6, 7, 24)
	mapped := edit(slices.Concat(make([]byte, stack.OffloadLen), whole6), 24, netip.MustParseAddr("::ffff:172.16.0.1").AsSlice()...)

	for _, tt := range []struct {
		name   string
		family family
		quote  []byte
		want   string
	}{
		{"whole packet", v4, whole4, quoted4},
		{"8 bytes of transport (RFC 792)", v4, whole4[:28], quoted4},
		{"the ports and no more", v4, whole4[:24], quoted4},
		{"a port and a half", v4, whole4[:23], none},
		{"no transport", v4, whole4[:20], none},
		{"half a header", v4, whole4[:19], none},
		{"nothing", v4, nil, none},
		{"IP options", v4, options4, quoted4},
		{"IP options, the ports and no more", v4, options4[:32], quoted4},
		{"IP options, a port", v4, options4[:30], none},
		{"IP options that are cut", v4, options4[:24], none},
		{"first fragment", v4, packet(fragments4[0]), "udp 10.0.0.1:80 > 172.16.0.1:1000"},
		{"later fragment", v4, packet(fragments4[1]), none},
		{"echo", v4, packet(v4.reply().Echo(1, 2, nil)), none},
		{"error", v4, packet(v4.reply().ICMP(3, 1, 0, whole4)), none},
		{"SCTP", v4, packet(v4.reply().Frame(132, text(12))), none},
		{"impossible header length", v4, packet(edit(datagram4, 0, 0x44)), none},
		{"IPv6 in IPv4", v4, whole6, none},

		{"whole packet", v6, whole6, quoted6},
		{"8 bytes of transport", v6, whole6[:48], quoted6},
		{"the ports and no more", v6, whole6[:44], quoted6},
		{"a port and a half", v6, whole6[:43], none},
		{"no transport", v6, whole6[:40], none},
		{"half a header", v6, whole6[:39], none},
		{"nothing", v6, nil, none},
		{"extension headers", v6, extensions6, quoted6},
		{"as many extension headers as we follow", v6,
			packet(extended(v6.reply(), stack.MaxExtensions).TCP(answer, nil)), quoted6},
		{"extension headers without end", v6, packet(extended(v6.reply(), 100).TCP(answer, nil)), none},
		{"extension headers that are cut", v6, extensions6[:78], none},
		{"extension headers, no ports", v6, extensions6[:80], none},
		{"atomic fragment", v6, packet(packettest.Atomic(datagram6, 7)), "udp [fd00::1]:80 > [fd01::1]:1000"},
		{"first fragment", v6, packet(fragments6[0]), "udp [fd00::1]:80 > [fd01::1]:1000"},
		{"later fragment", v6, packet(fragments6[1]), none},
		{"echo", v6, packet(v6.reply().Echo(1, 2, nil)), none},
		{"IPv4 in IPv6", v6, whole4, none},
		{"IPv4-mapped address, which would pass for an IPv4 one", v6, packet(mapped), none},
	} {
		t.Run(tt.family.name+" "+tt.name, func(t *testing.T) {
			from := packettest.IP{Src: tt.family.router, Dst: tt.family.vip}
			for _, h := range []packettest.IP{from, fancy(from)} {
				p := decode(t, h.ICMP(unreachableType(tt.family), 1, 0, tt.quote))
				if p.Kind != stack.KindError {
					t.Errorf("kind %d, want an error", p.Kind)
				}
				if got := look(p).quoted; got != tt.want {
					t.Errorf("quoted %q, want %q", got, tt.want)
				}
			}
		})
	}
}

// IPVS translates these types and no others (ipvs.md 5.7).
func TestDecodeErrorTypes(t *testing.T) {
	for _, f := range families {
		for icmpType := range 256 {
			want := stack.KindOther
			switch {
			case f.vip.Is4() && (icmpType == 3 || icmpType == 4 || icmpType == 11), f.vip.Is6() && icmpType < 128:
				want = stack.KindError
			case f.vip.Is4() && icmpType == 8, f.vip.Is6() && icmpType == 128:
				want = stack.KindEcho
			}
			if p := decode(t, f.request().ICMP(uint8(icmpType), 0, 0, nil)); p.Kind != want {
				t.Errorf("%s type %d is of kind %d, want %d", f.name, icmpType, p.Kind, want)
			}
		}
	}
}

func TestDecodeAllocatesNothing(t *testing.T) {
	p := new(stack.Packet)
	quote := v6.request().ICMP(2, 0, 1280, packet(fancy(v6.reply()).TCP(segment(stack.FlagACK), text(99))))
	for _, tt := range append(decodeTests, decodeTest{name: "v6 error", frame: quote}, decodeTest{name: "bad", frame: quote[:33]}) {
		if n := testing.AllocsPerRun(100, func() { p.Decode(tt.frame) }); n != 0 {
			t.Errorf("%s: %v allocations", tt.name, n)
		}
	}
}
