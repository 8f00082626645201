package stack_test

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/lvsd/lvsd/stack"
	"github.com/lvsd/lvsd/stack/packettest"
)

// family is the cast of a test: a client, a VIP, a real server, and a router in between.
type family struct {
	name                     string
	client, vip, rip, router netip.Addr
}

var (
	v4       = newFamily("v4", "172.16.0.1", "10.0.0.1", "10.2.0.7", "192.0.2.1")
	v6       = newFamily("v6", "fd01::1", "fd00::1", "fd02:1:2:3:4:5:6:7", "2001:db8::1")
	families = []family{v4, v6}
)

func newFamily(name, client, vip, rip, router string) family {
	return family{
		name, netip.MustParseAddr(client), netip.MustParseAddr(vip), netip.MustParseAddr(rip), netip.MustParseAddr(router),
	}
}

// request returns the IP header of what the client sends to the VIP, reply that of what the VIP answers.
func (f family) request() packettest.IP { return packettest.IP{Src: f.client, Dst: f.vip} }
func (f family) reply() packettest.IP   { return packettest.IP{Src: f.vip, Dst: f.client} }

// fancy adds to an IP header what its family knows to make it longer.
func fancy(h packettest.IP) packettest.IP {
	if h.Src.Is4() {
		h.Options = []byte{7, 7, 4, 0, 0, 0, 0, 0} // record route, and the end of the list
		return h
	}
	h.Extensions = []packettest.Extension{
		packettest.Pad(packettest.HopByHop, 1),
		routing(0),
		packettest.Pad(packettest.DestinationOptions, 3),
	}
	return h
}

func routing(segmentsLeft uint8) packettest.Extension {
	return packettest.Extension{Type: packettest.Routing, Data: []byte{4, segmentsLeft, 0, 0, 0, 0}}
}

// segment is the TCP header of a client's segment.
func segment(flags uint8) layers.TCP {
	return layers.TCP{
		SrcPort: 1000, DstPort: 80, Seq: 0x01020304, Ack: 0x05060708, Window: 512,
		FIN: flags&1 != 0, SYN: flags&2 != 0, RST: flags&4 != 0, PSH: flags&8 != 0, ACK: flags&16 != 0,
		URG: flags&32 != 0, ECE: flags&64 != 0, CWR: flags&128 != 0,
	}
}

// text returns n bytes that are all different from their neighbours.
func text(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// wire returns the bytes of hexadecimal digits between blanks.
func wire(digits string) []byte {
	b, err := hex.DecodeString(strings.Join(strings.Fields(digits), ""))
	if err != nil {
		panic(err)
	}
	return b
}

// packet returns what is behind the offload header.
func packet(frame []byte) []byte { return frame[stack.OffloadLen:] }

// edit returns the frame with bytes of the packet in it written over.
func edit(frame []byte, at int, b ...byte) []byte {
	frame = slices.Clone(frame)
	copy(packet(frame)[at:], b)
	return frame
}

// cut returns the frame with the first n bytes of the packet, and a length in its IP header that says so.
func cut(frame []byte, n int) []byte {
	frame = slices.Clone(frame[:stack.OffloadLen+n])
	switch p := packet(frame); {
	case n >= 4 && p[0]>>4 == 4:
		p[2], p[3] = byte(n>>8), byte(n)
	case n >= 40 && p[0]>>4 == 6:
		p[4], p[5] = byte((n-40)>>8), byte(n-40)
	}
	return frame
}

// roomy returns the frame in a buffer of the capacity that replies need.
func roomy(frame []byte) []byte {
	return append(make([]byte, 0, max(len(frame), stack.MinFrameCap)), frame...)
}

// decode fails the test if the frame is not sound.
func decode(tb testing.TB, frame []byte) *stack.Packet {
	tb.Helper()
	p := new(stack.Packet)
	if problem := p.Decode(frame); problem != stack.NoProblem {
		tb.Fatalf("Decode: %s\n% x", problem, frame)
	}
	return p
}

// sent returns the only packet that a device makes of the frame, which must be sound.
func sent(tb testing.TB, frame []byte) []byte {
	tb.Helper()
	packets, err := packettest.Send(frame)
	if err != nil {
		tb.Fatalf("the device refuses it: %v\n% x", err, frame)
	}
	if len(packets) != 1 {
		tb.Fatalf("%d packets, want 1", len(packets))
	}
	packettest.Check(tb, packets[0])
	return packets[0]
}

// same fails the test unless the frames are equal, and says where they differ.
func same(tb testing.TB, got, want []byte) {
	tb.Helper()
	if string(got) == string(want) {
		return
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	tb.Fatalf("frames differ from byte %d (of the packet: %d)\ngot  %s\nwant %s", at, at-stack.OffloadLen, dump(got), dump(want))
}

func dump(frame []byte) string {
	if len(frame) > 160 {
		return fmt.Sprintf("% x ... %d bytes", frame[:160], len(frame))
	}
	return fmt.Sprintf("% x", frame)
}

func addr(a netip.Addr) stack.Addr { return stack.AddrFrom(a) }
