package stack_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/lvsd/lvsd/stack"
	"github.com/lvsd/lvsd/stack/packettest"
)

func TestPacketAccessors(t *testing.T) {
	h4, h6 := v4.request(), fancy(v6.request())
	h4.DF, h4.TTL, h6.TTL = true, 1, 255
	tcp, udp := segment(stack.FlagACK), text(3000)
	tcp.Options = []layers.TCPOption{{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: text(8)}}
	for _, tt := range []struct {
		name         string
		frame        []byte
		length       int
		ttl          uint8
		largest      int
		dontFragment bool
	}{
		{"v4 TCP", h4.TCP(tcp, nil), 52, 1, 52, true},
		{"v4 UDP may be fragmented", v4.request().UDP(1000, 53, udp), 3028, 64, 3028, false},
		{"v6 UDP never", h6.UDP(1000, 53, nil), 40 + 40 + 8, 255, 40 + 40 + 8, true},
		{"v4 TCP super-packet", packettest.Super(h4.TCP(tcp, udp), 1440), 3052, 1, 1492, true},
		{"v6 TCP super-packet", packettest.Super(h6.TCP(tcp, udp), 1000), 40 + 40 + 32 + 3000, 255, 40 + 40 + 32 + 1000, true},
		{"v4 UDP super-packet", packettest.Super(v4.request().UDP(1000, 53, udp), 1200), 3028, 64, 1228, false},
		{"a super-packet that is none", packettest.Super(h4.TCP(tcp, text(3)), 1440), 55, 1, 55, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := decode(t, append(slices.Clone(tt.frame), "padding"...))
			if len(p.Frame()) != stack.OffloadLen+tt.length || p.Len() != tt.length {
				t.Errorf("Frame is %d bytes, Len is %d, want %d", len(p.Frame()), p.Len(), tt.length)
			}
			if p.TTL() != tt.ttl {
				t.Errorf("TTL is %d, want %d", p.TTL(), tt.ttl)
			}
			if p.LargestSegment() != tt.largest {
				t.Errorf("LargestSegment is %d, want %d", p.LargestSegment(), tt.largest)
			}
			if p.Segmented() != (tt.frame[1] != 0) {
				t.Errorf("Segmented is %t", p.Segmented())
			}
			if p.DontFragment() != tt.dontFragment {
				t.Errorf("DontFragment is %t", p.DontFragment())
			}
			if p.Is6() != p.Flow.Src.Netip().Is6() {
				t.Errorf("Is6 is %t for %s", p.Is6(), p.Flow)
			}
		})
	}
}

func TestAddr(t *testing.T) {
	for _, s := range []string{"10.0.0.1", "255.255.255.255", "0.0.0.0", "fd00::1", "::", "::2", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"} {
		a := netip.MustParseAddr(s)
		got := stack.AddrFrom(a)
		if got.Netip() != a || got.String() != s || got.Is4() != a.Is4() || got.As16() != a.As16() {
			t.Errorf("%s became %s, Is4 %t, As16 %x", s, got, got.Is4(), got.As16())
		}
		if stack.AddrFrom16(a.As16()) != got {
			t.Errorf("%s is another by AddrFrom16", s)
		}
		hi, lo := got.Words()
		if b := a.As16(); hi != binary.BigEndian.Uint64(b[:]) || lo != binary.BigEndian.Uint64(b[8:]) {
			t.Errorf("%s has the words %x %x", s, hi, lo)
		}
	}
	if a := stack.AddrFrom4(0x0a000001); a.String() != "10.0.0.1" || a.V4() != 0x0a000001 {
		t.Errorf("AddrFrom4: %s, V4 %#x", a, a.V4())
	}
	if a := stack.AddrFrom(netip.MustParseAddr("fe80::1%eth0")); a.String() != "fe80::1" {
		t.Errorf("with a zone: %s", a)
	}
	if a := stack.AddrFrom(netip.Addr{}); a != (stack.Addr{}) || a.String() != "::" {
		t.Errorf("the zero netip.Addr: %s", a)
	}
}

func TestFlow(t *testing.T) {
	f := stack.Flow{Src: addr(v4.client), Dst: addr(v4.vip), SrcPort: 1000, DstPort: 80, Protocol: stack.ProtocolTCP}
	if got, want := f.Reverse().String(), "tcp 10.0.0.1:80 > 172.16.0.1:1000"; got != want {
		t.Errorf("reversed %s, want %s", got, want)
	}
	if f.Reverse().Reverse() != f {
		t.Error("reversed twice it is another")
	}
	for protocol, want := range map[uint8]string{1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "132"} {
		if got := stack.ProtocolName(protocol); got != want {
			t.Errorf("protocol %d is %q, want %q", protocol, got, want)
		}
	}
}

func TestProblemString(t *testing.T) {
	seen := map[string]bool{}
	for p := range stack.Problem(stack.NumProblems) {
		if s := p.String(); s == "" || seen[s] {
			t.Errorf("problem %d is %q", p, s)
		} else {
			seen[s] = true
		}
	}
}

func TestOffload(t *testing.T) {
	// USO as a tun device hands it out on a little-endian machine.
	raw := make([]byte, stack.OffloadLen)
	stack.Offload(raw).Encode(stack.OffloadNeedsChecksum, stack.SegmentUDP|0x80, 28, 1400, 20, 6)
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 && !bytes.Equal(raw, wire("0185 1c00 7805 1400 0600")) {
		t.Errorf("% x", raw)
	}
	o := stack.Offload(raw)
	got := fmt.Sprint(o.Flags(), o.Segmentation(), o.HeaderLen(), o.SegmentSize(), o.ChecksumStart(), o.ChecksumOffset())
	if want := "1 5 28 1400 20 6"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if o.Clear(); !bytes.Equal(raw, make([]byte, stack.OffloadLen)) {
		t.Errorf("cleared: % x", raw)
	}
}
