package packettest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/gopacket/gopacket/layers"
)

// What a virtio_net_hdr may ask for.
const (
	needsChecksum = 1

	segmentTCPv4 = 1
	segmentTCPv6 = 4
	segmentUDP   = 5
	segmentECN   = 0x80
)

// Partial returns the frame as a kernel leaves it that has a device compute checksums: with the sum of the pseudo-header
// in the field of the transport checksum, and the request for the rest in the offload header.
func Partial(frame []byte) []byte {
	frame = slices.Clone(frame)
	packet := frame[OffloadLen:]
	h, offset := mustWalk(packet)
	segment := packet[h.Transport:]
	binary.BigEndian.PutUint16(segment[offset:], Sum(h.PseudoHeader(len(segment))))
	encodeOffload(frame, needsChecksum, 0, 0, 0, h.Transport, offset)
	return frame
}

// Super returns the frame of a TCP or UDP packet as a super-packet, its checksum partial, whose data is to be cut into
// pieces of size bytes.
func Super(frame []byte, size int) []byte {
	frame = Partial(frame)
	packet := frame[OffloadLen:]
	h, offset := mustWalk(packet)
	kind, headerLen := uint8(segmentUDP), h.Transport+8
	if h.Protocol == uint8(layers.IPProtocolTCP) {
		kind, headerLen = segmentTCPv4, h.Transport+int(packet[h.Transport+12]>>4)*4
		if h.Src.Is6() {
			kind = segmentTCPv6
		}
	}
	encodeOffload(frame, needsChecksum, kind, headerLen, size, h.Transport, offset)
	return frame
}

// SuperECN is Super for a TCP segment whose CWR flag belongs on the first piece only.
func SuperECN(frame []byte, size int) []byte {
	frame = Super(frame, size)
	frame[1] |= segmentECN
	return frame
}

// Refused tells why Linux refuses a frame that is written to a tun device, with EINVAL (dataplane.md section 4), or
// returns nil. It also refuses UFO, the old way to leave UDP whole, which we never ask for.
func Refused(frame []byte) error {
	if len(frame) < OffloadLen+1 {
		return errors.New("shorter than its offload header")
	}
	o, packet := frame[:OffloadLen], frame[OffloadLen:]
	if n := int(binary.NativeEndian.Uint16(o[2:])); n > len(packet) {
		return fmt.Errorf("hdr_len %d, but %d bytes", n, len(packet))
	}
	partial, start, offset := partialField(o)
	if partial && start+offset+2 > len(packet) {
		return fmt.Errorf("checksum at %d+%d, but %d bytes", start, offset, len(packet))
	}
	if o[1] == 0 {
		return nil
	}
	h, err := Walk(packet)
	if err != nil {
		return err
	}
	kind, size := o[1]&^segmentECN, binary.NativeEndian.Uint16(o[4:])
	tcp := h.Protocol == uint8(layers.IPProtocolTCP) && (!partial || offset == 16)
	udp := h.Protocol == uint8(layers.IPProtocolUDP) && partial && offset == 6
	switch {
	case size == 0, size == 0xffff,
		kind == segmentTCPv4 && !(tcp && h.Src.Is4()),
		kind == segmentTCPv6 && !(tcp && !h.Src.Is4()),
		kind == segmentUDP && (!udp || o[1] != segmentUDP),
		kind != segmentTCPv4 && kind != segmentTCPv6 && kind != segmentUDP:
		return fmt.Errorf("gso_type %#x and gso_size %d of protocol %d", o[1], size, h.Protocol)
	}
	return nil
}

