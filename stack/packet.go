package stack

import "gvisor.dev/gvisor/pkg/tcpip/header"

// Kind says what a decoded packet is, as far as a director cares.
type Kind uint8

const (
	KindOther         Kind = iota // a protocol that is not balanced, or an ICMP message of no other kind
	KindTCP                       // whole, or the first fragment
	KindUDP                       // whole, or the first fragment
	KindEcho                      // an ICMP or ICMPv6 echo request, or its first fragment
	KindError                     // an ICMP or ICMPv6 error; Quoted may name the flow it is about
	KindLaterFragment             // any fragment but the first; it has no ports
)

// Problem says why a frame is not a sound packet.
type Problem uint8

const (
	NoProblem           Problem = iota
	Truncated                   // shorter than its headers say
	BadVersion                  // neither IPv4 nor IPv6
	BadIPHeader                 // impossible lengths
	BadAddress                  // source equal to destination, or an address that no forwarded packet may have
	BadExtensionHeaders         // an endless, cut or source-routed chain of IPv6 extension headers
	BadFragment                 // lengths and offsets that no sender makes, or headers split to fool a filter (RFC 1858)
	BadTransportHeader          // impossible TCP, UDP or ICMP header
	BadOffloadHeader            // a virtio_net_hdr that does not fit its packet

	NumProblems = iota
)

var problemNames = [NumProblems]string{
	"none", "truncated", "bad_version", "bad_ip_header", "bad_address", "bad_extension_headers", "bad_fragment",
	"bad_transport_header", "bad_offload_header",
}

func (p Problem) String() string { return problemNames[p] }

// TCP flags as they stand in the header's flag byte.
const (
	FlagFIN = uint8(header.TCPFlagFin)
	FlagSYN = uint8(header.TCPFlagSyn)
	FlagRST = uint8(header.TCPFlagRst)
	FlagACK = uint8(header.TCPFlagAck)
)

// Fragment places a fragment in its datagram. Offset and Len are in bytes of the datagram's fragmentable part.
type Fragment struct {
	ID     uint32
	Offset int
	Len    int
	More   bool // it is not the last
}

// Packet is a decoded view of one frame. Its zero value is ready for Decode; it is meant to be used again and again.
// After a Reply method only Frame and RestoreTTL are of use.
type Packet struct {
	Flow     Flow
	Kind     Kind
	TCPFlags uint8

	// Fragmented is set for every fragment of a datagram, the first one included; Fragment then places it.
	Fragmented bool
	Fragment   Fragment

	// Quoted is the flow of the packet that an ICMP error quotes, as its sender sent it. HasQuote is false if the
	// quotation is too short, a later fragment or of a protocol without ports.
	Quoted   Flow
	HasQuote bool

	frame     []byte
	v6        bool
	partial   bool // the transport checksum is partial
	transport int  // where the transport header starts in the frame; for a later fragment its data

	named          int // where the IPv6 header before the transport header says what that is
	quote          int // where the quoted packet starts in the frame
	quoteTransport int // where its transport header starts

	replyID uint16 // IPv4 identification of the last reply that may be fragmented
}

// Frame returns the frame, cut to what the IP header says is its length. It is the caller's buffer.
func (p *Packet) Frame() []byte { return p.frame }

// Is6 tells whether the packet is an IPv6 packet.
func (p *Packet) Is6() bool { return p.v6 }

// Len returns the length of the IP packet in bytes, which for a super-packet is that of all its segments' data.
func (p *Packet) Len() int { return len(p.frame) - OffloadLen }

// TTL returns the TTL or hop limit.
func (p *Packet) TTL() uint8 {
	if p.v6 {
		return p.ip()[offsetHopLimit]
	}
	return p.ip()[offsetTTL]
}

// Segmented tells whether the frame is a super-packet, to be cut up by the device that sends it.
func (p *Packet) Segmented() bool { return p.offload().Segmentation() != SegmentNone }

// LargestSegment returns the length in bytes of the largest IP packet that the frame will be on the wire.
func (p *Packet) LargestSegment() int {
	if !p.Segmented() {
		return p.Len()
	}
	h := header.UDPMinimumSize
	if p.Kind == KindTCP {
		h = int(p.tcp().DataOffset())
	}
	return min(p.Len(), p.transport-OffloadLen+h+int(p.offload().SegmentSize()))
}

// DontFragment tells whether a router must not fragment the packet: IPv4 with DF, and every IPv6 packet.
func (p *Packet) DontFragment() bool {
	return p.v6 || header.IPv4(p.ip()).Flags()&header.IPv4FlagDontFragment != 0
}

func (p *Packet) offload() Offload { return Offload(p.frame[:OffloadLen]) }
func (p *Packet) ip() []byte       { return p.frame[OffloadLen:] }
func (p *Packet) tcp() header.TCP  { return header.TCP(p.frame[p.transport:]) }
