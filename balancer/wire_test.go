package balancer

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/lvsd/lvsd/stack"
	"github.com/lvsd/lvsd/stack/packettest"
)

// Packets are written in tests as text, the same for what goes in and what comes out:
//
//	c1 -> vip SYN
//	vip -> c1 SYN+ACK ttl=63
//	c1 -> vip UDP len=1400 df
//	router -> vip too-big=1300 {vip -> c1 ACK}
//
// Ends are names of an address book or addresses. What follows is the TCP flags, NONE for a segment without flags, UDP,
// PING, PONG, protocol=N, icmp=TYPE, or an ICMP error with the packet that it quotes in braces. Options of what goes in:
//
//	ttl=N  df  id=N  len=BYTES   of the IP packet
//	seq=N  ack=N                 of a segment
//	partial  gso=BYTES           the checksum, the segmentation is left to the device
//	nosum  badsum                no transport checksum; one that is wrong by badsumError
//	quote=BYTES                  how much an ICMP error quotes

// addressBook names ends. Of two names for an address the first is used where there is no port.
type addressBook []namedEnd

type namedEnd struct {
	name string
	end  netip.AddrPort
}

func (b addressBook) end(tb testing.TB, s string) netip.AddrPort {
	tb.Helper()
	if i := slices.IndexFunc(b, func(e namedEnd) bool { return e.name == s }); i >= 0 {
		return b[i].end
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 0)
	}
	end, err := netip.ParseAddrPort(s)
	if err != nil {
		tb.Fatalf("%q is not in the address book and is no address", s)
	}
	return end
}

func (b addressBook) name(end netip.AddrPort, withPort bool) string {
	for _, e := range b {
		if e.end == end || !withPort && e.end.Addr() == end.Addr() {
			return e.name
		}
	}
	if withPort {
		return end.String()
	}
	return end.Addr().String()
}

// wirePacket is a packet as the text says it.
type wirePacket struct {
	src, dst netip.AddrPort
	what     string
	quoted   *wirePacket
	options  map[string]string
}

func (b addressBook) parse(tb testing.TB, text string) *wirePacket {
	tb.Helper()
	p := &wirePacket{options: make(map[string]string)}
	if before, quoted, ok := strings.Cut(text, " {"); ok {
		quoted, after, _ := strings.Cut(quoted, "}")
		p.quoted = b.parse(tb, quoted)
		text = before + after
	}
	words := strings.Fields(text)
	if len(words) < 4 || words[1] != "->" {
		tb.Fatalf("%q is not a packet", text)
	}
	p.src, p.dst, p.what = b.end(tb, words[0]), b.end(tb, words[2]), words[3]
	for _, w := range words[4:] {
		name, value, _ := strings.Cut(w, "=")
		p.options[name] = value
	}
	return p
}

func (p *wirePacket) has(option string) bool { _, ok := p.options[option]; return ok }

func (p *wirePacket) number(option string, otherwise int) int {
	if n, err := strconv.Atoi(p.options[option]); err == nil {
		return n
	}
	return otherwise
}

func (p *wirePacket) ipLen() int {
	if p.src.Addr().Is6() {
		return 40
	}
	return 20
}

// family is 0 or 1, to index what differs by address family.
func (p *wirePacket) family() int { return p.ipLen()/20 - 1 }

var tcpFlagNames = [...]string{"FIN", "SYN", "RST", "PSH", "ACK", "URG"} // from the lowest bit on

func parseFlags(what string) (flags uint8, ok bool) {
	if what == "NONE" {
		return 0, true
	}
	for name := range strings.SplitSeq(what, "+") {
		bit := slices.Index(tcpFlagNames[:], name)
		if bit < 0 {
			return 0, false
		}
		flags |= 1 << bit
	}
	return flags, true
}

func flagNames(flags uint8) string {
	var names []string
	for bit, name := range tcpFlagNames {
		if flags&(1<<bit) != 0 {
			names = append(names, name)
		}
	}
	if names == nil {
		return "NONE"
	}
	return strings.Join(names, "+")
}

