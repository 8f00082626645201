package stack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// replyTTL is the TTL of packets made here, Linux's default.
const replyTTL = 64

// Most that an ICMP error may be long, the quotation included: RFC 1812 section 4.3.2.3 and RFC 4443 section 2.4(c).
const (
	maxError4 = header.IPv4MinimumProcessableDatagramSize
	maxError6 = header.IPv6MinimumMTU
)

// MinFrameCap is the capacity a frame needs so that every reply fits in it without an allocation, in bytes.
const MinFrameCap = OffloadLen + maxError6

// Unreachable says what could not be reached.
type Unreachable uint8

const (
	UnreachableHost Unreachable = iota
	UnreachableProtocol
	UnreachablePort
)

// The codes of destination unreachable by family. IPv6 has no "protocol unreachable" of this type; a host says
// parameter problem, see ReplyUnreachable.
var (
	unreachable4 = [...]header.ICMPv4Code{header.ICMPv4HostUnreachable, header.ICMPv4ProtoUnreachable, header.ICMPv4PortUnreachable}
	unreachable6 = [...]header.ICMPv6Code{header.ICMPv6AddressUnreachable, 0, header.ICMPv6PortUnreachable}
)

// ReplyEcho turns an echo request into its reply. A fragment of a request becomes the same fragment of the reply, so a
// datagram is answered without ever being put together: call it for later fragments too.
func (p *Packet) ReplyEcho() []byte {
	p.Flow = p.Flow.Reverse()
	ip := p.ip()
	p.putAddr(source, p.Flow.Src, 0)
	p.putAddr(destination, p.Flow.Dst, 0)
	if p.v6 {
		ip[offsetHopLimit] = replyTTL
	} else {
		h := header.IPv4(ip)
		h.SetTTL(replyTTL)
		h.SetFlagsFragmentOffset(h.Flags()&^header.IPv4FlagDontFragment, h.FragmentOffset())
		h.SetChecksum(0)
		h.SetChecksum(^h.CalculateChecksum())
	}
	if p.Kind == KindLaterFragment {
		return p.frame
	}
	t := p.frame[p.transport:]
	was := uint16(t[0]) << 8
	if p.v6 {
		t[0] = byte(header.ICMPv6EchoReply)
	} else {
		t[0] = byte(header.ICMPv4EchoReply)
	}
	// The swapped addresses leave ICMPv6's pseudo-header sum as it was.
	field := t[offsetICMPChecksum:]
	updateChecksum(field, checksum.Combine(uint16(t[0])<<8, ^was))
	if field[0]|field[1] == 0 {
		checksum.Put(field, 0xffff)
	}
	return p.frame
}

// ReplyReset turns a TCP segment into the reset that a host without a socket for it would send (RFC 9293 section
// 3.10.7.1). A reset must not be answered: ask TCPFlags first.
func (p *Packet) ReplyReset() []byte {
	request := p.tcp()
	fields := header.TCPFields{
		SrcPort:    p.Flow.DstPort,
		DstPort:    p.Flow.SrcPort,
		Flags:      header.TCPFlagRst,
		DataOffset: header.TCPMinimumSize,
	}
	if p.TCPFlags&FlagACK != 0 {
		fields.SeqNum = request.AckNumber()
	} else {
		length := uint32(len(request) - int(request.DataOffset()))
		length += uint32(p.TCPFlags&FlagSYN)>>1 + uint32(p.TCPFlags&FlagFIN)
		fields.AckNum = request.SequenceNumber() + length
		fields.Flags |= header.TCPFlagAck
	}
	t := p.beginReply(ProtocolTCP, header.TCPMinimumSize, 0, header.IPv4FlagDontFragment, 0)
	header.TCP(t).Encode(&fields)
	checksum.Put(t[offsetTCPChecksum:], ^checksum.Checksum(t, checksum.Combine(p.pseudoSum(ProtocolTCP), uint16(len(t)))))
	return p.frame
}

// ReplyUnreachable turns the packet into the ICMP error that tells its sender it could not be delivered. Ask Answerable
// first, as for all errors.
func (p *Packet) ReplyUnreachable(what Unreachable) []byte {
	if !p.v6 {
		return p.replyError(uint8(header.ICMPv4DstUnreachable), uint8(unreachable4[what]), 0)
	}
	if what == UnreachableProtocol {
		return p.replyError(uint8(header.ICMPv6ParamProblem), uint8(header.ICMPv6UnknownHeader), uint32(p.named-OffloadLen))
	}
	return p.replyError(uint8(header.ICMPv6DstUnreachable), uint8(unreachable6[what]), 0)
}

