package stack_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"github.com/lvsd/lvsd/stack"
	"github.com/lvsd/lvsd/stack/packettest"
)

// seedFrames returns the frames of the tables, sound and unsound, that are not too long to play with.
func seedFrames() (frames [][]byte) {
	for _, tt := range decodeTests {
		frames = append(frames, tt.frame)
	}
	for _, tt := range append(problemTests(), offloadTests()...) {
		frames = append(frames, tt.frame)
	}
	frames = slices.DeleteFunc(frames, func(frame []byte) bool { return len(frame) > 4000 })
	for _, f := range families {
		frames = append(frames,
			packettest.Partial(f.request().TCP(segment(stack.FlagSYN), nil)),
			packettest.Partial(fancy(f.request()).UDP(1000, 53, text(5))),
			packettest.Partial(f.request().Echo(1, 2, text(5))),
			packettest.Super(f.request().UDP(1000, 53, text(100)), 30),
			packettest.SuperECN(f.request().TCP(segment(stack.FlagACK), text(100)), 30),
			f.request().ICMP(unreachableType(f), 1, 0, packet(fancy(f.reply()).UDP(80, 1000, text(8)))))
		frames = append(frames, packettest.Fragments(fancy(f.request()).UDP(1000, 53, text(100)), 7, 48)...)
	}
	return append(frames, putTransport(v4.request().UDP(1000, 53, text(5)), 6, 0))
}

// Whatever the bytes are, Decode does not panic, says the same twice, looks at nothing outside the packet, and agrees
// with two other decoders. What it lets pass, a tun device takes.
func FuzzDecode(f *testing.F) {
	for _, frame := range seedFrames() {
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		var p, again stack.Packet
		frame := slices.Clip(bytes.Clone(input))
		problem := p.Decode(frame)
		if same := again.Decode(frame); same != problem {
			t.Fatalf("%s, then %s", problem, same)
		}
		if len(p.Frame()) > len(frame) || len(frame) > 0 && len(p.Frame()) > 0 && &p.Frame()[0] != &frame[0] {
			t.Fatal("Frame is not a part of the frame")
		}
		if problem != stack.NoProblem {
			return
		}
		if look(&p) != look(&again) {
			t.Fatalf("%+v, then %+v", look(&p), look(&again))
		}
		checkOffsets(t, &p)
		checkAccessors(t, &p)
		checkAgainstWalk(t, &p)
		checkAgainstGopacket(t, &p)
		if err := packettest.Refused(p.Frame()); err != nil {
			t.Fatalf("a device refuses what Decode lets pass: %v", err)
		}
	})
}

func checkOffsets(t *testing.T, p *stack.Packet) {
	transport, quote, quoteTransport := p.Offsets()
	need := map[stack.Kind]int{stack.KindTCP: 20, stack.KindUDP: 8, stack.KindEcho: 8, stack.KindError: 8, stack.KindLaterFragment: 1}
	if transport < stack.OffloadLen+20 || transport+need[p.Kind] > len(p.Frame()) {
		t.Fatalf("transport header at %d of %d bytes, kind %d", transport, len(p.Frame()), p.Kind)
	}
	if p.HasQuote && (p.Kind != stack.KindError || quote != transport+8 || quoteTransport < quote+20 || quoteTransport+4 > len(p.Frame())) {
		t.Fatalf("quoted packet at %d, its ports at %d of %d bytes, kind %d", quote, quoteTransport, len(p.Frame()), p.Kind)
	}
	if later := p.Kind == stack.KindLaterFragment; later != (p.Fragmented && p.Fragment.Offset > 0) {
		t.Fatalf("kind %d, fragment %+v", p.Kind, p.Fragment)
	}
	if x := p.Fragment; p.Fragmented && (x.Len <= 0 || x.Offset%8 != 0 || x.Offset+x.Len > 65535 || x.More && x.Len%8 != 0) {
		t.Fatalf("fragment %+v", x)
	}
}

