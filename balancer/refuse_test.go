package balancer

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/lvsd/lvsd/stack"
)

// What nobody wants: ipvs.md 5.4 and 5.5, answered as the host behind IPVS would.

func TestNoConnection(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.script(`
			c1 -> vip RST           => drop stray_reset
			c1 -> vip RST+ACK       => drop stray_reset
			c1 -> vip SYN+RST       => drop stray_reset
			c1 -> vip ACK           => vip -> c1 RST ttl=65      # the way out costs one
			c1 -> vip FIN           => vip -> c1 RST+ACK
			c1 -> vip FIN+ACK       => vip -> c1 RST
			c1 -> vip NONE          => vip -> c1 RST+ACK
			c1 -> vip PSH           => vip -> c1 RST+ACK
			c1 -> closed RST        => drop stray_reset
			c1 -> closed SYN        => closed -> c1 RST+ACK
			c1 -> closed ACK        => closed -> c1 RST
			conn c1 -> vip none
		`)
		if n, _ := r.ConnCount(); n != 0 {
			r.Errorf("there are %d connections", n)
		}
	}, "tcp4", "tcp6")
}

// TestResetNumbers is RFC 9293 section 3.10.7.1: the reset is believable.
func TestResetNumbers(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		for _, c := range []struct {
			packet   string
			seq, ack uint32
		}{
			{"c1 -> closed SYN seq=4294967295", 0, 0},
			{"c1 -> closed SYN seq=100", 0, 101},
			{"c1 -> vip FIN seq=100", 0, 106}, // and five bytes
			{"c1 -> vip NONE seq=100", 0, 105},
			{"c1 -> vip ACK seq=100 ack=77", 77, 0},
			{"c1 -> vip SYN+RST", 0, 0}, // none at all
		} {
			out := r.forward(r.book.frame(r, c.packet))
			if strings.Contains(c.packet, "RST") {
				if len(out) != 0 {
					r.Errorf("%s is answered", c.packet)
				}
				continue
			}
			tcp := out[0][stack.OffloadLen+r.book.parse(r, c.packet).ipLen():]
			if seq, ack := binary.BigEndian.Uint32(tcp[4:]), binary.BigEndian.Uint32(tcp[8:]); seq != c.seq || ack != c.ack {
				r.Errorf("%s is answered by seq %d ack %d, want %d %d", c.packet, seq, ack, c.seq, c.ack)
			}
		}
	}, "tcp4", "tcp6")
}

func TestNoService(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.script(`
			c1 -> closed UDP        => vip -> c1 unreachable-port {c1 -> closed UDP} ttl=65
			c1 -> closed UDP len=1400   => vip -> c1 unreachable-port {c1 -> closed UDP}
		`)
	}, "udp4", "udp6")
	everyNetwork(t, func(r *rig) { // of the other protocol
		if r.service.Protocol == TCP {
			r.script(`c1 -> vip UDP => vip -> c1 unreachable-port {c1 -> vip UDP}`)
		} else {
			r.script(`c1 -> vip SYN => vip -> c1 RST+ACK`)
		}
	})
}

// TestErrorsAreNotTooLong: RFC 1812 allows 576 bytes in IPv4, RFC 4443 1280 in IPv6.
func TestErrorsAreNotTooLong(t *testing.T) {
	for network, most := range map[string]int{"udp4": 576, "udp6": 1280} {
		r := newRig(t, network)
		r.script(fmt.Sprintf(`
			c1 -> closed UDP len=1400               => vip -> c1 unreachable-port {c1 -> closed UDP} len=%d
			c1 -> closed UDP len=60000 gso=1400     => vip -> c1 unreachable-port {c1 -> closed UDP} len=%d
		`, most, most))
	}
}

