package stack_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/lvsd/lvsd/stack"
	"github.com/lvsd/lvsd/stack/packettest"
)

// A translated ICMP error must be the error that would have come had the packet it quotes never been translated. So each
// test builds the error about the packet of one side of the director, translates it, and compares it, byte for byte, with
// the error about the packet of the other side.

// quotation is a packet that an error is about, as its sender sent it, and as it was behind the director.
type quotation struct {
	name      string
	sent, was []byte
}

// quotations returns packets from one end to another, as two other ends would have sent them.
func quotations(src, dst, wasSrc, wasDst netip.AddrPort) (all []quotation) {
	add := func(name string, build func(h packettest.IP, src, dst uint16) []byte) {
		all = append(all, quotation{name,
			packet(build(packettest.IP{Src: src.Addr(), Dst: dst.Addr(), TTL: 63, ID: 99, TOS: 0x2e}, src.Port(), dst.Port())),
			packet(build(packettest.IP{Src: wasSrc.Addr(), Dst: wasDst.Addr(), TTL: 63, ID: 99, TOS: 0x2e}, wasSrc.Port(), wasDst.Port())),
		})
	}
	tcp := func(h packettest.IP, src, dst uint16) []byte {
		t := segment(stack.FlagACK)
		t.SrcPort, t.DstPort = layers.TCPPort(src), layers.TCPPort(dst)
		return h.TCP(t, text(300))
	}
	udp := func(h packettest.IP, src, dst uint16) []byte { return h.UDP(src, dst, text(40)) }
	add("TCP", tcp)
	add("UDP", udp)
	add("TCP behind options", func(h packettest.IP, src, dst uint16) []byte { return tcp(fancy(h), src, dst) })
	add("UDP behind options", func(h packettest.IP, src, dst uint16) []byte { return udp(fancy(h), src, dst) })
	add("first fragment of UDP", func(h packettest.IP, src, dst uint16) []byte {
		return packettest.Fragments(udp(h, src, dst), 99, 24)[0]
	})
	if src.Addr().Is4() {
		add("UDP without a checksum", func(h packettest.IP, src, dst uint16) []byte { return putTransport(udp(h, src, dst), 6, 0) })
	} else {
		add("atomic fragment of UDP", func(h packettest.IP, src, dst uint16) []byte { return packettest.Atomic(udp(h, src, dst), 99) })
	}
	return all
}

// errorTypes are the ICMP errors that are translated, with the second word of their headers.
func errorTypes(f family) map[string][3]uint32 {
	if f.vip.Is4() {
		return map[string][3]uint32{
			"host unreachable":     {3, 1, 0},
			"port unreachable":     {3, 3, 0},
			"fragmentation needed": {3, 4, 1400},
			"source quench":        {4, 0, 0},
			"time exceeded":        {11, 0, 0},
		}
	}
	return map[string][3]uint32{
		"address unreachable": {1, 3, 0},
		"port unreachable":    {1, 4, 0},
		"packet too big":      {2, 0, 1400},
		"time exceeded":       {3, 0, 0},
		"parameter problem":   {4, 1, 6},
	}
}

func TestErrorToServer(t *testing.T) {
	for _, f := range families {
		vip, rip, client := netip.AddrPortFrom(f.vip, 80), netip.AddrPortFrom(f.rip, 8080), netip.AddrPortFrom(f.client, 1000)
		for _, q := range quotations(vip, client, rip, client) {
			testErrors(t, f, q, translation{
				before: packettest.IP{Src: f.router, Dst: f.vip},
				after:  packettest.IP{Src: f.router, Dst: f.rip}, // its sender stays who it is (ipvs.md 5.7)
				quoted: stack.Flow{Src: addr(f.rip), SrcPort: 8080, Dst: addr(f.client), DstPort: 1000},
				rewrite: func(p *stack.Packet) {
					p.RewriteErrorToServer(addr(f.rip), 8080)
				},
			})
		}
	}
}