func checkAccessors(t *testing.T, p *stack.Packet) {
	if p.Len() != len(p.Frame())-stack.OffloadLen || p.LargestSegment() > p.Len() || p.LargestSegment() < 20 {
		t.Fatalf("%d bytes, Len %d, LargestSegment %d", len(p.Frame()), p.Len(), p.LargestSegment())
	}
	if a, b := p.Flow.Src, p.Flow.Dst; a == b || a.Is4() == p.Is6() || b.Is4() == p.Is6() {
		t.Fatalf("Flow %s, Is6 %t", p.Flow, p.Is6())
	}
	if p.HasQuote && (p.Quoted.Src.Is4() == p.Is6() || p.Quoted.Dst.Is4() == p.Is6()) {
		t.Fatalf("Quoted %s, Is6 %t", p.Quoted, p.Is6())
	}
	p.TTL()
	p.DontFragment()
	p.Answerable()
}

func checkAgainstWalk(t *testing.T, p *stack.Packet) {
	h, err := packettest.Walk(packet(p.Frame()))
	if err != nil {
		t.Fatal("Decode lets pass:", err)
	}
	transport, _, _ := p.Offsets()
	if h.Protocol != p.Flow.Protocol || h.Transport+stack.OffloadLen != transport || addr(h.Src) != p.Flow.Src || addr(h.Dst) != p.Flow.Dst {
		t.Fatalf("%s, transport at %d; the reference says %+v", p.Flow, transport, h)
	}
	if h.Fragmented != p.Fragmented ||
		h.Fragmented && (h.ID != p.Fragment.ID || h.Offset != p.Fragment.Offset || h.More != p.Fragment.More) {
		t.Fatalf("fragmented %t, %+v; the reference says %+v", p.Fragmented, p.Fragment, h)
	}
}

// checkAgainstGopacket compares what gopacket understands.
func checkAgainstGopacket(t *testing.T, p *stack.Packet) {
	decoded := packettest.Parse(packet(p.Frame()))
	switch ip := decoded.NetworkLayer().(type) {
	case *layers.IPv4:
		if ip.Version == 0 {
			return // its options are too much for gopacket
		}
		if p.Is6() || !isAddr(ip.SrcIP, p.Flow.Src) || !isAddr(ip.DstIP, p.Flow.Dst) ||
			ip.TTL != p.TTL() || uint8(ip.Protocol) != p.Flow.Protocol {
			t.Fatalf("%s, TTL %d; gopacket says %+v", p.Flow, p.TTL(), ip)
		}
	case *layers.IPv6:
		if !p.Is6() || !isAddr(ip.SrcIP, p.Flow.Src) || !isAddr(ip.DstIP, p.Flow.Dst) ||
			ip.HopLimit != p.TTL() {
			t.Fatalf("%s, TTL %d; gopacket says %+v", p.Flow, p.TTL(), ip)
		}
	}
	switch l := decoded.TransportLayer().(type) {
	case *layers.TCP:
		if p.Kind == stack.KindTCP &&
			(uint16(l.SrcPort) != p.Flow.SrcPort || uint16(l.DstPort) != p.Flow.DstPort || l.Contents[13] != p.TCPFlags) {
			t.Fatalf("%s, flags %#x; gopacket says %+v", p.Flow, p.TCPFlags, l)
		}
	case *layers.UDP:
		if p.Kind == stack.KindUDP && (uint16(l.SrcPort) != p.Flow.SrcPort || uint16(l.DstPort) != p.Flow.DstPort) {
			t.Fatalf("%s; gopacket says %+v", p.Flow, l)
		}
	}
}

func isAddr(ip []byte, a stack.Addr) bool {
	got, ok := netip.AddrFromSlice(ip)
	return ok && stack.AddrFrom(got) == a
}