// ReplyTimeExceeded turns the packet into the ICMP error that tells its sender the TTL ran out here.
func (p *Packet) ReplyTimeExceeded() []byte {
	if p.v6 {
		return p.replyError(uint8(header.ICMPv6TimeExceeded), 0, 0)
	}
	return p.replyError(uint8(header.ICMPv4TimeExceeded), 0, 0)
}

// ReplyTooBig turns the packet into "fragmentation needed" (RFC 1191) or "packet too big" (RFC 8201), which tells its
// sender the MTU in bytes of the link that the packet would not fit.
func (p *Packet) ReplyTooBig(mtu int) []byte {
	if p.v6 {
		return p.replyError(uint8(header.ICMPv6PacketTooBig), 0, uint32(mtu))
	}
	return p.replyError(uint8(header.ICMPv4DstUnreachable), uint8(header.ICMPv4FragmentationNeeded), uint32(mtu))
}

// Answerable tells whether an ICMP error may be sent about the packet: not about another error, and in IPv4 not about a
// later fragment (RFC 1122 section 3.2.2, RFC 4443 section 2.4(e)). Packets from or to a group do not get past Decode.
func (p *Packet) Answerable() bool {
	if p.Flow.Protocol == ProtocolICMP || p.Flow.Protocol == ProtocolICMPv6 {
		return p.Kind == KindEcho
	}
	return p.Kind != KindLaterFragment || p.v6
}

// replyError makes an ICMP error from the packet's destination to its source. It quotes the packet as it is in the
// frame, so a packet has to be refused before it is rewritten.
func (p *Packet) replyError(icmpType, code uint8, rest uint32) []byte {
	protocol, limit := uint8(ProtocolICMP), maxError4-header.IPv4MinimumSize-icmpHeaderLen
	if p.v6 {
		protocol, limit = ProtocolICMPv6, maxError6-header.IPv6MinimumSize-icmpHeaderLen
	}
	const precedenceInternetControl = 0xc0
	t := p.beginReply(protocol, icmpHeaderLen, min(p.Len(), limit), 0, precedenceInternetControl)
	t[0], t[1] = icmpType, code
	binary.BigEndian.PutUint32(t[4:], rest)
	p.sealICMP()
	return p.frame
}

// beginReply makes the frame a packet from the old destination to the old source: a fresh IP header, room for a
// transport header and, behind it, as many bytes as are to be quoted of the old packet. It returns all behind the IP
// header.
func (p *Packet) beginReply(protocol uint8, transportLen, quoteLen int, flags4, tos4 uint8) []byte {
	headerLen := header.IPv4MinimumSize
	if p.v6 {
		headerLen = header.IPv6MinimumSize
	}
	n := transportLen + quoteLen
	total := OffloadLen + headerLen + n
	frame := p.frame
	if cap(frame) < total {
		frame = make([]byte, total)
	}
	frame = frame[:total]
	copy(frame[total-quoteLen:], p.frame[OffloadLen:OffloadLen+quoteLen])

	p.frame, p.transport = frame, OffloadLen+headerLen
	p.Flow = p.Flow.Reverse()
	p.Flow.Protocol, p.Fragmented, p.partial = protocol, false, false
	p.offload().Clear()
	p.putAddr(source, p.Flow.Src, 0)
	p.putAddr(destination, p.Flow.Dst, 0)
	if p.v6 {
		ip := header.IPv6(p.ip())
		binary.BigEndian.PutUint32(ip, header.IPv6Version<<28)
		ip.SetPayloadLength(uint16(n))
		ip[6], ip[offsetHopLimit] = protocol, replyTTL
		return p.frame[p.transport:]
	}
	ip := header.IPv4(p.ip())
	ip.SetHeaderLength(header.IPv4MinimumSize)
	ip[1] = tos4
	ip.SetTotalLength(uint16(header.IPv4MinimumSize + n))
	if flags4&header.IPv4FlagDontFragment == 0 {
		p.replyID++ // RFC 6864: only packets that may be fragmented need one
		ip.SetID(p.replyID)
	} else {
		ip.SetID(0)
	}
	ip.SetFlagsFragmentOffset(flags4, 0)
	ip.SetTTL(replyTTL)
	ip[9] = protocol
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
	return p.frame[p.transport:]
}
