package stack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Offsets in an IP packet that gVisor's header views have no setter or slice for.
const (
	offsetTTL       = 8
	offsetSrc4      = 12
	offsetDst4      = 16
	offsetChecksum4 = 10

	offsetHopLimit = 7
	offsetSrc6     = 8
	offsetDst6     = 24

	offsetTCPChecksum  = header.TCPChecksumOffset
	offsetUDPChecksum  = 6
	offsetICMPChecksum = 2
	icmpHeaderLen      = header.ICMPv4MinimumSize // the same for ICMPv6 errors and echoes
)

// IPv6 extension headers.
const (
	extensionHopByHop    = uint8(header.IPv6HopByHopOptionsExtHdrIdentifier)
	extensionRouting     = uint8(header.IPv6RoutingExtHdrIdentifier)
	extensionFragment    = uint8(header.IPv6FragmentExtHdrIdentifier)
	extensionDestination = uint8(header.IPv6DestinationOptionsExtHdrIdentifier)

	// maxExtensions bounds the chain of extension headers we follow. RFC 8200 section 4.1 knows six places for one.
	maxExtensions = 8
)

// Decode reads the headers of a frame and makes p a view of it. The frame stays the caller's and must not change
// elsewhere while p is used. Bytes behind the IP packet's own length are cut off. After a Problem only p.Frame is
// defined.
//
// The IPv4 header checksum is not looked at: a forwarding kernel has done that. Transport checksums are not verified,
// as IPVS does not verify them (ipvs.md 5.2); a wrong one stays wrong.
func (p *Packet) Decode(frame []byte) Problem {
	p.frame = frame
	if len(frame) < OffloadLen+header.IPv4MinimumSize {
		return Truncated
	}
	p.Fragmented, p.HasQuote = false, false
	p.TCPFlags = 0
	p.partial = frame[0]&OffloadNeedsChecksum != 0

	var problem Problem
	switch frame[OffloadLen] >> 4 {
	case header.IPv4Version:
		p.v6 = false
		problem = p.decodeIPv4()
	case header.IPv6Version:
		p.v6 = true
		problem = p.decodeIPv6()
	default:
		return BadVersion
	}
	if problem != NoProblem {
		return problem
	}
	if p.Fragmented && p.Fragment.Offset > 0 {
		p.Kind = KindLaterFragment
		p.Flow.SrcPort, p.Flow.DstPort = 0, 0
	} else if problem := p.decodeTransport(); problem != NoProblem {
		return problem
	}
	if binary.NativeEndian.Uint32(frame) != 0 {
		return p.checkOffload()
	}
	return NoProblem
}

func (p *Packet) decodeIPv4() Problem {
	ip := header.IPv4(p.ip())
	headerLen, totalLen := int(ip.HeaderLength()), int(ip.TotalLength())
	if headerLen < header.IPv4MinimumSize || totalLen < headerLen {
		return BadIPHeader
	}
	if totalLen > len(ip) {
		return Truncated
	}
	p.frame = p.frame[:OffloadLen+totalLen]
	p.transport = OffloadLen + headerLen

	src, dst := binary.BigEndian.Uint32(ip[offsetSrc4:]), binary.BigEndian.Uint32(ip[offsetDst4:])
	if src == dst || !sound4(src) || !sound4(dst) {
		return BadAddress
	}
	p.Flow.Src, p.Flow.Dst, p.Flow.Protocol = addr4(src), addr4(dst), ip.Protocol()

	const fragmentBits = 1<<14 - 1 // more fragments, offset
	if binary.BigEndian.Uint16(ip[6:])&fragmentBits != 0 {
		p.Fragmented = true
		p.Fragment = Fragment{ID: uint32(ip.ID()), Offset: int(ip.FragmentOffset()), Len: totalLen - headerLen, More: ip.More()}
		return p.checkFragment()
	}
	return NoProblem
}

// sound4 tells whether a packet that is forwarded may have the address: not "this network", loopback, multicast or
// the limited broadcast (RFC 1812 section 5.3.7).
func sound4(a uint32) bool {
	return a>>24 != 0 && a>>24 != 127 && a>>28 != 14 && a != 1<<32-1
}

func (p *Packet) decodeIPv6() Problem {
	ip := header.IPv6(p.ip())
	if len(ip) < header.IPv6MinimumSize {
		return Truncated
	}
	totalLen := header.IPv6MinimumSize + int(ip.PayloadLength())
	if totalLen > len(ip) {
		return Truncated
	}
	p.frame = p.frame[:OffloadLen+totalLen]

	src, dst := addr16(ip[offsetSrc6:]), addr16(ip[offsetDst6:])
	if src == dst || !sound6(src) || !sound6(dst) {
		return BadAddress
	}
	p.Flow.Src, p.Flow.Dst = src, dst
	return p.decodeExtensions(ip.NextHeader())
}

