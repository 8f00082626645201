package packettest_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/lvsd/lvsd/stack/packettest"
)

func headers() []packettest.IP {
	v4, v6 := packettest.Between("172.16.0.1", "10.0.0.1"), packettest.Between("fd01::1", "fd00::1")
	options, extensions := v4, v6
	options.Options = []byte{1, 7, 7, 4, 0, 0, 0, 0}
	extensions.Extensions = []packettest.Extension{
		packettest.Pad(packettest.HopByHop, 1), packettest.Pad(packettest.DestinationOptions, 33),
	}
	return []packettest.IP{v4, v6, options, extensions}
}

func frames(h packettest.IP) [][]byte {
	data := bytes.Repeat([]byte("0123456789abcde"), 200)
	return [][]byte{
		h.TCP(layers.TCP{SrcPort: 1000, DstPort: 80, PSH: true, ACK: true, FIN: true, CWR: true}, data),
		h.UDP(1000, 80, data),
		h.Echo(1, 2, data[:99]),
	}
}

// What was built is sound, and a changed bit anywhere but in the fields that nothing covers is not.
func TestVerify(t *testing.T) {
	for i, h := range headers() {
		for j, frame := range frames(h) {
			packet := frame[packettest.OffloadLen:]
			if err := packettest.Verify(packet); err != nil {
				t.Fatalf("%d/%d: %v", i, j, err)
			}
			if !bytes.Equal(packettest.Seal(packet), packet) {
				t.Errorf("%d/%d: gopacket and the reference compute different checksums", i, j)
			}
			transport, err := packettest.Walk(packet)
			if err != nil {
				t.Fatal(err)
			}
			for at := transport.Transport; at < min(len(packet), 120); at++ {
				packet[at] ^= 4
				if packettest.Verify(packet) == nil {
					t.Errorf("%d/%d: byte %d is wrong, and nobody has noticed", i, j, at)
				}
				packet[at] ^= 4
			}
			if packettest.Verify(packet[:len(packet)-1]) == nil {
				t.Errorf("%d/%d: a byte is missing, and nobody has noticed", i, j)
			}
		}
	}
}

func TestSend(t *testing.T) {
	for i, h := range headers() {
		for j, frame := range frames(h) {
			whole := frame[packettest.OffloadLen:]
			packets, err := packettest.Send(packettest.Partial(frame))
			if err != nil || len(packets) != 1 || !bytes.Equal(packets[0], whole) {
				t.Errorf("%d/%d: partial checksum: %v, %d packets", i, j, err, len(packets))
			}
			if j == 2 {
				continue // no super-packets of echoes
			}
			packets, err = packettest.Send(packettest.Super(frame, 1400))
			if err != nil || len(packets) != 3 {
				t.Fatalf("%d/%d: super-packet: %v, %d packets", i, j, err, len(packets))
			}
			size := 0
			for n, p := range packets {
				packettest.Check(t, p)
				l, err := packettest.Walk(p)
				if err != nil {
					t.Fatal(err)
				}
				segment := p[l.Transport:]
				if j == 1 {
					size += len(segment) - 8
					continue
				}
				if seq := binary.BigEndian.Uint32(segment[4:]); int(seq) != size {
					t.Errorf("%d/%d: segment %d has sequence number %d, want %d", i, j, n, seq, size)
				}
				if flags, want := segment[13], []uint8{0x90, 0x10, 0x19}[n]; flags != want {
					t.Errorf("%d/%d: segment %d has flags %#02x, want %#02x", i, j, n, flags, want)
				}
				size += len(segment) - 20
			}
			if size != 3000 {
				t.Errorf("%d/%d: %d bytes of data, want 3000", i, j, size)
			}
		}
	}
}

// These frames were written to a tun device of Linux 6.18, which said EINVAL to each of them and to none of TestSend.
func TestRefused(t *testing.T) {
	h := headers()[0]
	tcp, udp, echo := frames(h)[0], frames(h)[1], frames(h)[2]
	offload := func(frame []byte, flags, kind uint8, fields ...uint16) []byte {
		frame = packettest.Partial(frame)
		frame[0], frame[1] = flags, kind
		for i, v := range fields {
			binary.NativeEndian.PutUint16(frame[2+2*i:], v)
		}
		return frame
	}
	for name, frame := range map[string][]byte{
		"hdr_len behind the packet":      offload(udp, 0, 0, 60000, 0, 0, 0),
		"checksum behind the packet":     offload(tcp, 1, 0, 0, 0, 4000, 16),
		"the ECN bit alone":              offload(tcp, 1, 0x80, 0, 1000, 20, 16),
		"the ECN bit of UDP":             offload(udp, 1, 0x85, 28, 1000, 20, 6),
		"UDP without a partial checksum": offload(udp, 0, 5, 28, 1000, 0, 0),
		"segments of 0 bytes":            offload(tcp, 1, 1, 40, 0, 20, 16),
		"segments of 65535 bytes":        offload(tcp, 1, 1, 40, 0xffff, 20, 16),
		"an echo as TCP":                 offload(echo, 1, 1, 0, 1000, 20, 2),
		"TCP over IPv6 in IPv4":          offload(tcp, 1, 4, 40, 1000, 20, 16),
		"an unknown kind":                offload(tcp, 1, 9, 40, 1000, 20, 16),
	} {
		if packettest.Refused(frame) == nil {
			t.Errorf("not refused: %s", name)
		}
	}
}

func TestReassemble(t *testing.T) {
	for i, h := range headers() {
		for j, frame := range frames(h) {
			for _, size := range []int{272, 552, 1 << 15} {
				t.Run(fmt.Sprint(i, j, size), func(t *testing.T) {
					var packets [][]byte
					for _, f := range packettest.Fragments(frame, 0, size) {
						packets = append([][]byte{f[packettest.OffloadLen:]}, packets...) // last first
					}
					whole, err := packettest.Reassemble(packets)
					if err != nil || !bytes.Equal(whole, frame[packettest.OffloadLen:]) {
						t.Error("not what it was:", err)
					}
					if len(packets) > 1 {
						if _, err := packettest.Reassemble(packets[1:]); err == nil {
							t.Error("a fragment is missing, and nobody has noticed")
						}
					}
				})
			}
		}
	}
}
