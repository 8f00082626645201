package tun

import (
	"bytes"

	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lvsd/lvsd/tun/nstest"
)

// reader returns a function that waits for a packet to come out of a tun device.
func (b *bed) reader(device *os.File) func(what string, ok func(gopacket.Packet) bool) {
	b.t.Helper()
	check(b.t, unix.SetNonblock(int(device.Fd()), true))
	return func(what string, ok func(gopacket.Packet) bool) {
		b.t.Helper()
		eventually(b.t, func() error {
			buf := make([]byte, 1<<16)
			for {
				n, err := unix.Read(int(device.Fd()), buf)
				if err != nil {
					return fmt.Errorf("%s did not come out of the device: %w", what, err)
				}
				if ok(decode(buf[:n])) {
					return nil
				}
			}
		})
	}
}

func decode(packet []byte) gopacket.Packet {
	first := gopacket.Decoder(layers.LayerTypeIPv4)
	if packet[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	return gopacket.NewPacket(bytes.Clone(packet), first, gopacket.Default)
}

// udpFrom returns a condition on the source and destination of a UDP packet.
func udpFrom(src, dst string) func(gopacket.Packet) bool {
	return func(p gopacket.Packet) bool {
		l := p.NetworkLayer()
		return l != nil && p.Layer(layers.LayerTypeUDP) != nil && l.NetworkFlow().Src().String() == src && l.NetworkFlow().Dst().String() == dst
	}
}

// sendUDP sends a datagram from a namespace, from an address of its own.
func sendUDP(t *testing.T, ns *nstest.NS, src, dst string) {
	t.Helper()
	ns.Do(func() {
		conn := must(net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(src)}, &net.UDPAddr{IP: net.ParseIP(dst), Port: 7000}))
		defer conn.Close()
		_, err := conn.Write([]byte("hello"))
		check(t, err)
	})
}