// A rewrite of any packet changes its ends, its TTL and its checksums and nothing else, and by as much as a checksum was
// wrong before, by so much it is wrong afterwards.
func FuzzRewrite(f *testing.F) {
	for i, frame := range seedFrames() {
		f.Add(frame, []byte("\xfd\x02 new address.\x01"), uint16(8080+i), i%2 == 0)
	}
	f.Fuzz(func(t *testing.T, input, address []byte, port uint16, source bool) {
		frame := bytes.Clone(input)
		p := new(stack.Packet)
		if p.Decode(frame) != stack.NoProblem || len(address) < 16 ||
			p.Kind != stack.KindTCP && p.Kind != stack.KindUDP && p.Kind != stack.KindLaterFragment {
			return
		}
		end := stack.AddrFrom16([16]byte(address))
		if !p.Is6() {
			end = stack.AddrFrom4(binary.BigEndian.Uint32(address))
		}
		frame = p.Frame()
		before, ttl := bytes.Clone(frame), p.TTL()
		want := p.Flow
		if source {
			p.SetSource(end, port)
			want.Src = end
		} else {
			p.SetDestination(end, port)
			want.Dst = end
		}
		if p.RestoreTTL(); p.TTL() != max(ttl, ttl+1) {
			t.Fatalf("TTL %d became %d", ttl, p.TTL())
		}
		if p.Kind != stack.KindLaterFragment {
			if source {
				want.SrcPort = port
			} else {
				want.DstPort = port
			}
		}
		if p.Flow != want {
			t.Fatalf("Flow is %s, want %s", p.Flow, want)
		}
		checkWritten(t, before, frame, p, source)
		checkResidues(t, before, frame, p)
		if again := new(stack.Packet); again.Decode(frame) == stack.NoProblem && (again.Flow != want || again.Partial() != p.Partial()) {
			t.Fatalf("Flow is %s, decoded again %s", want, again.Flow)
		} else if err := packettest.Refused(frame); err != nil {
			t.Fatalf("a device refuses what has been rewritten: %v", err)
		}
	})
}

// checkWritten fails the test if more has changed in a frame than a rewrite of one end may change.
func checkWritten(t *testing.T, before, after []byte, p *stack.Packet, source bool) {
	requested := p.Partial() && before[0]&stack.OffloadNeedsChecksum == 0 // a checksum that was absent
	mask := func(frame []byte) []byte {
		b := bytes.Clone(frame)
		ttl, address, size, port := 8, 16, 4, 2
		if p.Is6() {
			ttl, address, size = 7, 24, 16
		} else {
			clear(packet(b)[10:12])
		}
		if source {
			address, port = address-size, 0
		}
		packet(b)[ttl] = 0
		clear(packet(b)[address:][:size])
		if p.Kind != stack.KindLaterFragment {
			clear(b[transportOf(p)+port:][:2])
			clear(b[transportOf(p)+checksumOf(p):][:2])
		}
		if requested {
			clear(b[:stack.OffloadLen])
		}
		return b
	}
	if !bytes.Equal(mask(before), mask(after)) {
		t.Fatalf("more has changed than may\n% x\n% x", before, after)
	}
}

func transportOf(p *stack.Packet) int {
	at, _, _ := p.Offsets()
	return at
}

func checksumOf(p *stack.Packet) int {
	if p.Kind == stack.KindTCP {
		return 16
	}
	return 6
}