// Send does with a frame what the device does that sends it at last: it completes a partial checksum and cuts up a
// super-packet. It fails where a tun device refuses the frame, and where what is to be completed or cut is not sound. A
// frame that asks for nothing is sent as it is, sound or not.
func Send(frame []byte) (packets [][]byte, err error) {
	if err := Refused(frame); err != nil {
		return nil, err
	}
	o, packet := frame[:OffloadLen], slices.Clone(frame[OffloadLen:])
	partial, start, offset := partialField(o)
	if partial {
		sum := ^Sum(packet[start:])
		if sum == 0 {
			sum = 0xffff // what Linux does for every protocol
		}
		binary.BigEndian.PutUint16(packet[start+offset:], sum)
	}
	if partial || o[1] != 0 {
		if err := Verify(packet); err != nil {
			return nil, fmt.Errorf("as a device completes it: %w", err)
		}
	}
	if o[1] == 0 {
		return [][]byte{packet}, nil
	}
	h, err := Walk(packet)
	if err != nil {
		return nil, err
	}
	return cut(packet, h, int(binary.NativeEndian.Uint16(o[4:]))), nil
}

func partialField(o []byte) (partial bool, start, offset int) {
	return o[0]&needsChecksum != 0, int(binary.NativeEndian.Uint16(o[6:])), int(binary.NativeEndian.Uint16(o[8:]))
}

// cut makes packets of at most size bytes of data out of a super-packet.
func cut(packet []byte, h Headers, size int) (packets [][]byte) {
	tcp := h.Protocol == uint8(layers.IPProtocolTCP)
	headers := packet[:h.Transport+8]
	if tcp {
		headers = packet[:h.Transport+int(packet[h.Transport+12]>>4)*4]
	}
	data := packet[len(headers):]
	for at := 0; at == 0 || at < len(data); at += size {
		piece := data[at:min(at+size, len(data))]
		p := slices.Concat(headers, piece)
		segment := p[h.Transport:]
		if tcp {
			binary.BigEndian.PutUint32(segment[4:], binary.BigEndian.Uint32(segment[4:])+uint32(at))
			const fin, psh, cwr = 0x01, 0x08, 0x80
			if at > 0 {
				segment[13] &^= cwr
			}
			if at+len(piece) < len(data) {
				segment[13] &^= fin | psh
			}
		} else {
			binary.BigEndian.PutUint16(segment[4:], uint16(len(segment)))
		}
		if h.Src.Is4() {
			binary.BigEndian.PutUint16(p[4:], uint16(h.ID)+uint16(len(packets)))
		}
		packets = append(packets, Seal(p))
	}
	return packets
}

// Seal returns the packet with its IP length and all its checksums written anew.
func Seal(packet []byte) []byte {
	packet = sealIP(packet)
	h, err := Walk(packet)
	must(err)
	offset, ok := checksumOffsets[h.Protocol]
	if segment := packet[h.Transport:]; ok && !h.Fragmented {
		sum := ^sumWithout(segment, offset, h.PseudoHeader(len(segment)))
		if sum == 0 && h.Protocol == uint8(layers.IPProtocolUDP) {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(segment[offset:], sum)
	}
	return packet
}

// sealIP is Seal for the IP header alone.
func sealIP(packet []byte) []byte {
	packet = slices.Clone(packet)
	if packet[0]>>4 == 4 {
		header := packet[:int(packet[0]&15)*4]
		binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
		binary.BigEndian.PutUint16(packet[10:], ^sumWithout(header, 10, nil))
	} else {
		binary.BigEndian.PutUint16(packet[4:], uint16(len(packet)-40))
	}
	return packet
}

// sumWithout is Sum with 0 in the checksum field at the offset.
func sumWithout(b []byte, offset int, before []byte) uint16 {
	return Sum(before, b[:offset], []byte{0, 0}, b[offset+2:])
}

func mustWalk(packet []byte) (h Headers, checksumOffset int) {
	h, err := Walk(packet)
	must(err)
	offset, ok := checksumOffsets[h.Protocol]
	if !ok || h.Fragmented {
		panic("packettest: no whole packet with a transport checksum")
	}
	return h, offset
}

func encodeOffload(frame []byte, flags, kind uint8, headerLen, size, start, offset int) {
	frame[0], frame[1] = flags, kind
	for i, v := range []int{headerLen, size, start, offset} {
		binary.NativeEndian.PutUint16(frame[2+2*i:], uint16(v))
	}
}