// listen returns a function that waits for a datagram from an address.
func listen(t *testing.T, ns *nstest.NS) func(from string) {
	t.Helper()
	var conn *net.UDPConn
	ns.Do(func() { conn = must(net.ListenUDP("udp", &net.UDPAddr{Port: 7000})) })
	t.Cleanup(func() { conn.Close() })
	return func(from string) {
		t.Helper()
		check(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
		for {
			_, addr, err := conn.ReadFromUDPAddrPort(make([]byte, 100))
			if err != nil {
				t.Fatalf("no datagram from %s: %v", from, err)
			}
			if addr.Addr().Unmap().String() == from {
				return
			}
		}
	}
}

// TestTraffic sends packets through what the wiring made.
func TestTraffic(t *testing.T) {
	for _, c := range []struct {
		family                         string
		client, server, other, vip, at string // other is behind the same interface as the server; at is in the client's subnet
		uplink                         netlink.Route
	}{
		{"IPv4", "10.0.1.2", "10.0.2.2", "10.0.2.4", "10.96.0.10", "10.0.1.100", netlink.Route{Dst: cidr("0.0.0.0/0"), Gw: net.ParseIP("10.0.2.4")}},
		{"IPv6", "fd00:1::2", "fd00:2::2", "fd00:2::4", "fd00:96::10", "fd00:1::100", netlink.Route{Dst: cidr("::/0"), Gw: net.ParseIP("fd00:2::4")}},
	} {
		t.Run(c.family, func(t *testing.T) {
			b := newBed(t)
			out := b.reader(b.device(testDevice))
			atClient := listen(t, b.client)
			w := b.wiring(WiringConfig{})
			target := Target{VIPs: addrs(c.vip, c.at), RIPs: addrs(c.server)}
			b.apply(w, target)

			sendUDP(t, b.client, c.client, c.vip)
			out("a packet for a VIP", udpFrom(c.client, c.vip))
			sendUDP(t, b.client, c.client, c.at)
			out("a packet for a VIP in the client's subnet", udpFrom(c.client, c.at))
			sendUDP(t, b.server, c.server, c.client)
			out("a reply", udpFrom(c.server, c.client))
			sendUDP(t, b.server, c.other, c.client)
			out("a packet of another host behind dr", udpFrom(c.other, c.client))

			// With a default route by dr, only the real server's packets go into the device, and ICMP errors.
			addRoute(t, b.director, c.uplink)
			b.apply(w, target)
			sendUDP(t, b.server, c.server, c.client)
			out("a reply under narrow rules", udpFrom(c.server, c.client))
			sendUDP(t, b.server, c.other, c.client)
			atClient(c.other)
			b.server.Do(func() {
				network, message := "ip4:icmp", []byte{3, 1, 0, 0, 0, 0, 0, 0, 0x45} // host unreachable
				if c.family == "IPv6" {
					network, message = "ip6:ipv6-icmp", []byte{1, 3, 0, 0, 0, 0, 0, 0, 0x60}
				}
				conn := must(net.DialIP(network, &net.IPAddr{IP: net.ParseIP(c.other)}, &net.IPAddr{IP: net.ParseIP(c.client)}))
				defer conn.Close()
				_, err := conn.Write(message)
				check(t, err)
			})
			out("an ICMP error of a router", func(p gopacket.Packet) bool {
				return p.Layer(layers.LayerTypeICMPv4) != nil || p.Layer(layers.LayerTypeICMPv6) != nil && p.NetworkLayer().NetworkFlow().Src().String() == c.other
			})
		})
	}
}

// TestNeighboursAreVerified has a client verify what it knows of a VIP in its subnet, over and over. Neither the first
// packet nor the verification may fail.
func TestNeighboursAreVerified(t *testing.T) {
	b := newBed(t)
	out := b.reader(b.device(testDevice))
	w := b.wiring(WiringConfig{})
	b.apply(w, both)
	var index int
	b.client.Do(func() { index = linkByName(t, "c").Attrs().Index })
	state := func(addr string) (state int) {
		b.client.Do(func() {
			for _, n := range must(netlink.NeighList(index, netlink.FAMILY_ALL)) {
				if n.IP.Equal(net.ParseIP(addr)) {
					state = n.State
				}
			}
		})
		return state
	}
	for _, c := range []struct{ client, vip string }{{"10.0.1.2", "10.0.1.100"}, {"fd00:1::2", "fd00:1::100"}} {
		sendUDP(t, b.client, c.client, c.vip)
		out("the first packet", udpFrom(c.client, c.vip))
		for range 2 {
			b.client.Do(func() {
				check(t, netlink.NeighSet(&netlink.Neigh{LinkIndex: index, IP: net.ParseIP(c.vip), State: netlink.NUD_PROBE,
					HardwareAddr: b.hardware("dc")}))
			})
			eventually(t, func() error {
				switch s := state(c.vip); s {
				case netlink.NUD_REACHABLE:
					return nil
				case netlink.NUD_FAILED:
					t.Fatalf("%s failed", c.vip)
				default:
					return fmt.Errorf("%s is in state %#x", c.vip, s)
				}
				return nil
			})
		}
	}
}

func (b *bed) hardware(name string) (addr net.HardwareAddr) {
	b.t.Helper()
	b.director.Do(func() { addr = linkByName(b.t, name).Attrs().HardwareAddr })
	return addr
}

// TestAnnounce has a client that knows a VIP at another place.
func TestAnnounce(t *testing.T) {
	b := newBed(t)
	b.device(testDevice)
	elsewhere := must(net.ParseMAC("02:00:00:00:00:99"))
	var index int
	var capture int
	b.client.Do(func() {
		index = linkByName(t, "c").Attrs().Index
		for _, vip := range []string{"10.0.1.100", "fd00:1::100"} {
			check(t, netlink.NeighAdd(&netlink.Neigh{LinkIndex: index, IP: net.ParseIP(vip), HardwareAddr: elsewhere, State: netlink.NUD_STALE}))
		}
		const everything = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL&0xff<<8
		capture = must(unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, everything))
		check(t, unix.Bind(capture, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: index}))
	})
	defer unix.Close(capture)
	w := b.wiring(WiringConfig{})
	b.apply(w, both)

	here := b.hardware("dc")
	eventually(t, func() error {
		var known []string
		b.client.Do(func() {
			for _, n := range must(netlink.NeighList(index, netlink.FAMILY_ALL)) {
				if bytes.Equal(n.HardwareAddr, here) {
					known = append(known, n.IP.String())
				}
			}
		})
		for _, vip := range []string{"10.0.1.100", "fd00:1::100"} {
			if !slices.Contains(known, vip) {
				return fmt.Errorf("%s is still known elsewhere", vip)
			}
		}
		return nil
	})

	var arp *layers.ARP
	var na *layers.ICMPv6NeighborAdvertisement
	buf := make([]byte, 2000)
	for arp == nil || na == nil {
		n, err := unix.Read(capture, buf)
		if err != nil {
			t.Fatalf("the announcements were not captured: %v", err)
		}
		p := gopacket.NewPacket(bytes.Clone(buf[:n]), layers.LayerTypeEthernet, gopacket.Default)
		if l, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP); ok && bytes.Equal(l.SourceProtAddress, []byte{10, 0, 1, 100}) {
			arp = l
			if dst := p.LinkLayer().LinkFlow().Dst().String(); dst != "ff:ff:ff:ff:ff:ff" {
				t.Errorf("ARP to %s", dst)
			}
		}
		if l, ok := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement); ok && l.TargetAddress.String() == "fd00:1::100" {
			na = l
			ip := p.NetworkLayer().(*layers.IPv6)
			if ip.HopLimit != 255 || ip.DstIP.String() != "ff02::1" || !ip.SrcIP.IsLinkLocalUnicast() {
				t.Errorf("advertisement from %s to %s with hop limit %d", ip.SrcIP, ip.DstIP, ip.HopLimit)
			}
			if dst := p.LinkLayer().LinkFlow().Dst().String(); dst != "33:33:00:00:00:01" {
				t.Errorf("advertisement to %s", dst)
			}
			check(t, p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6).SetNetworkLayerForChecksum(ip))
			if err, mismatches := p.VerifyChecksums(); err != nil || len(mismatches) > 0 {
				t.Errorf("advertisement: checksums: %v %v", err, mismatches)
			}
		}
	}
	if arp.Operation != layers.ARPRequest || !bytes.Equal(arp.SourceHwAddress, here) || !bytes.Equal(arp.DstProtAddress, arp.SourceProtAddress) {
		t.Errorf("ARP: %+v", arp)
	}
	if na.Flags != 0x20 || len(na.Options) != 1 || na.Options[0].Type != layers.ICMPv6OptTargetAddress || !bytes.Equal(na.Options[0].Data, here) {
		t.Errorf("advertisement: %+v", na)
	}
}