// sound6 is sound4 for IPv6. IPv4-mapped addresses never belong on a wire (RFC 4942 section 2.2), and let through
// here they would pass for IPv4 addresses.
func sound6(a Addr) bool {
	return a.hi>>56 != 0xff && (a.hi != 0 || a.lo > 1 && a.lo>>32 != 0xffff)
}

// decodeExtensions follows the chain of extension headers to the transport header. It stops at the fragment header of
// a later fragment, behind which is data.
func (p *Packet) decodeExtensions(next uint8) Problem {
	at, problem := OffloadLen+header.IPv6MinimumSize, NoProblem
	p.named = OffloadLen + 6
	for range maxExtensions + 1 {
		switch next {
		case extensionHopByHop, extensionDestination, extensionRouting:
			if at+8 > len(p.frame) {
				return BadExtensionHeaders
			}
			if segmentsLeft := p.frame[at+3]; next == extensionRouting && segmentsLeft != 0 {
				return BadExtensionHeaders
			}
			p.named = at
			next, at = p.frame[at], at+8*(1+int(p.frame[at+1]))
		case extensionFragment:
			if at+8 > len(p.frame) || p.Fragmented {
				return BadExtensionHeaders
			}
			h := p.frame[at : at+8]
			p.named = at
			next, at = h[0], at+8
			offset := binary.BigEndian.Uint16(h[2:])
			if offset&^6 == 0 {
				continue // an atomic fragment is a whole packet (RFC 6946)
			}
			p.Fragmented = true
			p.Fragment = Fragment{ID: binary.BigEndian.Uint32(h[4:]), Offset: int(offset &^ 7), Len: len(p.frame) - at, More: offset&1 != 0}
			if problem = p.checkFragment(); problem != NoProblem || p.Fragment.Offset > 0 {
				p.Flow.Protocol, p.transport = next, at
				return problem
			}
		default:
			if at > len(p.frame) {
				return BadExtensionHeaders
			}
			p.Flow.Protocol, p.transport = next, at
			return NoProblem
		}
	}
	return BadExtensionHeaders
}

// checkFragment refuses fragments that no sender makes (RFC 791, RFC 8200 section 4.5) and the one that would change a
// TCP header's flags behind a filter's back (RFC 1858 section 3).
func (p *Packet) checkFragment() Problem {
	f := &p.Fragment
	switch {
	case f.Len <= 0,
		f.More && f.Len%8 != 0,
		f.Offset+f.Len > 1<<16-1,
		f.Offset == 8 && p.Flow.Protocol == ProtocolTCP && !p.v6:
		return BadFragment
	}
	return NoProblem
}

func (p *Packet) decodeTransport() Problem {
	t := p.frame[p.transport:]
	p.Flow.SrcPort, p.Flow.DstPort = 0, 0
	switch protocol := p.Flow.Protocol; {
	case protocol == ProtocolTCP:
		if len(t) < header.TCPMinimumSize {
			return p.shortTransport()
		}
		if h := int(header.TCP(t).DataOffset()); h < header.TCPMinimumSize || h > len(t) {
			return p.shortTransport()
		}
		p.Kind, p.TCPFlags = KindTCP, t[header.TCPFlagsOffset]
	case protocol == ProtocolUDP:
		if len(t) < header.UDPMinimumSize {
			return p.shortTransport()
		}
		if n := int(header.UDP(t).Length()); n < header.UDPMinimumSize || n > len(t) && !p.Fragmented {
			return BadTransportHeader
		}
		p.Kind = KindUDP
	case protocol == ProtocolICMP && !p.v6, protocol == ProtocolICMPv6 && p.v6:
		if len(t) < icmpHeaderLen {
			return p.shortTransport()
		}
		p.decodeICMP(t[0])
		return NoProblem
	default:
		p.Kind = KindOther
		return NoProblem
	}
	p.Flow.SrcPort, p.Flow.DstPort = binary.BigEndian.Uint16(t), binary.BigEndian.Uint16(t[2:])
	return NoProblem
}

// shortTransport names the problem of a transport header that is cut: in a first fragment it is an attack on filters.
func (p *Packet) shortTransport() Problem {
	if p.Fragmented {
		return BadFragment
	}
	return BadTransportHeader
}

