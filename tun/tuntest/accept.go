package tuntest

import (
	"encoding/binary"

	"github.com/lvsd/lvsd/tun"
)

// A virtio_net_hdr, in the machine's byte order: flags, kind of super-packet, length of the headers, size of a segment,
// where the checksum starts, and how far behind that it is.
const (
	needsChecksum = 1

	segmentNone  = 0
	segmentTCPv4 = 1
	segmentUFO   = 3
	segmentTCPv6 = 4
	segmentUSO   = 5
	segmentECN   = 0x80

	byFragments = 0xffff // a segment size that means something else inside the kernel
	maxSegments = 128    // of a UDP super-packet
)

// acceptable tells whether Linux (6.18) takes a frame from a tun device that is up. The kernel looks only at what it
// needs not to be led astray by the header; whether the packet is sound is found out further inside.
func acceptable(frame []byte) bool {
	if len(frame) <= tun.HeaderLen {
		return false
	}
	packet := frame[tun.HeaderLen:]
	if version := packet[0] >> 4; version != 4 && version != 6 {
		return false
	}
	partial := frame[0]&needsChecksum != 0
	headers := int(binary.NativeEndian.Uint16(frame[2:]))
	segment := int(binary.NativeEndian.Uint16(frame[4:]))
	start := int(binary.NativeEndian.Uint16(frame[6:]))
	offset := int(binary.NativeEndian.Uint16(frame[8:]))

	var transport, field int // least length of the transport header, and where its checksum is
	network := 20            // least length of the IP header
	kind, ecn := frame[1]&^segmentECN, frame[1]&segmentECN != 0
	switch kind {
	case segmentNone:
		if ecn {
			return false
		}
	case segmentTCPv4:
		transport, field = 20, 16
	case segmentTCPv6:
		transport, field, network = 20, 16, 40
	case segmentUFO, segmentUSO:
		transport, field = 8, 6
	default:
		return false
	}

	if partial {
		headers = max(headers, start+offset+2)
		if start < network || start+max(transport, offset+2) > len(packet) {
			return false
		}
		network = start
	}
	if headers > len(packet) {
		return false
	}
	if kind == segmentNone {
		return true
	}
	payload := len(packet) - network - transport
	if payload < 0 || segment == 0 || segment == byFragments {
		return false
	}
	switch kind {
	case segmentUFO:
		return true
	case segmentUSO:
		return !ecn && partial && offset == field && payload <= segment*maxSegments
	default:
		return !partial || offset == field
	}
}
