package packettest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Sum returns the one's complement sum of the 16-bit words of all parts together, computed as RFC 1071 words it: one
// word after the other, each carry brought back at once. It is 0 only if all bytes are.
func Sum(parts ...[]byte) uint16 {
	var sum uint32
	high := true
	for _, part := range parts {
		for _, b := range part {
			if high {
				sum += uint32(b) << 8
			} else {
				sum += uint32(b)
			}
			if sum > 0xffff {
				sum -= 0xffff
			}
			high = !high
		}
	}
	return uint16(sum)
}

// Headers says where things are in a packet that is otherwise sound.
type Headers struct {
	Src, Dst  netip.Addr
	Protocol  uint8 // of what is at Transport
	Transport int   // where the transport header starts, or the data of a later fragment

	Fragmented bool // but an atomic fragment is not (RFC 6946)
	ID         uint32
	Offset     int // in bytes
	More       bool

	fragmentHeader int // where the IPv6 fragment header starts
	fragmentNamed  int // where the header before it says so
}

// Walk reads the IP headers of a packet.
func Walk(packet []byte) (h Headers, err error) {
	defer func() { // an index out of range says all there is to say
		if recover() != nil {
			err = errors.New("headers longer than the packet")
		}
	}()
	if packet[0]>>4 == 4 {
		flags := binary.BigEndian.Uint16(packet[6:])
		return Headers{
			Src: netip.AddrFrom4([4]byte(packet[12:16])), Dst: netip.AddrFrom4([4]byte(packet[16:20])),
			Protocol: packet[9], Transport: int(packet[0]&15) * 4,
			Fragmented: flags&0x3fff != 0, ID: uint32(binary.BigEndian.Uint16(packet[4:])),
			Offset: int(flags&0x1fff) * 8, More: flags&0x2000 != 0,
		}, nil
	}
	h = Headers{
		Src: netip.AddrFrom16([16]byte(packet[8:24])), Dst: netip.AddrFrom16([16]byte(packet[24:40])),
		Protocol: packet[6], Transport: 40,
	}
	for named := 6; h.Offset == 0; {
		e := packet[h.Transport:]
		switch h.Protocol {
		case HopByHop, Routing, DestinationOptions:
			named = h.Transport
			h.Protocol, h.Transport = e[0], h.Transport+8+8*int(e[1])
		case Fragment:
			bits := binary.BigEndian.Uint16(e[2:])
			h.fragmentHeader, h.fragmentNamed, named = h.Transport, named, h.Transport
			h.ID = binary.BigEndian.Uint32(e[4:])
			h.Offset, h.More = int(bits&^7), bits&1 != 0
			h.Fragmented = h.Offset > 0 || h.More
			h.Protocol, h.Transport = e[0], h.Transport+8
		default:
			return h, nil
		}
	}
	return h, nil
}

// checksumOffsets tells where a transport header has its checksum, by protocol.
var checksumOffsets = map[uint8]int{
	uint8(layers.IPProtocolTCP):    16,
	uint8(layers.IPProtocolUDP):    6,
	uint8(layers.IPProtocolICMPv4): 2,
	uint8(layers.IPProtocolICMPv6): 2,
}

// PseudoHeader returns the bytes of the pseudo-header that a checksum covers (RFC 9293 section 3.1, RFC 8200 section
// 8.1) for a segment of the length in bytes. ICMP over IPv4 has none.
func (h Headers) PseudoHeader(length int) []byte {
	if h.Protocol == uint8(layers.IPProtocolICMPv4) {
		return nil
	}
	b := append(h.Src.AsSlice(), h.Dst.AsSlice()...)
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	return append(b, 0, h.Protocol) // the other bytes of padding would add nothing
}

// Verify tells what is wrong with a packet: its lengths, the IPv4 header checksum, and if it is no fragment the checksum
// of TCP, UDP, ICMP or ICMPv6. It asks what a receiver asks, by a reference of its own and by gopacket's; compare with
// Seal to know that a checksum is exactly what a full computation makes it. An IPv4 UDP datagram without a checksum is
// sound.
func Verify(packet []byte) error {
	h, err := Walk(packet)
	if err != nil {
		return err
	}
	decoded := Parse(packet)
	switch ip := decoded.NetworkLayer().(type) {
	case *layers.IPv4:
		if int(ip.Length) != len(packet) {
			return fmt.Errorf("total length %d, but %d bytes", ip.Length, len(packet))
		}
		if sum := Sum(packet[:h.Transport]); sum != 0xffff {
			return fmt.Errorf("IPv4 header checksum %#04x: the sum is %#04x", ip.Checksum, sum)
		}
	case *layers.IPv6:
		if 40+int(ip.Length) != len(packet) {
			return fmt.Errorf("payload length %d, but %d bytes", ip.Length, len(packet)-40)
		}
	default:
		return fmt.Errorf("gopacket cannot read it: %v", decoded.ErrorLayer())
	}
	if err := verifyTransport(h, packet[h.Transport:]); err != nil {
		return err
	}
	return secondOpinion(h, decoded)
}

// secondOpinion asks gopacket about the same checksums, but not about those of what is inside.
func secondOpinion(h Headers, p gopacket.Packet) error {
	outermost := []gopacket.Layer{p.NetworkLayer()}
	if _, ok := checksumOffsets[h.Protocol]; ok && len(p.Layers()) > 1 {
		for _, l := range p.Layers()[1:] {
			if _, ok := l.(gopacket.LayerWithChecksum); ok {
				outermost = append(outermost, l)
				break
			}
		}
	}
	for _, l := range outermost {
		if t, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			must(t.SetNetworkLayerForChecksum(p.NetworkLayer()))
		}
		if c, ok := l.(gopacket.LayerWithChecksum); ok {
			if err, result := c.VerifyChecksum(); err != nil || !result.Valid {
				return fmt.Errorf("gopacket says: %s checksum %#04x, want %#04x (%v)",
					l.LayerType(), result.Actual, result.Correct, err)
			}
		}
	}
	return nil
}

func verifyTransport(h Headers, segment []byte) error {
	offset, known := checksumOffsets[h.Protocol]
	if !known || h.Fragmented {
		return nil
	}
	if len(segment) < offset+2 {
		return fmt.Errorf("transport header of %d bytes", len(segment))
	}
	udp := h.Protocol == uint8(layers.IPProtocolUDP)
	if udp {
		length := int(binary.BigEndian.Uint16(segment[4:]))
		if length < 8 || length > len(segment) {
			return fmt.Errorf("UDP length %d, but %d bytes", length, len(segment))
		}
		segment = segment[:length]
	}
	field := binary.BigEndian.Uint16(segment[offset:])
	if udp && field == 0 {
		if h.Src.Is4() {
			return nil
		}
		return errors.New("IPv6 UDP datagram without a checksum")
	}
	if sum := Sum(h.PseudoHeader(len(segment)), segment); sum != 0xffff {
		return fmt.Errorf("transport checksum %#04x: the sum is %#04x", field, sum)
	}
	return nil
}

// Check fails the test unless the packet is sound by Verify.
func Check(tb testing.TB, packet []byte) {
	tb.Helper()
	if err := Verify(packet); err != nil {
		tb.Fatalf("not sound: %v\n%s", err, Parse(packet))
	}
}

// Parse returns gopacket's view of a packet.
func Parse(packet []byte) gopacket.Packet {
	if len(packet) > 0 && packet[0]>>4 == 6 {
		return gopacket.NewPacket(packet, layers.LayerTypeIPv6, gopacket.Default)
	}
	return gopacket.NewPacket(packet, layers.LayerTypeIPv4, gopacket.Default)
}
