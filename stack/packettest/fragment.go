package packettest

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Fragments cuts the packet of a frame as a host does: into frames of at most size bytes of data, a multiple of 8, that
// carry the identification. The IPv6 fragment header goes behind the hop-by-hop and routing headers, ahead of all others.
func Fragments(frame []byte, id uint32, size int) (frames [][]byte) {
	if size <= 0 || size%8 != 0 {
		panic(fmt.Sprintf("packettest: fragments of %d bytes", size))
	}
	packet := frame[OffloadLen:]
	v4 := packet[0]>>4 == 4
	at, next := int(packet[0]&15)*4, 0 // where the data starts, and where it is said what it is
	if !v4 {
		at, next = 40, 6
		for e := packet[next]; e == HopByHop || e == Routing; e = packet[next] {
			next, at = at, at+8+8*int(packet[at+1])
		}
	}
	headers, data := packet[:at], packet[at:]
	for offset := 0; offset < len(data); offset += size {
		more, piece := 1, data[offset:]
		if len(piece) > size {
			piece = piece[:size]
		} else {
			more = 0
		}
		p := slices.Clone(headers)
		if v4 {
			binary.BigEndian.PutUint16(p[4:], uint16(id))
			binary.BigEndian.PutUint16(p[6:], binary.BigEndian.Uint16(p[6:])&0x8000|uint16(more<<13|offset/8))
		} else {
			h := binary.BigEndian.AppendUint16([]byte{p[next], 0}, uint16(offset|more))
			p[next] = Fragment
			p = append(p, binary.BigEndian.AppendUint32(h, id)...)
		}
		frames = append(frames, slices.Concat(make([]byte, OffloadLen), Seal(append(p, piece...))))
	}
	return frames
}

// Atomic returns the IPv6 frame as a fragment that is all of its datagram (RFC 6946).
func Atomic(frame []byte, id uint32) []byte {
	return Fragments(frame, id, 1<<16-8)[0]
}

// Reassemble puts the packets of fragments, in any order, together to the datagram that they are of. There must be
// nothing missing and nothing twice.
func Reassemble(packets [][]byte) ([]byte, error) {
	var headers, data []byte
	seen, length := 0, -1
	for _, packet := range packets {
		h, err := Walk(packet)
		if err != nil {
			return nil, err
		}
		dataAt := h.Transport
		if h.Src.Is6() {
			dataAt = h.fragmentHeader + 8
		}
		piece := packet[dataAt:]
		end := h.Offset + len(piece)
		data = append(data, make([]byte, max(0, end-len(data)))...)
		copy(data[h.Offset:], piece)
		seen += len(piece)
		if !h.More {
			length = end
		}
		if h.Offset > 0 {
			continue
		}
		if h.Src.Is4() {
			headers = slices.Clone(packet[:dataAt])
			headers[6], headers[7] = headers[6]&0xc0, 0
		} else {
			headers = slices.Clone(packet[:h.fragmentHeader])
			headers[h.fragmentNamed] = packet[h.fragmentHeader]
		}
	}
	if headers == nil || length != len(data) || seen != length {
		return nil, fmt.Errorf("%d bytes of fragments for a datagram of %d", seen, length)
	}
	return sealIP(append(headers, data...)), nil
}