// checkResidues compares how wrong the checksums of two frames are.
func checkResidues(t *testing.T, before, after []byte, p *stack.Packet) {
	if !p.Is6() {
		n := int(packet(after)[0]&15) * 4
		if a, b := packettest.Sum(packet(before)[:n]), packettest.Sum(packet(after)[:n]); a%0xffff != b%0xffff {
			t.Fatalf("the sum over the IPv4 header was %#04x and is %#04x", a, b)
		}
	}
	if p.Kind == stack.KindLaterFragment {
		return
	}
	at := transportOf(p) + checksumOf(p)
	field := func(frame []byte) []byte { return frame[at : at+2] }
	wasPartial, absent := before[0]&stack.OffloadNeedsChecksum != 0, p.Kind == stack.KindUDP && bytes.Equal(field(before), []byte{0, 0})
	switch {
	case wasPartial:
		residue := func(frame []byte) uint16 {
			return add(binary.BigEndian.Uint16(field(frame)), ^packettest.Sum(pseudoHeader(t, frame)))
		}
		if a, b := residue(before), residue(after); a%0xffff != b%0xffff {
			t.Fatalf("the partial checksum was wrong by %#04x and is by %#04x", a, b)
		}
	case absent && p.Partial():
		if _, err := packettest.Send(after); err != nil && packettest.Sum(packet(after)[:int(packet(after)[0]&15)*4]) == 0xffff {
			t.Fatalf("the checksum that was absent: %v", err)
		}
	case absent:
		if !bytes.Equal(field(after), field(before)) {
			t.Fatal("an absent checksum was updated")
		}
	default:
		residue := func(frame []byte) uint16 { return packettest.Sum(pseudoHeader(t, frame), frame[transportOf(p):]) }
		if a, b := residue(before), residue(after); a%0xffff != b%0xffff {
			t.Fatalf("the sum over pseudo-header and segment was %#04x and is %#04x", a, b)
		}
		if p.Kind == stack.KindUDP && bytes.Equal(field(after), []byte{0, 0}) {
			t.Fatal("a checksum has become absent")
		}
	}
}

func pseudoHeader(t *testing.T, frame []byte) []byte {
	h, err := packettest.Walk(packet(frame))
	if err != nil {
		t.Fatal(err)
	}
	return h.PseudoHeader(len(packet(frame)) - h.Transport)
}

// An error about any packet is translated so that it is sound, quotes the new ends, and nothing else has changed.
func FuzzQuotedError(f *testing.F) {
	for i, fam := range families {
		vip, rip, client := netip.AddrPortFrom(fam.vip, 80), netip.AddrPortFrom(fam.rip, 8080), netip.AddrPortFrom(fam.client, 1000)
		for _, q := range quotations(vip, client, rip, client) {
			f.Add(q.sent, unreachableType(fam), uint8(i), uint32(1400), true)
			f.Add(q.sent[:min(len(q.sent), 50)], unreachableType(fam), uint8(i), uint32(0), false)
		}
	}
	f.Fuzz(func(t *testing.T, quote []byte, icmpType, code uint8, rest uint32, toServer bool) {
		if len(quote) == 0 || len(quote) > 2000 {
			return
		}
		fam := v4
		if quote[0]>>4 == 6 {
			fam = v6
		}
		h := packettest.IP{Src: fam.router, Dst: fam.client}
		frame := h.ICMP(icmpType, code, rest, quote)
		p := decode(t, frame)
		if !p.HasQuote {
			return
		}
		if !p.ErrorChecksumValid() {
			t.Fatal("ErrorChecksumValid says no")
		}
		want := p.Quoted
		var address, port int // where in the quoted packet, and in its transport header
		if toServer {
			p.RewriteErrorToServer(addr(fam.rip), 8080)
			h.Dst = fam.rip
			want.Src, want.SrcPort = addr(fam.rip), 8080
			address, port = map[family]int{v4: 12, v6: 8}[fam], 0
		} else {
			p.RewriteErrorToClient(addr(fam.vip), 80)
			h.Src = fam.vip
			want.Dst, want.DstPort = addr(fam.vip), 80
			address, port = map[family]int{v4: 16, v6: 24}[fam], 2
		}
		if p.Quoted != want || p.Flow.Src != addr(h.Src) || p.Flow.Dst != addr(h.Dst) {
			t.Fatalf("Quoted is %s, want %s; Flow is %s", p.Quoted, want, p.Flow)
		}
		after := packet(frame)[len(packet(frame))-len(quote):]
		same(t, frame, h.ICMP(icmpType, code, rest, after)) // so all outside the quotation is right
		checkQuotation(t, fam, quote, after, address, port, want.Protocol)
	})
}

