package stack

import "encoding/binary"

// OffloadLen is the length of the virtio_net_hdr in front of every packet, in bytes. The header is written in the
// machine's own byte order (dataplane.md section 4).
const OffloadLen = 10

// Offload is a view of a virtio_net_hdr.
type Offload []byte

// Flags of a virtio_net_hdr.
const (
	OffloadNeedsChecksum = 1 // the transport checksum is partial
	OffloadDataValid     = 2 // the transport checksum has been verified
)

// Kinds of super-packets.
const (
	SegmentNone  = 0
	SegmentTCPv4 = 1
	SegmentTCPv6 = 4
	SegmentUDP   = 5

	segmentECN = 0x80 // set beside a TCP kind when the first segment carries CWR
)

func (o Offload) Flags() uint8 { return o[0] }

// Segmentation returns the kind of super-packet, without the ECN bit.
func (o Offload) Segmentation() uint8    { return o[1] &^ segmentECN }
func (o Offload) HeaderLen() uint16      { return binary.NativeEndian.Uint16(o[2:]) }
func (o Offload) SegmentSize() uint16    { return binary.NativeEndian.Uint16(o[4:]) }
func (o Offload) ChecksumStart() uint16  { return binary.NativeEndian.Uint16(o[6:]) }
func (o Offload) ChecksumOffset() uint16 { return binary.NativeEndian.Uint16(o[8:]) }

// Encode writes a header. start is counted from the first byte of the packet and offset from start.
func (o Offload) Encode(flags, segmentation uint8, headerLen, segmentSize, start, offset uint16) {
	o[0], o[1] = flags, segmentation
	binary.NativeEndian.PutUint16(o[2:], headerLen)
	binary.NativeEndian.PutUint16(o[4:], segmentSize)
	binary.NativeEndian.PutUint16(o[6:], start)
	binary.NativeEndian.PutUint16(o[8:], offset)
}

// Clear makes o the header of a packet that needs nothing done.
func (o Offload) Clear() { clear(o[:OffloadLen]) }
