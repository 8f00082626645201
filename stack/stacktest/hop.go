package stacktest

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/lvsd/lvsd/stack/packettest"
)

// hop is a router as packets meet it: somebody who complains.
type hop struct {
	name      string
	addresses []netip.Addr
	send      func(frame []byte) // sends what it says
}

func (h *hop) String() string { return h.name }

// ICMP and ICMPv6 types and codes.
const (
	unreachable4   = 3
	timeExceeded4  = 11
	fragNeeded4    = 4
	tooBig6        = 2
	timeExceeded6  = 3
	echoRequest6   = 128
	icmp           = 1
	icmpv6         = 58
	maxError4      = 576 // RFC 1812 section 4.3.2.3
	maxError6      = 1280
	controlTraffic = 0xc0
)

func (h *hop) timeExceeded(packet []byte) { h.complain(packet, timeExceeded4, timeExceeded6, 0, 0) }

func (h *hop) tooBig(packet []byte, mtu int) {
	h.complain(packet, unreachable4, tooBig6, fragNeeded4, uint32(mtu))
}

// complain sends the ICMP error about a packet to its source, if there may be one (RFC 1122 section 3.2.2, RFC 4443
// section 2.4(e)).
func (h *hop) complain(packet []byte, type4, type6, code4 uint8, rest uint32) {
	about, err := packettest.Walk(packet)
	if err != nil || isError(about, packet) || about.Offset > 0 && about.Src.Is4() {
		return
	}
	i := slices.IndexFunc(h.addresses, func(a netip.Addr) bool { return a.Is4() == about.Src.Is4() })
	if i < 0 {
		return
	}
	ip := packettest.IP{Src: h.addresses[i], Dst: about.Src, TOS: controlTraffic}
	if about.Src.Is4() {
		h.send(ip.ICMP(type4, code4, rest, packet[:min(len(packet), maxError4-20-8)]))
	} else {
		h.send(ip.ICMP(type6, 0, rest, packet[:min(len(packet), maxError6-40-8)]))
	}
}

// isError tells whether a packet is an ICMP error.
func isError(h packettest.Headers, packet []byte) bool {
	if h.Offset > 0 || h.Transport >= len(packet) {
		return false
	}
	switch t := packet[h.Transport]; h.Protocol {
	case icmp:
		return t == unreachable4 || t == 4 || t == 5 || t == timeExceeded4 || t == 12
	case icmpv6:
		return t < echoRequest6
	}
	return false
}

// decrementTTL takes a hop from a packet and tells whether there is one left. The header checksum is updated by the
// difference, so that a wrong one stays wrong.
func decrementTTL(packet []byte) bool {
	if packet[0]>>4 == 6 {
		if packet[7] <= 1 {
			return false
		}
		packet[7]--
		return true
	}
	if packet[8] <= 1 {
		return false
	}
	packet[8]--
	field := packet[10:12]
	sum := uint32(binary.BigEndian.Uint16(field)) + 1<<8
	binary.BigEndian.PutUint16(field, uint16(sum+sum>>16))
	return true
}

// largest returns the length of the largest packet that a frame will be.
func largest(frame []byte) int {
	packet := frame[offloadLen:]
	if frame[1] == 0 {
		return len(packet)
	}
	h, err := packettest.Walk(packet)
	if err != nil {
		return len(packet)
	}
	headers := h.Transport + 8
	if h.Protocol == 6 {
		headers = h.Transport + int(packet[h.Transport+12]>>4)*4
	}
	return min(len(packet), headers+int(binary.NativeEndian.Uint16(frame[4:])))
}

// mayFragment tells whether a router may cut up a packet: an IPv4 packet without DF.
func mayFragment(packet []byte) bool { return packet[0]>>4 == 4 && packet[6]&0x40 == 0 }

// fragment cuts up an IPv4 packet, which may be a fragment itself, for a link with an MTU in bytes. What fits, and every
// IPv6 packet, is returned as it is.
func fragment(packet []byte, mtu int) (pieces [][]byte) {
	if len(packet) <= mtu || packet[0]>>4 != 4 {
		return [][]byte{packet}
	}
	headerLen := int(packet[0]&15) * 4
	header, data := packet[:headerLen], packet[headerLen:]
	bits := binary.BigEndian.Uint16(header[6:])
	most := (mtu - headerLen) &^ 7
	for at := 0; at < len(data); at += most {
		piece := slices.Concat(header, data[at:min(at+most, len(data))])
		where := bits + uint16(at/8)
		if at+most < len(data) {
			where |= 0x2000
		}
		binary.BigEndian.PutUint16(piece[2:], uint16(len(piece)))
		binary.BigEndian.PutUint16(piece[6:], where)
		binary.BigEndian.PutUint16(piece[10:], 0)
		binary.BigEndian.PutUint16(piece[10:], ^packettest.Sum(piece[:headerLen]))
		pieces = append(pieces, piece)
	}
	return pieces
}