// checkQuotation compares a quoted packet with what has become of it.
func checkQuotation(t *testing.T, f family, before, after []byte, address, port int, protocol uint8) {
	h, err := packettest.Walk(before)
	if err != nil {
		t.Fatal(err)
	}
	transportBefore, transportAfter := before[h.Transport:], after[h.Transport:]
	checksumAt, size := 16, 18 // of TCP, and how much must be quoted for it to be there
	if protocol == stack.ProtocolUDP {
		checksumAt, size = 6, 8
	}
	mask := func(quoted []byte) []byte {
		b := bytes.Clone(quoted)
		clear(b[address:][:len(f.vip.AsSlice())])
		if f == v4 {
			clear(b[10:12])
		}
		clear(b[h.Transport+port:][:2])
		if len(b) >= h.Transport+size {
			clear(b[h.Transport+checksumAt:][:2])
		}
		return b
	}
	if !bytes.Equal(mask(before), mask(after)) {
		t.Fatalf("more has changed in the quotation than may\n% x\n% x", before, after)
	}
	if f == v4 && packettest.Sum(after[:h.Transport]) != 0xffff {
		t.Fatal("the quoted IPv4 header checksum is wrong")
	}
	if len(transportBefore) < size {
		return
	}
	field := func(transport []byte) uint16 { return binary.BigEndian.Uint16(transport[checksumAt:]) }
	if protocol == stack.ProtocolUDP && field(transportBefore) == 0 {
		if field(transportAfter) != 0 {
			t.Fatal("a quoted absent checksum was updated")
		}
		return
	}
	residue := func(quoted, transport []byte) uint16 {
		h, err := packettest.Walk(quoted)
		if err != nil {
			t.Fatal(err)
		}
		return packettest.Sum(h.PseudoHeader(0), transport)
	}
	if a, b := residue(before, transportBefore), residue(after, transportAfter); a%0xffff != b%0xffff {
		t.Fatalf("the sum over the quoted segment was %#04x and is %#04x", a, b)
	}
	if protocol == stack.ProtocolUDP && field(transportAfter) == 0 {
		t.Fatal("a quoted checksum has become absent")
	}
}

// Any packet that may be answered gets sound answers that quote it, within the sizes of RFC 1812 and RFC 4443.
func FuzzReply(f *testing.F) {
	for _, frame := range seedFrames() {
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		p := new(stack.Packet)
		if p.Decode(bytes.Clone(input)) != stack.NoProblem {
			return
		}
		request, flow, v6 := bytes.Clone(p.Frame()), p.Flow, p.Is6()
		limit, headers := 576, 28
		if v6 {
			limit, headers = 1280, 48
		}
		if p.Answerable() {
			for _, r := range icmpReplies {
				p.Decode(bytes.Clone(request))
				got := r.reply(p)
				reply := sent(t, got)
				if len(reply) > limit || got[0]|got[1] != 0 {
					t.Fatalf("%s of %d bytes, offload % x", r.name, len(reply), got[:2])
				}
				if quote := reply[headers:]; !bytes.HasPrefix(packet(request), quote) || len(quote) != min(len(packet(request)), limit-headers) {
					t.Fatalf("%s quotes\n% x\nof\n% x", r.name, quote, packet(request))
				}
				if again := decode(t, got); again.Flow.Src != flow.Dst || again.Flow.Dst != flow.Src || again.Kind != stack.KindError {
					t.Fatalf("%s: %s, kind %d", r.name, again.Flow, again.Kind)
				}
			}
		}
		switch p.Decode(bytes.Clone(request)); p.Kind {
		case stack.KindTCP:
			got := p.ReplyReset()
			sent(t, got)
			if again := decode(t, got); again.Flow != flow.Reverse() || again.TCPFlags&^stack.FlagACK != stack.FlagRST || again.Fragmented {
				t.Fatalf("reset: %s, flags %#x", again.Flow, again.TCPFlags)
			}
		case stack.KindEcho:
			valid := p.ErrorChecksumValid()
			got := p.ReplyEcho()
			if again := decode(t, got); again.Flow != flow.Reverse() || again.Kind == stack.KindEcho || again.Fragmented != p.Fragmented {
				t.Fatalf("echo: %s, kind %d", again.Flow, again.Kind)
			}
			if !p.Fragmented && valid {
				packettest.Check(t, packet(got))
			}
		}
	})
}

