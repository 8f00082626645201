package tun

import (
	"bytes"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// announcer tells the hosts of a link that an address is here, so that those that knew it elsewhere look no further:
// by a gratuitous ARP request, or by an unsolicited neighbour advertisement (RFC 4861, 7.2.6). The kernel does that for
// its own addresses only. It takes CAP_NET_RAW, without which it does nothing.
type announcer struct {
	socket int
	err    error // why there is no socket
}

func openAnnouncer() *announcer {
	// Protocol 0: it only sends.
	socket, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return &announcer{socket: -1, err: fmt.Errorf("open a packet socket: %w", err)}
	}
	return &announcer{socket: socket}
}

func (a *announcer) close() {
	if a.socket >= 0 {
		unix.Close(a.socket)
		a.socket = -1
	}
}

// announce announces an address on a link. The source is for IPv6, and is the link's own address if it has one.
func (a *announcer) announce(addr netip.Addr, l *link, source netip.Addr) error {
	if a.err != nil {
		return a.err
	}
	if len(l.hardware) != header.EthernetAddressSize {
		return nil // not a kind of link that this is known for
	}
	packet, to, protocol := gratuitousARP(addr, l), bytes.Repeat([]byte{0xff}, 6), unix.ETH_P_ARP
	if addr.Is6() {
		if !source.IsValid() {
			source = addr
		}
		packet, to, protocol = neighbourAdvertisement(addr, l, source), []byte{0x33, 0x33, 0, 0, 0, 1}, unix.ETH_P_IPV6
	}
	dst := &unix.SockaddrLinklayer{Protocol: uint16(protocol>>8 | protocol&0xff<<8), Ifindex: l.index, Halen: header.EthernetAddressSize}
	copy(dst.Addr[:], to)
	if err := unix.Sendto(a.socket, packet, 0, dst); err != nil {
		return fmt.Errorf("send on %s: %w", l.name, err)
	}
	return nil
}

// gratuitousARP returns a request of an address for itself.
func gratuitousARP(addr netip.Addr, l *link) []byte {
	packet := make(header.ARP, header.ARPSize)
	packet.SetIPv4OverEthernet()
	packet.SetOp(header.ARPRequest)
	copy(packet.HardwareAddressSender(), l.hardware)
	copy(packet.ProtocolAddressSender(), addr.AsSlice())
	copy(packet.ProtocolAddressTarget(), addr.AsSlice())
	return packet
}

// neighbourAdvertisement returns one to all nodes. It asks them to forget any other hardware address.
func neighbourAdvertisement(addr netip.Addr, l *link, source netip.Addr) []byte {
	option := header.NDPOptionsSerializer{header.NDPTargetLinkLayerAddressOption(l.hardware)}
	size := header.ICMPv6NeighborAdvertMinimumSize + option.Length()
	packet := make([]byte, header.IPv6MinimumSize+size)
	header.IPv6(packet).Encode(&header.IPv6Fields{
		PayloadLength:     uint16(size),
		TransportProtocol: header.ICMPv6ProtocolNumber,
		HopLimit:          header.NDPHopLimit,
		SrcAddr:           tcpip.AddrFrom16(source.As16()),
		DstAddr:           header.IPv6AllNodesMulticastAddress,
	})
	icmp := header.ICMPv6(packet[header.IPv6MinimumSize:])
	icmp.SetType(header.ICMPv6NeighborAdvert)
	advertisement := header.NDPNeighborAdvert(icmp.MessageBody())
	advertisement.SetTargetAddress(tcpip.AddrFrom16(addr.As16()))
	advertisement.SetOverrideFlag(true)
	advertisement.Options().Serialize(option)
	icmp.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{
		Header: icmp,
		Src:    tcpip.AddrFrom16(source.As16()),
		Dst:    header.IPv6AllNodesMulticastAddress,
	}))
	return packet
}