// icmpErrors are the ICMP errors by their names: type and code in IPv4 and in IPv6.
var icmpErrors = map[string][2][2]uint8{
	"unreachable-host":     {{3, 1}, {1, 3}},
	"unreachable-port":     {{3, 3}, {1, 4}},
	"unreachable-protocol": {{3, 2}, {4, 1}},
	"time-exceeded":        {{11, 0}, {3, 0}},
	"too-big":              {{3, 4}, {2, 0}},
}

var echoTypes = map[string][2]uint8{"PING": {8, 128}, "PONG": {0, 129}}

// badsumError is by how much, in one's complement, a checksum is wrong that is to be wrong.
const badsumError = 0x0123

// frame builds the frame of a packet as a tun device with IFF_VNET_HDR would hand it out.
func (b addressBook) frame(tb testing.TB, text string) []byte {
	tb.Helper()
	return b.parse(tb, text).frame(tb)
}

func (p *wirePacket) frame(tb testing.TB) []byte {
	tb.Helper()
	ip := packettest.IP{
		Src: p.src.Addr(), Dst: p.dst.Addr(), DF: p.has("df"),
		TTL: uint8(p.number("ttl", 62)), ID: uint16(p.number("id", 0)),
	}
	frame := p.transport(tb, ip)
	checksum := frame[packettest.OffloadLen+p.ipLen()+p.checksumOffset():]
	switch {
	case p.has("partial"):
		return packettest.Partial(frame)
	case p.has("gso"):
		return packettest.Super(frame, p.number("gso", 0))
	case p.has("nosum"):
		binary.BigEndian.PutUint16(checksum, 0)
	case p.has("badsum"):
		binary.BigEndian.PutUint16(checksum, packettest.Sum(checksum[:2], []byte{badsumError >> 8, badsumError & 255}))
	}
	if p.has("ttl") && p.number("ttl", 0) == 0 { // packettest takes 0 as the default
		ttl := frame[packettest.OffloadLen+[2]int{8, 7}[p.family()]:]
		ttl[0] = 0
		if p.family() == 0 {
			binary.BigEndian.PutUint16(ttl[2:], packettest.Sum(ttl[2:4], []byte{64, 0}))
		}
	}
	return frame
}

// checksumOffset is where the transport checksum stands behind the IP header.
func (p *wirePacket) checksumOffset() int {
	if _, tcp := parseFlags(p.what); tcp {
		return 16
	}
	if p.what == "UDP" {
		return 6
	}
	return 2
}

func (p *wirePacket) transport(tb testing.TB, ip packettest.IP) []byte {
	tb.Helper()
	flags, tcp := parseFlags(p.what)
	name, value, _ := strings.Cut(p.what, "=")
	n, _ := strconv.Atoi(value)
	switch {
	case tcp:
		return ip.TCP(layers.TCP{
			SrcPort: layers.TCPPort(p.src.Port()), DstPort: layers.TCPPort(p.dst.Port()), Window: 65535,
			Seq: uint32(p.number("seq", 1000)), Ack: uint32(p.number("ack", 2000)),
			FIN: flags&1 != 0, SYN: flags&2 != 0, RST: flags&4 != 0, PSH: flags&8 != 0, ACK: flags&16 != 0, URG: flags&32 != 0,
		}, p.data(20))
	case p.what == "UDP":
		return ip.UDP(p.src.Port(), p.dst.Port(), p.data(8))
	case name == "protocol":
		return ip.Frame(uint8(n), p.data(0))
	case name == "icmp":
		return ip.ICMP(uint8(n), 0, 0, p.data(8))
	case p.quoted == nil:
		return ip.ICMP(echoTypes[name][p.family()], 0, 0x00070001, p.data(8))
	}
	code := icmpErrors[name][p.family()]
	quote := p.quoted.frame(tb)[packettest.OffloadLen:]
	return ip.ICMP(code[0], code[1], uint32(n), quote[:min(len(quote), p.number("quote", 500))])
}