// A string of bytes drives a memory of fragments and the naive reference beside it. With large set, they are long or
// of many datagrams, so that the bounds are reached, and only the bounds are checked.
func FuzzFragments(f *testing.F) {
	f.Add([]byte("\x00\x01\x00\x05\x00\x01\x06\x05\x00\x01\x0c\x83"), false)                 // in order
	f.Add([]byte("\x00\x01\x0c\x83\x00\x01\x06\x05\x00\x01\x06\x05\x00\x01\x00\x05"), false) // backwards, with a duplicate
	f.Add([]byte("\x00\x01\x06\x05\x00\x01\x08\x05\x30\x01\x00\x05\x00\x01\x00\x05"), false) // an overlap, and anew
	f.Add([]byte("\x00\x01\x05\x85\x70\x01\x05\x05\x70\x02\x00\x05\x70\x01\x00\x05"), false) // late
	var long, many, scattered []byte
	for id := range byte(80) {
		long = append(long, 1, id, 1, 1)
		many = append(many, 2, id, id&1, 1)
		scattered = append(scattered, 0, 1, 2*id+1, 0)
	}
	f.Add(long, true)
	f.Add(many, true)
	f.Add(scattered, true)
	f.Fuzz(func(t *testing.T, operations []byte, large bool) {
		m, model, now := newMemory(t, v6), naive{}, time.Duration(0)
		for op := range slices.Chunk(operations[:min(len(operations), 400)&^3], 4) {
			now += time.Duration(op[0]>>4) * stack.FragmentLifetime / 20
			x := piece{id: uint32(op[1]), from: 8 * int(op[2]), last: op[3]&0x80 != 0}
			if !large {
				x.from %= 256
			}
			x.to = x.from + 8*(1+int(op[3]&15))
			if x.last {
				x.to -= int(op[3] >> 4 & 7)
				if x.from == 0 {
					continue // a whole packet
				}
			}
			switch {
			case !large:
				verdict, fate, frames := m.put(x, "fate", now)
				wantVerdict, wantFate, out := model.put(x, "fate", now)
				if verdict != wantVerdict || fate != wantFate || len(frames) != out {
					t.Fatalf("%+v at %v: verdict %d, fate %q, %d out, want %d, %q, %d",
						x, now, verdict, fate, len(frames), wantVerdict, wantFate, out)
				}
			case op[0]&7 == 1: // as long as there is
				x.to = min(65528, x.from+65520)
				m.put(x, "fate", now)
			case op[0]&7 == 2: // of many datagrams
				for n := range uint32(100) {
					x.id = x.id&0xff | n<<8
					m.put(x, "fate", now)
				}
			default:
				m.put(x, "fate", now)
			}
			datagrams, frames, accounted, really := m.Held()
			if accounted != really || really > stack.MaxHeldBytes || datagrams < 0 || datagrams > stack.MaxDatagrams {
				t.Fatalf("%+v: %d datagrams, %d frames of %d bytes, accounted for: %d", x, datagrams, frames, really, accounted)
			}
		}
		m.Expire(now + stack.FragmentLifetime)
		m.wantHeld(0, 0)
	})
}