func (p *Packet) decodeICMP(icmpType uint8) {
	p.Kind = KindOther
	if p.v6 {
		switch t := header.ICMPv6Type(icmpType); {
		case t == header.ICMPv6EchoRequest:
			p.Kind = KindEcho
		case t < header.ICMPv6EchoRequest: // all types below are errors (RFC 4443 section 2.1)
			p.Kind = KindError
		}
	} else {
		switch header.ICMPv4Type(icmpType) {
		case header.ICMPv4Echo:
			p.Kind = KindEcho
		case header.ICMPv4DstUnreachable, header.ICMPv4SrcQuench, header.ICMPv4TimeExceeded:
			p.Kind = KindError // the types that IPVS translates (ipvs.md 5.7)
		}
	}
	if p.Kind == KindError {
		p.decodeQuote()
	}
}

// decodeQuote finds the flow of the packet that an ICMP error quotes. Only the first bytes of it need be there: the IP
// header and the ports.
func (p *Packet) decodeQuote() {
	p.quote = p.transport + icmpHeaderLen
	q := p.frame[p.quote:]
	if p.v6 {
		if len(q) < header.IPv6MinimumSize || q[0]>>4 != header.IPv6Version {
			return
		}
		p.Quoted.Src, p.Quoted.Dst = addr16(q[offsetSrc6:]), addr16(q[offsetDst6:])
		if p.Quoted.Src.Is4() || p.Quoted.Dst.Is4() {
			return
		}
		at, next := header.IPv6MinimumSize, header.IPv6(q).NextHeader()
		for range maxExtensions {
			switch {
			case len(q) < at+8:
			case next == extensionHopByHop, next == extensionDestination, next == extensionRouting:
				next, at = q[at], at+8*(1+int(q[at+1]))
				continue
			case next == extensionFragment && binary.BigEndian.Uint16(q[at+2:])&^7 == 0:
				next, at = q[at], at+8
				continue
			}
			break
		}
		p.Quoted.Protocol, p.quoteTransport = next, p.quote+at
	} else {
		if len(q) < header.IPv4MinimumSize || q[0]>>4 != header.IPv4Version {
			return
		}
		ip := header.IPv4(q)
		if int(ip.HeaderLength()) < header.IPv4MinimumSize || ip.FragmentOffset() != 0 {
			return
		}
		p.Quoted.Src, p.Quoted.Dst = addr4(binary.BigEndian.Uint32(q[offsetSrc4:])), addr4(binary.BigEndian.Uint32(q[offsetDst4:]))
		p.Quoted.Protocol, p.quoteTransport = ip.Protocol(), p.quote+int(ip.HeaderLength())
	}
	if p.Quoted.Protocol != ProtocolTCP && p.Quoted.Protocol != ProtocolUDP || len(p.frame) < p.quoteTransport+4 {
		return
	}
	ports := p.frame[p.quoteTransport:]
	p.Quoted.SrcPort, p.Quoted.DstPort = binary.BigEndian.Uint16(ports), binary.BigEndian.Uint16(ports[2:])
	p.HasQuote = true
}

// checkOffload refuses offload headers that contradict the packet: the device would refuse the frame, or make
// something else of it than we decoded. An ICMP message with a partial checksum is given its full one, so that it can
// be verified and answered like any other.
func (p *Packet) checkOffload() Problem {
	o := p.offload()
	if o.Flags()&^(OffloadNeedsChecksum|OffloadDataValid) != 0 || int(o.HeaderLen()) > p.Len() {
		return BadOffloadHeader
	}
	if p.partial {
		start, offset := OffloadLen+int(o.ChecksumStart()), int(o.ChecksumOffset())
		switch {
		case p.Fragmented, start < p.transport, start+offset+checksum.Size > len(p.frame):
			return BadOffloadHeader
		case p.Kind == KindTCP && (start != p.transport || offset != offsetTCPChecksum),
			p.Kind == KindUDP && (start != p.transport || offset != offsetUDPChecksum):
			return BadOffloadHeader
		case p.Kind == KindEcho, p.Kind == KindError:
			if start != p.transport || offset != offsetICMPChecksum || o[1] != SegmentNone {
				return BadOffloadHeader
			}
			sum := checksum.Checksum(p.frame[start:], 0)
			binary.BigEndian.PutUint16(p.frame[start+offset:], ^sum)
			o.Clear()
			p.partial = false
		}
	}
	switch {
	case o[1] == SegmentNone:
		return NoProblem
	case p.Fragmented, o.SegmentSize() == 0, o.SegmentSize() == 0xffff:
		return BadOffloadHeader
	}
	switch o.Segmentation() {
	case SegmentTCPv4:
		if p.Kind != KindTCP || p.v6 {
			return BadOffloadHeader
		}
	case SegmentTCPv6:
		if p.Kind != KindTCP || !p.v6 {
			return BadOffloadHeader
		}
	case SegmentUDP:
		if p.Kind != KindUDP || !p.partial || o[1] != SegmentUDP {
			return BadOffloadHeader
		}
	default:
		return BadOffloadHeader
	}
	return NoProblem
}
