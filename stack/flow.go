package stack

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// IP protocol numbers.
const (
	ProtocolICMP   = 1
	ProtocolTCP    = 6
	ProtocolUDP    = 17
	ProtocolICMPv6 = 58
)

// Addr is an IPv4 or IPv6 address in 16 pointer-free bytes that compare and hash quickly. An IPv4 address is kept in its
// IPv4-mapped form (RFC 4291 section 2.5.5.2). The zero Addr is the IPv6 address "::".
type Addr struct{ hi, lo uint64 }

const mapped = 0xffff << 32

func addr4(v uint32) Addr { return Addr{0, mapped | uint64(v)} }

// AddrFrom4 returns the IPv4 address whose big-endian value is v.
func AddrFrom4(v uint32) Addr { return addr4(v) }

// AddrFrom16 returns the address of 16 bytes in network order.
func AddrFrom16(b [16]byte) Addr { return addr16(b[:]) }

func addr16(b []byte) Addr {
	return Addr{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:16])}
}

// AddrFrom returns a without its zone. The zero netip.Addr becomes "::".
func AddrFrom(a netip.Addr) Addr {
	if !a.IsValid() {
		return Addr{}
	}
	b := a.As16()
	return addr16(b[:])
}

// Is4 tells whether a is an IPv4 address.
func (a Addr) Is4() bool { return a.hi == 0 && a.lo>>32 == 0xffff }

// V4 returns the big-endian value of an IPv4 address.
func (a Addr) V4() uint32 { return uint32(a.lo) }

// Words returns the address as two big-endian words.
func (a Addr) Words() (hi, lo uint64) { return a.hi, a.lo }

// As16 returns the address as 16 bytes in network order.
func (a Addr) As16() (b [16]byte) {
	binary.BigEndian.PutUint64(b[:8], a.hi)
	binary.BigEndian.PutUint64(b[8:], a.lo)
	return b
}

// Netip returns the address as a netip.Addr, IPv4 as IPv4.
func (a Addr) Netip() netip.Addr { return netip.AddrFrom16(a.As16()).Unmap() }

func (a Addr) String() string { return a.Netip().String() }

// sum returns the one's complement sum of the address's 16-bit words as they stand in a header of its family.
func (a Addr) sum() uint16 {
	if a.Is4() {
		return fold(a.lo & 0xffffffff)
	}
	return fold(a.hi>>32 + a.hi&0xffffffff + a.lo>>32 + a.lo&0xffffffff)
}

// fold adds up the 16-bit words of v with end-around carry.
func fold(v uint64) uint16 {
	v = v>>32 + v&0xffffffff
	v = v>>16 + v&0xffff
	v = v>>16 + v&0xffff
	return uint16(v>>16 + v&0xffff)
}

// Flow names one direction of a conversation: who sends to whom. Ports are 0 for protocols without ports and for
// fragments that carry none.
type Flow struct {
	Src, Dst         Addr
	SrcPort, DstPort uint16
	Protocol         uint8
}

// Reverse returns the flow of the answers.
func (f Flow) Reverse() Flow {
	return Flow{f.Dst, f.Src, f.DstPort, f.SrcPort, f.Protocol}
}

func (f Flow) String() string {
	return fmt.Sprintf("%s %s > %s", ProtocolName(f.Protocol),
		netip.AddrPortFrom(f.Src.Netip(), f.SrcPort), netip.AddrPortFrom(f.Dst.Netip(), f.DstPort))
}

// ProtocolName returns the name of an IP protocol in lower case, or its number.
func ProtocolName(p uint8) string {
	switch p {
	case ProtocolTCP:
		return "tcp"
	case ProtocolUDP:
		return "udp"
	case ProtocolICMP:
		return "icmp"
	case ProtocolICMPv6:
		return "icmpv6"
	}
	return fmt.Sprint(p)
}