// TestNoServer: a service without a server that may be picked says port unreachable, for TCP too.
func TestNoServer(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		what := map[Protocol]string{TCP: "SYN", UDP: "UDP"}[r.service.Protocol]
		script := strings.ReplaceAll(`
			c1 -> vip WHAT => vip -> c1 unreachable-port {c1 -> vip WHAT} ttl=65
			conn c1 -> vip none
		`, "WHAT", what)
		r.setServers()
		r.script(script)
		r.setServers("rs1:0", "rs2:0")
		r.script(script)
		if got := r.Status(); got.Total.Conns != 0 || got.Answers["port_unreachable"] != 2 {
			r.Errorf("connections %d, answers %v", got.Total.Conns, got.Answers)
		}
	})
}

// TestFTPData: a client with source port 20 is never scheduled.
func TestFTPData(t *testing.T) {
	everyNetwork(t, func(r *rig) { r.script(`ftp -> vip SYN => vip -> ftp RST+ACK`) }, "tcp4", "tcp6")
	everyNetwork(t, func(r *rig) {
		r.script(`ftp -> vip UDP => vip -> ftp unreachable-port {ftp -> vip UDP}`)
	}, "udp4", "udp6")
}

func TestSloppyTCP(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.setServers("rs1", "rs2", "rs3")
		r.script(`
			tune sloppy_tcp 1
			c1 -> vip ACK       => c1 -> rs1 ACK
			conn c1 -> vip ESTABLISHED 15m0s
			counts rs1 1/0
			c2 -> vip FIN       => c2 -> rs2 FIN
			conn c2 -> vip CLOSE 10s
			counts rs2 0/1
			c3 -> vip NONE      => c3 -> rs3 NONE
			conn c3 -> vip CLOSE 10s
			c1-again -> vip RST         => drop stray_reset
			c1-again -> vip ACK+RST     => drop stray_reset
			ftp -> vip ACK      => vip -> ftp RST
			tune sloppy_tcp 0
			c1-again -> vip ACK => vip -> c1-again RST
			c1 -> vip ACK       => c1 -> rs1 ACK
		`)
	}, "tcp4", "tcp6")
}

func TestTableFull(t *testing.T) {
	for _, network := range networks {
		t.Run(network, func(t *testing.T) {
			r := newRigWith(t, network, Options{MaxConnections: 2})
			what := map[Protocol]string{TCP: "SYN", UDP: "UDP"}[r.service.Protocol]
			r.script(strings.ReplaceAll(`
				c1 -> vip WHAT => c1 -> rs1 WHAT
				c2 -> vip WHAT => c2 -> rs1 WHAT
				c3 -> vip WHAT => drop connection_table_full
				c3 -> vip WHAT => drop connection_table_full
				c1 -> vip WHAT => c1 -> rs1 WHAT
				wait 5m
				expire
				c3 -> vip WHAT => c3 -> rs1 WHAT
			`, "WHAT", what))
			if got := r.Status().Total.Conns; got != 3 {
				r.Errorf("%d connections are counted, want 3", got)
			}
		})
	}
}

// TestForeignPackets are none of ours: they are sent on as they came, with the hop given back that the way in has cost.
func TestForeignPackets(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		for _, packet := range []string{
			"rs1 -> other ACK", "rs1 -> other SYN", "rs1 -> other RST", "rs1 -> other UDP", "rs1 -> other UDP partial",
			"rs1 -> other ACK len=60000 gso=1400", "other -> rs1 SYN", "rs1 -> other PING", "rs1 -> other PONG",
			"rs1 -> other protocol=47", "rs1 -> other icmp=13", "router -> rs1 too-big=1300 {rs1 -> other ACK}",
			"rs1 -> other UDP badsum", "rs1 -> c1 ACK",
		} {
			in := r.book.frame(r, packet)
			want := slices.Clone(in)
			out := r.forward(in)
			if len(out) != 1 {
				r.Errorf("%s: %d frames came out", packet, len(out))
				continue
			}
			if got := ttlOf(out[0]); got != 63 {
				r.Errorf("%s: TTL %d, want 63", packet, got)
			}
			lowerTTL(out[0])
			if !slices.Equal(out[0], want) {
				r.Errorf("%s was changed\nfrom % x\nto   % x", packet, want, out[0])
			}
		}
		if got := r.Status(); got.Frames.Passed != 14 || got.Frames.Out != 14 || got.Connections != 0 {
			r.Errorf("counted: %+v", got.Frames)
		}
		r.script(`rs1 -> other UDP ttl=255 => rs1 -> other UDP ttl=255`)
	})
}