// data is what makes the packet "len" bytes long, or five bytes; a SYN and a RST have none.
func (p *wirePacket) data(transportLen int) []byte {
	headers, n := p.ipLen()+transportLen, 5
	if flags, ok := parseFlags(p.what); ok && flags&(stack.FlagSYN|stack.FlagRST) != 0 {
		n = 0
	}
	data := make([]byte, p.number("len", headers+n)-headers)
	for i := range data {
		data[i] = byte(i*7 + len(data))
	}
	return data
}

// read is the inverse of frame. The test fails if the frame is not sound, once the device has done its part of it.
func (b addressBook) read(tb testing.TB, frame []byte) string {
	tb.Helper()
	packets, err := packettest.Send(frame)
	if err != nil {
		tb.Fatalf("the device refuses % x: %v", frame, err)
	}
	for _, packet := range packets {
		packettest.Check(tb, packet)
	}
	return b.describe(tb, packets[0])
}

func (b addressBook) describe(tb testing.TB, packet []byte) string {
	tb.Helper()
	h, err := packettest.Walk(packet)
	if err != nil {
		tb.Fatal(err)
	}
	t := packet[h.Transport:]
	text := func(what string) string { // of a packet without ports
		return b.name(netip.AddrPortFrom(h.Src, 0), false) + " -> " + b.name(netip.AddrPortFrom(h.Dst, 0), false) + " " + what
	}
	switch {
	case h.Offset > 0:
		return text(fmt.Sprintf("fragment@%d", h.Offset))
	case h.Protocol == stack.ProtocolTCP, h.Protocol == stack.ProtocolUDP:
		what := map[uint8]string{stack.ProtocolTCP: "TCP", stack.ProtocolUDP: "UDP"}[h.Protocol] // if it is cut
		if h.Protocol == stack.ProtocolTCP && len(t) >= 14 {
			what = flagNames(t[13] & 0x3f)
		}
		src := netip.AddrPortFrom(h.Src, binary.BigEndian.Uint16(t))
		dst := netip.AddrPortFrom(h.Dst, binary.BigEndian.Uint16(t[2:]))
		return b.name(src, true) + " -> " + b.name(dst, true) + " " + what
	case h.Protocol != stack.ProtocolICMP && h.Protocol != stack.ProtocolICMPv6:
		return text(fmt.Sprintf("protocol=%d", h.Protocol))
	}
	family := 0
	if h.Src.Is6() {
		family = 1
	}
	for name, types := range echoTypes {
		if types[family] == t[0] {
			return text(name)
		}
	}
	for name, codes := range icmpErrors {
		if codes[family] == [2]uint8{t[0], t[1]} {
			if name == "too-big" {
				name = fmt.Sprintf("%s=%d", name, binary.BigEndian.Uint32(t[4:]))
			}
			return text(name + " {" + b.describeQuote(tb, t[8:]) + "}")
		}
	}
	return text(fmt.Sprintf("icmp=%d", t[0]))
}

// describeQuote reads the packet that an ICMP error quotes, which may be cut anywhere behind the ports. What is whole
// of it must be sound.
func (b addressBook) describeQuote(tb testing.TB, quote []byte) string {
	tb.Helper()
	if quote[0]>>4 == 4 {
		if sum := packettest.Sum(quote[:quote[0]&15*4]); sum != 0xffff {
			tb.Fatalf("the sum over the quoted IPv4 header is %#x", sum)
		}
	}
	if declaredLen(quote) == len(quote) {
		packettest.Check(tb, quote)
	}
	return b.describe(tb, quote)
}

// declaredLen is what an IP header says is the packet's length.
func declaredLen(packet []byte) int {
	if packet[0]>>4 == 4 {
		return int(binary.BigEndian.Uint16(packet[2:]))
	}
	return 40 + int(binary.BigEndian.Uint16(packet[4:]))
}

// ttlOf returns the TTL or hop limit of a frame.
func ttlOf(frame []byte) uint8 {
	packet := frame[packettest.OffloadLen:]
	if packet[0]>>4 == 4 {
		return packet[8]
	}
	return packet[7]
}