// TestSendLocal writes packets with the host's own source address into the device, under every reverse path filter, and
// compares what becomes of them with what the paths say.
func TestSendLocal(t *testing.T) {
	b := newBed(t)
	device := b.device(testDevice)
	w := b.wiring(WiringConfig{})
	b.apply(w, both)
	var server *net.UDPConn
	b.server.Do(func() { server = must(net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4zero, Port: 7000})) })
	defer server.Close()
	send := func(src, payload string) {
		ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.ParseIP(src), DstIP: net.ParseIP("10.0.2.2")}
		udp := &layers.UDP{SrcPort: 1, DstPort: 7000}
		check(t, udp.SetNetworkLayerForChecksum(ip))
		buf := gopacket.NewSerializeBuffer()
		check(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, udp, gopacket.Payload(payload)))
		_, err := device.Write(buf.Bytes())
		check(t, err)
	}
	round := 0
	for _, accept := range []string{"0", "1"} {
		for _, all := range []string{"0", "1", "2"} {
			for _, own := range []string{"0", "1", "2"} {
				b.sysctl("ipv4/conf/lvs0/accept_local", accept)
				b.sysctl("ipv4/conf/all/rp_filter", all)
				b.sysctl("ipv4/conf/lvs0/rp_filter", own)
				paths, err := w.Paths()
				check(t, err)
				// The second comes by the same way and is never refused, so what has not come before it does not come.
				round++
				local, last := fmt.Sprintf("local %d", round), fmt.Sprintf("last %d", round)
				send("10.0.1.1", local)
				send("10.0.1.2", last)
				got := false
				check(t, server.SetReadDeadline(time.Now().Add(20*time.Second)))
				for buf := make([]byte, 100); ; {
					n, _, err := server.ReadFrom(buf)
					check(t, err)
					got = got || string(buf[:n]) == local
					if string(buf[:n]) == last {
						break
					}
				}
				if got != paths.SendLocal {
					t.Errorf("accept_local %s, rp_filter %s for all and %s for the device: SendLocal is %t, but the packet came: %t", accept, all, own, paths.SendLocal, got)
				}
			}
		}
	}
}