// lowerTTL does what a router does.
func lowerTTL(frame []byte) {
	packet := frame[stack.OffloadLen:]
	if packet[0]>>4 == 6 {
		packet[7]--
		return
	}
	packet[8]--
	sum := uint32(binary.BigEndian.Uint16(packet[10:])) + 1<<8
	binary.BigEndian.PutUint16(packet[10:], uint16(sum+sum>>16))
}

// TestOwnedPrefixes: what is routed into the director is answered or dropped, never sent on.
func TestOwnedPrefixes(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.script(`c1 -> owned SYN => c1 -> owned SYN`)
		r.own()
		r.script(`
			c1 -> owned SYN         => owned -> c1 RST+ACK
			c1 -> owned ACK         => owned -> c1 RST
			c1 -> owned RST         => drop stray_reset
			c1 -> owned UDP         => owned -> c1 unreachable-port {c1 -> owned UDP}
			c1 -> owned PING        => owned -> c1 PONG
			c1 -> owned PONG        => drop unwanted
			c1 -> owned protocol=47 => owned -> c1 unreachable-protocol {c1 -> owned protocol=47}
			c1 -> owned too-big=1300 {owned -> c1 ACK}  => drop icmp_unrelated
			c1 -> other SYN         => c1 -> other SYN
		`)
		r.SetEnvironment(Environment{})
		r.script(`c1 -> owned SYN => c1 -> owned SYN`)
	}, "tcp4", "udp6")
}

func TestOwnedSingleAddresses(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		owned := r.end("owned").Addr()
		r.SetEnvironment(Environment{Owned: []netip.Prefix{netip.PrefixFrom(owned, owned.BitLen())}})
		next := owned.Next().String()
		r.script(`
			c1 -> owned PING        => owned -> c1 PONG
			c1 -> ` + next + ` PING => c1 -> ` + next + ` PING
		`)
	}, "tcp4", "tcp6")
}

// TestEcho is ipvs.md 5.2, step 2: the host behind IPVS answers pings of a VIP.
func TestEcho(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.script(`
			c1 -> vip PING                  => vip -> c1 PONG ttl=65
			c1 -> vip PING len=1400 df      => vip -> c1 PONG len=1400
			c1 -> vip PING ttl=1            => vip -> c1 PONG ttl=65
			rs1 -> c1 PING                  => rs1 -> c1 PING
		`)
		if got := r.Status().Answers["echo_reply"]; got != 3 {
			r.Errorf("%d echo replies are counted", got)
		}
	}, "tcp4", "tcp6")
}

func TestOtherProtocols(t *testing.T) {
	r := newRig(t, "tcp4")
	r.script(`
		c1 -> vip protocol=47   => vip -> c1 unreachable-protocol {c1 -> vip protocol=47}
		c1 -> vip protocol=132  => vip -> c1 unreachable-protocol {c1 -> vip protocol=132}
		c1 -> vip protocol=2    => vip -> c1 unreachable-protocol {c1 -> vip protocol=2}
		c1 -> vip icmp=13       => drop unwanted
		c1 -> vip icmp=5        => drop unwanted
		c1 -> vip icmp=12       => drop unwanted
		c1 -> vip PONG          => drop unwanted
	`)
	r = newRig(t, "tcp6")
	r.script(`
		c1 -> vip protocol=47   => vip -> c1 unreachable-protocol {c1 -> vip protocol=47}
		c1 -> vip icmp=135      => drop unwanted
		c1 -> vip PONG          => drop unwanted
	`)
}
