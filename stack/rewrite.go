package stack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// end says where the fields of one end of a flow are: its address in an IPv4 or IPv6 header, its port in a TCP or UDP
// header.
type end struct{ addr4, addr6, port int }

var (
	source      = end{offsetSrc4, offsetSrc6, 0}
	destination = end{offsetDst4, offsetDst6, 2}
)

// SetSource gives the packet another source address and, unless it is a later fragment, source port. The address must
// be of the packet's family. The packet must be TCP, UDP or a fragment of one.
func (p *Packet) SetSource(a Addr, port uint16) {
	p.setEnd(source, &p.Flow.Src, &p.Flow.SrcPort, a, port)
}

// SetDestination is SetSource for the other end.
func (p *Packet) SetDestination(a Addr, port uint16) {
	p.setEnd(destination, &p.Flow.Dst, &p.Flow.DstPort, a, port)
}

func (p *Packet) setEnd(e end, oldAddr *Addr, oldPort *uint16, addr Addr, port uint16) {
	addrDelta := checksum.Combine(addr.sum(), ^oldAddr.sum())
	p.putAddr(e, addr, addrDelta)
	*oldAddr = addr
	if p.Kind == KindLaterFragment {
		return
	}
	portDelta := checksum.Combine(port, ^*oldPort)
	binary.BigEndian.PutUint16(p.frame[p.transport+e.port:], port)
	*oldPort = port
	p.updateTransportChecksum(addrDelta, portDelta)
}

// putAddr writes an address of the outer IP header; delta is what it adds to the sum over the header.
func (p *Packet) putAddr(e end, a Addr, delta uint16) {
	ip := p.ip()
	if p.v6 {
		binary.BigEndian.PutUint64(ip[e.addr6:], a.hi)
		binary.BigEndian.PutUint64(ip[e.addr6+8:], a.lo)
		return
	}
	binary.BigEndian.PutUint32(ip[e.addr4:], uint32(a.lo))
	updateChecksum(ip[offsetChecksum4:], delta)
}

// updateChecksum changes a full checksum for data whose sum has grown by delta (RFC 1624, equation 3).
func updateChecksum(field []byte, delta uint16) {
	binary.BigEndian.PutUint16(field, ^checksum.Combine(^binary.BigEndian.Uint16(field), delta))
}

func (p *Packet) updateTransportChecksum(addrDelta, portDelta uint16) {
	if p.Kind == KindUDP {
		p.updateUDPChecksum(addrDelta, portDelta)
		return
	}
	field := p.frame[p.transport+offsetTCPChecksum:]
	if p.partial {
		checksum.Put(field, checksum.Combine(binary.BigEndian.Uint16(field), addrDelta))
		return
	}
	updateChecksum(field, checksum.Combine(addrDelta, portDelta))
}

func (p *Packet) updateUDPChecksum(addrDelta, portDelta uint16) {
	field := p.frame[p.transport+offsetUDPChecksum:]
	old := binary.BigEndian.Uint16(field)
	switch {
	case p.partial:
		checksum.Put(field, checksum.Combine(old, addrDelta))
	case old == 0 && (p.Fragmented || int(header.UDP(p.frame[p.transport:]).Length()) != len(p.frame)-p.transport):
		// A fragment lacks data; a device would add what is behind the datagram.
	case old == 0:
		p.requestChecksum(offsetUDPChecksum)
	default:
		updateChecksum(field, checksum.Combine(addrDelta, portDelta))
		if field[0]|field[1] == 0 {
			checksum.Put(field, 0xffff) // 0 would say that there is none
		}
	}
}

// requestChecksum makes the transport checksum at the offset a partial one: the device that sends the packet will
// compute it.
func (p *Packet) requestChecksum(offset int) {
	length := len(p.frame) - p.transport
	sum := checksum.Combine(p.pseudoSum(p.Flow.Protocol), uint16(length))
	checksum.Put(p.frame[p.transport+offset:], sum)
	o := p.offload()
	o.Encode(OffloadNeedsChecksum, SegmentNone, 0, 0, uint16(p.transport-OffloadLen), uint16(offset))
	p.partial = true
}

// pseudoSum returns the sum of the pseudo-header without the length, which differs between its users.
func (p *Packet) pseudoSum(protocol uint8) uint16 {
	return checksum.Combine(checksum.Combine(p.Flow.Src.sum(), p.Flow.Dst.sum()), uint16(protocol))
}

