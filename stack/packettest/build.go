// Package packettest builds frames as a tun device with IFF_VNET_HDR hands them out, and checks the ones it is given
// back. It is for tests. It shares no code with package stack, so that the two cannot be wrong together: gopacket writes
// and reads the headers, and a slow reference computes the checksums.
//
// A frame is a virtio_net_hdr of 10 bytes and an IP packet behind it; a packet is what is behind it. Functions return
// new memory and leave what they are given as it is. They panic where a test asks for something impossible.
package packettest

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// OffloadLen is the length of a virtio_net_hdr in bytes.
const OffloadLen = 10

// IP says what stands in the IP header of a packet. Src and Dst must be given, and are of one family; what is left zero
// is as an ordinary host would have it.
type IP struct {
	Src, Dst   netip.Addr
	TOS        uint8       // traffic class in IPv6
	TTL        uint8       // 64 if 0
	ID         uint16      // IPv4 only
	DF         bool        // IPv4 only
	Options    []byte      // IPv4 only; a multiple of 4 bytes, at most 40
	FlowLabel  uint32      // IPv6 only
	Extensions []Extension // IPv6 only, in the order of the wire
}

// Extension is an IPv6 extension header. Data is what follows its next header field and its length field; it is 6 bytes
// long, or 8 bytes longer for each unit of the length field.
type Extension struct {
	Type uint8
	Data []byte
}

// Numbers of the extension headers that RFC 8200 knows.
const (
	HopByHop           = 0
	Routing            = 43
	Fragment           = 44
	DestinationOptions = 60
)

// Pad returns an options header, HopByHop or DestinationOptions, of 8*units bytes full of padding.
func Pad(extension uint8, units int) Extension {
	data := make([]byte, 8*units-2)
	for left := data; len(left) > 0; { // PadN options (RFC 8200 section 4.2) of up to 255 bytes
		n := min(len(left), 255)
		if len(left)-n == 1 {
			n--
		}
		left[0], left[1] = 1, uint8(n-2)
		left = left[n:]
	}
	return Extension{extension, data}
}

// Between returns the header of a packet from src to dst.
func Between(src, dst string) IP {
	return IP{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst)}
}

// Frame returns the frame of a packet of any protocol, with an offload header that asks for nothing.
func (h IP) Frame(protocol uint8, payload []byte) []byte {
	ttl := h.TTL
	if ttl == 0 {
		ttl = 64
	}
	if h.Src.Is4() {
		ip := &layers.IPv4{
			Version: 4, TOS: h.TOS, TTL: ttl, Id: h.ID, Protocol: layers.IPProtocol(protocol),
			SrcIP: h.Src.AsSlice(), DstIP: h.Dst.AsSlice(), Padding: h.Options,
		}
		if h.DF {
			ip.Flags = layers.IPv4DontFragment
		}
		return frame(ip, payload)
	}
	next := protocol
	for _, e := range slices.Backward(h.Extensions) {
		payload = slices.Concat([]byte{next, uint8((len(e.Data) - 6) / 8)}, e.Data, payload)
		next = e.Type
	}
	return frame(&layers.IPv6{
		Version: 6, TrafficClass: h.TOS, FlowLabel: h.FlowLabel, HopLimit: ttl, NextHeader: layers.IPProtocol(next),
		SrcIP: h.Src.AsSlice(), DstIP: h.Dst.AsSlice(),
	}, payload)
}

// TCP returns the frame of a segment with a full checksum.
func (h IP) TCP(t layers.TCP, data []byte) []byte {
	must(t.SetNetworkLayerForChecksum(h.addresses()))
	return h.Frame(uint8(layers.IPProtocolTCP), serialize(&t, gopacket.Payload(data)))
}

// UDP returns the frame of a datagram with a full checksum.
func (h IP) UDP(srcPort, dstPort uint16, data []byte) []byte {
	u := layers.UDP{SrcPort: layers.UDPPort(srcPort), DstPort: layers.UDPPort(dstPort)}
	must(u.SetNetworkLayerForChecksum(h.addresses()))
	return h.Frame(uint8(layers.IPProtocolUDP), serialize(&u, gopacket.Payload(data)))
}

// ICMP returns the frame of an ICMP or ICMPv6 message. rest is the second word of its header.
func (h IP) ICMP(icmpType, code uint8, rest uint32, data []byte) []byte {
	data = slices.Concat(binary.BigEndian.AppendUint32(nil, rest), data)
	if h.Src.Is4() {
		c := layers.ICMPv4{
			TypeCode: layers.CreateICMPv4TypeCode(icmpType, code), Id: uint16(rest >> 16), Seq: uint16(rest),
		}
		return h.Frame(uint8(layers.IPProtocolICMPv4), serialize(&c, gopacket.Payload(data[4:])))
	}
	c := layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(icmpType, code)}
	must(c.SetNetworkLayerForChecksum(h.addresses()))
	return h.Frame(uint8(layers.IPProtocolICMPv6), serialize(&c, gopacket.Payload(data)))
}

// Echo returns the frame of an echo request.
func (h IP) Echo(id, seq uint16, data []byte) []byte {
	request := uint8(layers.ICMPv4TypeEchoRequest)
	if h.Src.Is6() {
		request = layers.ICMPv6TypeEchoRequest
	}
	return h.ICMP(request, 0, uint32(id)<<16|uint32(seq), data)
}

// addresses returns a layer with what a pseudo-header needs.
func (h IP) addresses() gopacket.NetworkLayer {
	if h.Src.Is4() {
		return &layers.IPv4{SrcIP: h.Src.AsSlice(), DstIP: h.Dst.AsSlice()}
	}
	return &layers.IPv6{SrcIP: h.Src.AsSlice(), DstIP: h.Dst.AsSlice()}
}

func frame(ip gopacket.SerializableLayer, payload []byte) []byte {
	return slices.Concat(make([]byte, OffloadLen), serialize(ip, gopacket.Payload(payload)))
}

func serialize(l ...gopacket.SerializableLayer) []byte {
	b := gopacket.NewSerializeBuffer()
	must(gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, l...))
	return b.Bytes()
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