// TestSurvey looks at a wired namespace and at one that is not.
func TestSurvey(t *testing.T) {
	b := newBed(t)
	survey := func(c WiringConfig) (s *Survey) {
		t.Helper()
		c.Device = testDevice
		b.director.Do(func() { s = must(SurveyNamespace(c, both)) })
		return s
	}
	before := b.state()
	s := survey(WiringConfig{})
	if !s.NetAdmin || !s.NetRaw || !s.IPv6 || !s.Sysctls || s.Forwarding4 || s.Forwarding6 || len(s.Directors) > 0 || len(s.VIPs) != 6 || len(s.Servers) != 4 {
		t.Errorf("survey: %+v", s)
	}
	for _, v := range s.VIPs {
		if v.Routed || v.Owner != "" {
			t.Errorf("VIP: %+v", v)
		}
	}
	same(t, "state", before, b.state())

	b.device(testDevice)
	w := b.wiring(WiringConfig{})
	b.apply(w, both)
	addAddresses(t, b.director, "dr", "10.96.0.11/32")
	addRoute(t, b.director, netlink.Route{Dst: cidr("0.0.0.0/0"), Gw: net.ParseIP("10.0.1.2")})
	b.sysctl("ipv4/conf/dr/rp_filter", "2")
	b.sysctl("ipv4/conf/dr/proxy_arp", "1")
	b.sysctl("ipv6/conf/dr/forwarding", "0")
	s = survey(WiringConfig{})
	if !slices.Equal(s.Directors, []int{100}) || !slices.Equal(s.Defaults, []DefaultRoute{{Interface: "dc", Gateway: netip.MustParseAddr("10.0.1.2")}}) {
		t.Errorf("directors %v, default routes %v", s.Directors, s.Defaults)
	}
	for _, v := range s.VIPs {
		switch text := v.Address.String(); {
		case text == "10.96.0.11" && (v.Owner != "dr" || v.Routed), text != "10.96.0.11" && !v.Routed,
			(text == "10.0.1.100" || text == "fd00:1::100") != slices.Contains(v.Subnets, "dc"):
			t.Errorf("VIP: %+v", v)
		}
	}
	for _, v := range s.Servers {
		if !v.Returns || v.Path.Interface != "dr" || v.Narrow != "" {
			t.Errorf("server: %+v", v)
		}
	}
	i := slices.IndexFunc(s.Interfaces, func(i InterfaceSurvey) bool { return i.Name == "dr" })
	if dr := s.Interfaces[i]; dr.RPFilter != 2 || !dr.ProxyARP || dr.Forwarding6 || !dr.Forwarding4 || !dr.Up || !dr.Running || dr.MTU != 1500 {
		t.Errorf("interface: %+v", dr)
	}
	for _, want := range []string{"ip address del 10.96.0.11/32 dev dr", "net.ipv4.conf.dr.proxy_arp=0", "net.ipv6.conf.dr.forwarding=1"} {
		if !slices.ContainsFunc(s.Remarks, func(r Remark) bool { return bytes.Contains([]byte(r.Remedy), []byte(want)) }) {
			t.Errorf("no remark says %q: %v", want, s.Remarks)
		}
	}
	check(t, w.Close())

	// An operator who wires by hand hears what is missing.
	manual := b.wiring(WiringConfig{Manual: true})
	_, err := manual.Apply(both)
	check(t, err)
	s = survey(WiringConfig{Manual: true})
	missing := 0
	for _, r := range s.Remarks {
		if bytes.Contains([]byte(r.Problem), []byte("not routed into lvs0")) {
			missing++
		}
	}
	if missing != len(both.VIPs)+len(both.RIPs) {
		t.Errorf("%d remarks of %v", missing, s.Remarks)
	}
	if _, err := SurveyNamespace(WiringConfig{}, both); err == nil {
		t.Error("a survey for no device was accepted")
	}
}
