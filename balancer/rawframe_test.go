package balancer

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/lvsd/lvsd/stack"
	"github.com/lvsd/lvsd/stack/packettest"
)

// rawFrame is the shortest frame of a TCP segment or UDP datagram, with its checksum left to the device. It is for tests
// that need millions of frames.
func rawFrame(protocol uint8, src, dst netip.AddrPort, flags uint8) []byte {
	ipLen, transportLen, field := 20, 20, uint16(16)
	if src.Addr().Is6() {
		ipLen = 40
	}
	if protocol == stack.ProtocolUDP {
		transportLen, field = 8, 6
	}
	frame := make([]byte, stack.OffloadLen+ipLen+transportLen, stack.MinFrameCap)
	stack.Offload(frame).Encode(stack.OffloadNeedsChecksum, 0, 0, 0, uint16(ipLen), field)
	ip, t := frame[stack.OffloadLen:], frame[stack.OffloadLen+ipLen:]
	addrs := append(src.Addr().AsSlice(), dst.Addr().AsSlice()...)
	if ipLen == 20 {
		ip[0], ip[8], ip[9] = 0x45, 62, protocol
		binary.BigEndian.PutUint16(ip[2:], uint16(ipLen+transportLen))
		copy(ip[12:], addrs)
		binary.BigEndian.PutUint16(ip[10:], ^packettest.Sum(ip[:20]))
	} else {
		ip[0], ip[6], ip[7] = 0x60, protocol, 62
		binary.BigEndian.PutUint16(ip[4:], uint16(transportLen))
		copy(ip[8:], addrs)
	}
	binary.BigEndian.PutUint16(t, src.Port())
	binary.BigEndian.PutUint16(t[2:], dst.Port())
	if protocol == stack.ProtocolTCP {
		t[12], t[13] = 5<<4, flags
	} else {
		binary.BigEndian.PutUint16(t[4:], uint16(transportLen))
	}
	binary.BigEndian.PutUint16(t[field:], packettest.Sum(addrs, []byte{0, protocol, 0, uint8(transportLen)}))
	return frame
}

func TestRawFramesAreSound(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		book := ends(v6)
		for protocol, want := range map[uint8]string{stack.ProtocolTCP: "c1 -> vip ACK", stack.ProtocolUDP: "c1 -> vip UDP"} {
			frame := rawFrame(protocol, book.end(t, "c1"), book.end(t, "vip"), stack.FlagACK)
			if got := book.read(t, slices.Clone(frame)); got != want {
				t.Errorf("%s is %s", want, got)
			}
		}
	}
}

// clientAddr is the i-th of many clients.
func clientAddr(i int, v6 bool) netip.AddrPort {
	port, n := uint16(1024+i%50000), i/50000+1
	if v6 {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 1, 14: byte(n >> 8), 15: byte(n)}), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 16, byte(n >> 8), byte(n)}), port)
}