func TestErrorToClient(t *testing.T) {
	for _, f := range families {
		vip, rip, client := netip.AddrPortFrom(f.vip, 80), netip.AddrPortFrom(f.rip, 8080), netip.AddrPortFrom(f.client, 1000)
		for _, q := range quotations(client, rip, client, vip) {
			for _, from := range []netip.Addr{f.rip, f.router} { // a router behind, too, speaks as the VIP (ipvs.md 5.8)
				testErrors(t, f, q, translation{
					before: packettest.IP{Src: from, Dst: f.client},
					after:  packettest.IP{Src: f.vip, Dst: f.client},
					quoted: stack.Flow{Src: addr(f.client), SrcPort: 1000, Dst: addr(f.vip), DstPort: 80},
					rewrite: func(p *stack.Packet) {
						p.RewriteErrorToClient(addr(f.vip), 80)
					},
				})
			}
		}
	}
}

// translation is what a rewrite does to an error's header and to the flow it quotes.
type translation struct {
	before, after packettest.IP
	quoted        stack.Flow
	rewrite       func(*stack.Packet)
}

// testErrors translates errors of each type about the packet, with quotations of all lengths that have its ports.
func testErrors(t *testing.T, f family, q quotation, tr translation) {
	for name, e := range errorTypes(f) {
		t.Run(fmt.Sprintf("%s %s about %s from %s", f.name, name, q.name, tr.before.Src), func(t *testing.T) {
			h, err := packettest.Walk(q.sent)
			if err != nil {
				t.Fatal(err)
			}
			for n := h.Transport + 8; n <= len(q.sent); n++ {
				if h.Protocol == stack.ProtocolTCP && n == h.Transport+17 {
					continue // see TestErrorQuotesHalfAChecksum
				}
				for _, headers := range []func(packettest.IP) packettest.IP{ordinary, fancy} {
					frame := headers(tr.before).ICMP(uint8(e[0]), uint8(e[1]), e[2], q.sent[:n])
					p := decode(t, frame)
					if !p.HasQuote || !p.ErrorChecksumValid() {
						t.Fatalf("%d bytes quoted: HasQuote %t, ErrorChecksumValid %t", n, p.HasQuote, p.ErrorChecksumValid())
					}
					tr.rewrite(p)
					same(t, frame, headers(tr.after).ICMP(uint8(e[0]), uint8(e[1]), e[2], q.was[:n]))
					packettest.Check(t, packet(frame))
					tr.quoted.Protocol = h.Protocol
					if p.Quoted != tr.quoted || p.Flow.Src != addr(tr.after.Src) || p.Flow.Dst != addr(tr.after.Dst) {
						t.Fatalf("Quoted is %s, want %s; Flow is %s", p.Quoted, tr.quoted, p.Flow)
					}
				}
			}
		})
	}
}

func ordinary(h packettest.IP) packettest.IP { return h }

// A quotation may end in the middle of a TCP checksum. Half a checksum cannot be updated and stays as it is.
func TestErrorQuotesHalfAChecksum(t *testing.T) {
	sent := packet(packettest.IP{Src: v4.client, Dst: v4.rip}.TCP(segment(stack.FlagACK), nil))[:37]
	p := decode(t, packettest.IP{Src: v4.rip, Dst: v4.client}.ICMP(3, 1, 0, sent))
	p.RewriteErrorToClient(addr(v4.vip), 8080)
	packettest.Check(t, packet(p.Frame()))
	quoted := packet(p.Frame())[28:]
	if want := slices.Concat([]byte{0x1f, 0x90}, sent[24:]); string(quoted[22:]) != string(want) {
		t.Errorf("quoted % x, want % x", quoted[22:], want)
	}
}