// RestoreTTL gives back the hop that the way into the tun device has cost. With the one that the way out costs, the
// director is one hop.
func (p *Packet) RestoreTTL() {
	ip := p.ip()
	if p.v6 {
		if ip[offsetHopLimit] < 255 {
			ip[offsetHopLimit]++
		}
		return
	}
	if ip[offsetTTL] < 255 {
		ip[offsetTTL]++
		updateChecksum(ip[offsetChecksum4:], 1<<8)
	}
}

// RewriteErrorToServer translates an ICMP error about what a server sent, which it sent as the VIP: it goes to the
// server at rip, and the packet quoted says rip and port where it said the VIP and its port (ipvs.md 5.7). It must have
// a quote and a valid checksum: see HasQuote and ErrorChecksumValid.
func (p *Packet) RewriteErrorToServer(rip Addr, port uint16) {
	p.setQuotedEnd(source, &p.Quoted.Src, &p.Quoted.SrcPort, rip, port)
	p.putAddr(destination, rip, checksum.Combine(rip.sum(), ^p.Flow.Dst.sum()))
	p.Flow.Dst = rip
	p.sealICMP()
}

// RewriteErrorToClient translates an ICMP error about what a client sent and the director rewrote: it comes from vip,
// whoever made it, and the packet quoted goes to vip and port again (ipvs.md 5.8). It must have a quote and a valid
// checksum.
func (p *Packet) RewriteErrorToClient(vip Addr, port uint16) {
	p.setQuotedEnd(destination, &p.Quoted.Dst, &p.Quoted.DstPort, vip, port)
	p.putAddr(source, vip, checksum.Combine(vip.sum(), ^p.Flow.Src.sum()))
	p.Flow.Src = vip
	p.sealICMP()
}

// SetErrorSource gives a whole ICMP error another source address.
func (p *Packet) SetErrorSource(a Addr) {
	p.putAddr(source, a, checksum.Combine(a.sum(), ^p.Flow.Src.sum()))
	p.Flow.Src = a
	p.sealICMP()
}

// setQuotedEnd changes one end of the quoted packet, with the checksums of it that are within the quotation. IPVS
// leaves the transport checksum stale.
func (p *Packet) setQuotedEnd(e end, oldAddr *Addr, oldPort *uint16, addr Addr, port uint16) {
	delta := checksum.Combine(addr.sum(), ^oldAddr.sum())
	delta = checksum.Combine(delta, checksum.Combine(port, ^*oldPort))
	ip, transport := p.frame[p.quote:], p.frame[p.quoteTransport:]
	if p.v6 {
		binary.BigEndian.PutUint64(ip[e.addr6:], addr.hi)
		binary.BigEndian.PutUint64(ip[e.addr6+8:], addr.lo)
	} else {
		binary.BigEndian.PutUint32(ip[e.addr4:], uint32(addr.lo))
		h := header.IPv4(ip)
		h.SetChecksum(0)
		h.SetChecksum(^h.CalculateChecksum())
	}
	binary.BigEndian.PutUint16(transport[e.port:], port)
	*oldAddr, *oldPort = addr, port

	switch {
	case p.Quoted.Protocol == ProtocolTCP && len(transport) >= offsetTCPChecksum+checksum.Size:
		updateChecksum(transport[offsetTCPChecksum:], delta)
	case p.Quoted.Protocol == ProtocolUDP && len(transport) >= header.UDPMinimumSize &&
		header.UDP(transport).Checksum() != 0:
		updateChecksum(transport[offsetUDPChecksum:], delta)
		if header.UDP(transport).Checksum() == 0 {
			header.UDP(transport).SetChecksum(0xffff)
		}
	}
}

// ErrorChecksumValid verifies the checksum of a whole ICMP or ICMPv6 message.
func (p *Packet) ErrorChecksumValid() bool {
	return checksum.Checksum(p.frame[p.transport:], p.icmpInitialSum()) == 0xffff
}

// sealICMP writes the checksum of a whole ICMP message.
func (p *Packet) sealICMP() {
	field := p.frame[p.transport+offsetICMPChecksum:]
	checksum.Put(field, 0)
	checksum.Put(field, ^checksum.Checksum(p.frame[p.transport:], p.icmpInitialSum()))
}

// icmpInitialSum is what the checksum of an ICMP message starts from: ICMPv6 covers a pseudo-header (RFC 4443 2.3).
func (p *Packet) icmpInitialSum() uint16 {
	if !p.v6 {
		return 0
	}
	return checksum.Combine(p.pseudoSum(ProtocolICMPv6), uint16(len(p.frame)-p.transport))
}
