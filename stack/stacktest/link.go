package stacktest

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/lvsd/lvsd/stack/packettest"
)

const (
	offloadLen = packettest.OffloadLen
	maxPacket  = 1<<16 - 1

	// Of a virtio_net_hdr.
	needsChecksum = 1
	segmentTCPv4  = 1
	segmentTCPv6  = 4
)

// link is a host's network card. It is gVisor's channel endpoint for all but sending.
type link struct {
	*channel.Endpoint
	tso  bool
	send func(frame []byte)
}

var _ stack.GSOEndpoint = (*link)(nil)

func newLink(mtu int, tso bool, send func(frame []byte)) *link {
	return &link{channel.New(0, uint32(mtu), ""), tso, send}
}

func (l *link) SupportedGSO() stack.SupportedGSO {
	if l.tso {
		return stack.HostGSOSupported
	}
	return stack.GSONotSupported
}

func (l *link) GSOMaxSize() uint32 { return maxPacket }

func (l *link) WritePackets(packets stack.PacketBufferList) (int, tcpip.Error) {
	for _, p := range packets.AsSlice() {
		l.send(l.frame(p))
	}
	return packets.Len(), nil
}

// frame copies a packet that the host sends into a frame.
func (l *link) frame(p *stack.PacketBuffer) []byte {
	frame := make([]byte, offloadLen, offloadLen+p.Size())
	for _, part := range p.AsSlices() {
		frame = append(frame, part...)
	}
	switch gso := &p.GSOOptions; {
	case gso.Type != stack.GSONone && gso.NeedsCsum:
		frame[0] = needsChecksum
		binary.NativeEndian.PutUint16(frame[6:], gso.L3HdrLen)
		binary.NativeEndian.PutUint16(frame[8:], gso.CsumOffset)
		if data := p.Data().Size(); data > int(gso.MSS) {
			frame[1] = segmentTCPv4
			if gso.Type == stack.GSOTCPv6 {
				frame[1] = segmentTCPv6
			}
			binary.NativeEndian.PutUint16(frame[2:], uint16(p.Size()-data))
			binary.NativeEndian.PutUint16(frame[4:], gso.MSS)
		}
	case l.tso && checksummed(frame[offloadLen:]):
		frame = packettest.Partial(frame)
	}
	return frame
}

// checksummed tells whether a packet is one of those that Linux leaves the checksum of to the device.
func checksummed(packet []byte) bool {
	h, err := packettest.Walk(packet)
	if err != nil || h.Fragmented {
		return false
	}
	switch tcpip.TransportProtocolNumber(h.Protocol) {
	case header.TCPProtocolNumber:
		return true
	case header.UDPProtocolNumber:
		return header.UDP(packet[h.Transport:]).Checksum() != 0
	}
	return false
}

// receive hands a packet to the host's stack.
func (l *link) receive(packet []byte) {
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(packet)})
	defer p.DecRef()
	protocol := header.IPv4ProtocolNumber
	if packet[0]>>4 == header.IPv6Version {
		protocol = header.IPv6ProtocolNumber
	}
	l.InjectInbound(protocol, p)
}