// The checksum of a quoted datagram that becomes 0 is 0xffff, as on the wire.
func TestErrorQuotesZeroChecksum(t *testing.T) {
	for _, f := range families {
		data := binary.BigEndian.AppendUint16(nil, transport16(f.request().UDP(1000, 53, []byte{0, 0}), 6))
		want := f.request().UDP(1000, 53, data)
		if got := transport16(want, 6); got != 0xffff {
			t.Fatalf("the test is wrong: %#04x", got)
		}
		toServer := packettest.IP{Src: f.client, Dst: f.rip}
		p := decode(t, packettest.IP{Src: f.rip, Dst: f.client}.ICMP(unreachableType(f), 3, 0, packet(toServer.UDP(1000, 8053, data))))
		p.RewriteErrorToClient(addr(f.vip), 53)
		same(t, p.Frame(), f.reply().ICMP(unreachableType(f), 3, 0, packet(want)))
	}
}

// A router's quotation may carry a wrong transport checksum, or one that a device has not completed. Wrong it stays.
func TestErrorQuotesWrongChecksum(t *testing.T) {
	sent := packettest.IP{Src: v4.client, Dst: v4.rip}.UDP(1000, 53, text(9))
	p := decode(t, packettest.IP{Src: v4.rip, Dst: v4.client}.ICMP(3, 3, 0, packet(putTransport(sent, 6, 0x1234))))
	p.RewriteErrorToClient(addr(v4.vip), 53)
	packettest.Check(t, packet(p.Frame()))
	if packettest.Verify(packet(p.Frame())[28:]) == nil {
		t.Error("the quoted checksum was put right")
	}
}

func TestErrorChecksumValid(t *testing.T) {
	for _, f := range families {
		frame := fancy(f.request()).ICMP(unreachableType(f), 1, 0, packet(f.reply().UDP(80, 1000, text(33))))
		if !decode(t, frame).ErrorChecksumValid() {
			t.Errorf("%s: a sound error is said to be wrong", f.name)
		}
		h, err := packettest.Walk(packet(frame))
		if err != nil {
			t.Fatal(err)
		}
		for at := h.Transport + 1; at < len(packet(frame)); at++ {
			if decode(t, edit(frame, at, packet(frame)[at]^0x10)).ErrorChecksumValid() {
				t.Errorf("%s: byte %d is wrong, and nobody has noticed", f.name, at)
			}
		}
	}
	// ICMPv6 covers the addresses.
	frame := v6.request().ICMP(1, 0, 0, packet(v6.reply().UDP(80, 1000, nil)))
	if decode(t, edit(frame, 39, 9)).ErrorChecksumValid() {
		t.Error("v6: another destination, and nobody has noticed")
	}
}

func TestSetErrorSource(t *testing.T) {
	for _, f := range families {
		quote := packet(f.reply().UDP(80, 1000, text(9)))
		frame := fancy(packettest.IP{Src: f.router, Dst: f.rip}).ICMP(unreachableType(f), 1, 0, quote)
		p := decode(t, frame)
		p.SetErrorSource(addr(f.client))
		same(t, frame, fancy(packettest.IP{Src: f.client, Dst: f.rip}).ICMP(unreachableType(f), 1, 0, quote))
		if p.Flow.Src != addr(f.client) {
			t.Errorf("%s: Flow is %s", f.name, p.Flow)
		}
	}
}

func TestErrorRewriteAllocatesNothing(t *testing.T) {
	for _, f := range families {
		template := f.request().ICMP(unreachableType(f), 1, 0, packet(fancy(f.reply()).TCP(segment(stack.FlagACK), text(99))))
		frame, p, rip := slices.Clone(template), new(stack.Packet), addr(f.rip)
		n := testing.AllocsPerRun(100, func() {
			copy(frame, template)
			if p.Decode(frame) == stack.NoProblem && p.HasQuote && p.ErrorChecksumValid() {
				p.RewriteErrorToServer(rip, 8080)
				p.SetErrorSource(rip)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", f.name, n)
		}
	}
}
