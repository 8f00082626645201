package balancer

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/lvsd/lvsd/stack"
	"github.com/lvsd/lvsd/stack/packettest"
)

// Every frame that comes out is read by gopacket, checksums verified; see wire_test.go.
func TestTranslationTCP(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.script(`
			c1 -> vip SYN ttl=9                => c1 -> rs1 SYN ttl=10
			rs1 -> c1 SYN+ACK ttl=1            => vip -> c1 SYN+ACK ttl=2
			c1 -> vip ACK ttl=255              => c1 -> rs1 ACK ttl=255
			c1 -> vip ACK+PSH partial          => c1 -> rs1 PSH+ACK partial
			rs1 -> c1 ACK partial              => vip -> c1 ACK partial
			c1 -> vip ACK len=1399             => c1 -> rs1 ACK len=1399
			c1 -> vip ACK len=60001 gso=1360   => c1 -> rs1 ACK len=60001 partial gso=1360
			rs1 -> c1 ACK len=60001 gso=1360   => vip -> c1 ACK len=60001 partial gso=1360
		`)
	}, "tcp4", "tcp6")
}

func TestTranslationUDP(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.script(`
			c1 -> vip UDP ttl=9                => c1 -> rs1 UDP ttl=10
			rs1 -> c1 UDP ttl=1                => vip -> c1 UDP ttl=2
			c1 -> vip UDP partial              => c1 -> rs1 UDP partial
			rs1 -> c1 UDP partial              => vip -> c1 UDP partial
			c1 -> vip UDP len=1401             => c1 -> rs1 UDP len=1401
			c1 -> vip UDP len=60001 gso=1400   => c1 -> rs1 UDP len=60001 partial gso=1400
			rs1 -> c1 UDP len=60001 gso=1400   => vip -> c1 UDP len=60001 partial gso=1400
		`)
	}, "udp4", "udp6")
}

// TestUDPWithoutChecksum is ipvs.md 5.10: translation gives a datagram the checksum it lacked.
func TestUDPWithoutChecksum(t *testing.T) {
	r := newRig(t, "udp4")
	r.script(`
		c1 -> vip UDP nosum   => c1 -> rs1 UDP partial
		rs1 -> c1 UDP nosum   => vip -> c1 UDP partial
	`)
}

// TestWrongChecksumStaysWrong is ipvs.md 5.2: checksums are not looked at, and a wrong one is translated to one that is
// wrong by as much, for its receiver to refuse.
func TestWrongChecksumStaysWrong(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		text := map[Protocol]string{TCP: "c1 -> vip SYN", UDP: "c1 -> vip UDP"}[r.service.Protocol]
		out := r.forward(r.book.frame(r, text+" badsum"))
		if len(out) != 1 {
			r.Fatalf("%d frames came out", len(out))
		}
		p := r.book.parse(r, text)
		field := out[0][stack.OffloadLen+p.ipLen()+p.checksumOffset():]
		was := binary.BigEndian.Uint16(field)
		undo := binary.BigEndian.AppendUint16(nil, ^uint16(badsumError))
		binary.BigEndian.PutUint16(field, packettest.Sum(field[:2], undo))
		r.book.read(r, out[0])
		binary.BigEndian.PutUint16(field, was)
		if packettest.Verify(out[0][stack.OffloadLen:]) == nil {
			r.Error("a wrong checksum was corrected")
		}
	})
}

// TestLifeOfAConnection is the normal NAT life that ipvs.md 4.1 recorded from the kernel.
func TestLifeOfAConnection(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.script(`
			c1 -> vip SYN       => c1 -> rs1 SYN
			conn c1 -> vip SYN_RECV 1m0s
			counts rs1 1/0
			wait 1s
			conn c1 -> vip SYN_RECV 59s
			rs1 -> c1 SYN+ACK   => vip -> c1 SYN+ACK
			conn c1 -> vip SYN_RECV 1m0s
			c1 -> vip ACK       => c1 -> rs1 ACK
			conn c1 -> vip ESTABLISHED 15m0s
			wait 14m
			rs1 -> c1 ACK       => vip -> c1 ACK
			conn c1 -> vip ESTABLISHED 15m0s
			counts rs1 1/0
			c1 -> vip FIN+ACK   => c1 -> rs1 FIN+ACK
			conn c1 -> vip CLOSE_WAIT 1m0s
			counts rs1 0/1
			rs1 -> c1 FIN+ACK   => vip -> c1 FIN+ACK
			conn c1 -> vip TIME_WAIT 2m0s
			c1 -> vip ACK       => c1 -> rs1 ACK
			conn c1 -> vip TIME_WAIT 2m0s
			wait 1m59.996s
			conn c1 -> vip TIME_WAIT 4ms
			wait 4ms
			conn c1 -> vip none
			expire
			counts rs1 0/0
		`)
	}, "tcp4", "tcp6")
}

// TestResetsAndOddSegments are the other lines of ipvs.md 4.1.
func TestResetsAndOddSegments(t *testing.T) {
	for name, script := range map[string]string{
		"client resets a half-open connection": `
			c1 -> vip SYN       => c1 -> rs1 SYN
			c1 -> vip RST       => c1 -> rs1 RST
			conn c1 -> vip SYN_RECV 1m0s
		`,
		"server refuses": `
			c1 -> vip SYN       => c1 -> rs1 SYN
			rs1 -> c1 RST+ACK   => vip -> c1 RST+ACK
			conn c1 -> vip CLOSE 10s
			counts rs1 0/1
		`,
		"SYN on an established connection": `
			c1 -> vip SYN       => c1 -> rs1 SYN
			c1 -> vip ACK       => c1 -> rs1 ACK
			c1 -> vip SYN       => c1 -> rs1 SYN
			conn c1 -> vip ESTABLISHED 15m0s
		`,
		"client resets": `
			c1 -> vip SYN       => c1 -> rs1 SYN
			c1 -> vip ACK       => c1 -> rs1 ACK
			c1 -> vip RST       => c1 -> rs1 RST
			conn c1 -> vip CLOSE 10s
		`,
		"a segment without flags closes": `
			c1 -> vip SYN       => c1 -> rs1 SYN
			c1 -> vip ACK       => c1 -> rs1 ACK
			c1 -> vip PSH       => c1 -> rs1 PSH
			conn c1 -> vip CLOSE 10s
		`,
		"server closes first": `
			c1 -> vip SYN       => c1 -> rs1 SYN
			c1 -> vip ACK       => c1 -> rs1 ACK
			rs1 -> c1 FIN+ACK   => vip -> c1 FIN+ACK
			conn c1 -> vip FIN_WAIT 2m0s
			c1 -> vip ACK       => c1 -> rs1 ACK
			conn c1 -> vip FIN_WAIT 2m0s
			c1 -> vip FIN+ACK   => c1 -> rs1 FIN+ACK
			conn c1 -> vip TIME_WAIT 2m0s
		`,
		"SYN+ACK opens": `
			c1 -> vip SYN+ACK   => c1 -> rs1 SYN+ACK
			conn c1 -> vip SYN_RECV 1m0s
		`,
	} {
		t.Run(name, func(t *testing.T) { newRig(t, "tcp4").script(script) })
	}
}

// TestExpiry checks that a connection lives until the tick of its timeout and that a packet of either direction then no
// longer finds it, whether Expire has been called or not.
func TestExpiry(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.script(`
			c1 -> vip SYN   => c1 -> rs1 SYN
			c1 -> vip ACK   => c1 -> rs1 ACK
			wait 14m59.996s
			c1 -> vip ACK   => c1 -> rs1 ACK
			wait 14m59.996s
			rs1 -> c1 ACK   => vip -> c1 ACK
			wait 15m
			c1 -> vip ACK   => vip -> c1 RST
			conn c1 -> vip none
			c1 -> vip SYN   => c1 -> rs1 SYN
			wait 1m
			rs1 -> c1 SYN+ACK  => rs1 -> c1 SYN+ACK  # none of ours any more
			counts rs1 0/0
		`)
	}, "tcp4", "tcp6")
	everyNetwork(t, func(r *rig) {
		r.script(`
			c1 -> vip UDP   => c1 -> rs1 UDP
			conn c1 -> vip UDP 5m0s
			counts rs1 0/1
			wait 4m59.996s
			rs1 -> c1 UDP   => vip -> c1 UDP
			conn c1 -> vip UDP 5m0s
			wait 4m59.996s
			c1 -> vip UDP   => c1 -> rs1 UDP
			wait 5m
			rs1 -> c1 UDP   => rs1 -> c1 UDP
			conn c1 -> vip none
		`)
	}, "udp4", "udp6")
}

func TestExpireSweeps(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.script(`
			c1 -> vip SYN   => c1 -> rs1 SYN
			wait 30s
			c2 -> vip SYN   => c2 -> rs1 SYN
			wait 29.996s
			expire
			counts rs1 2/0
			wait 4ms
			expire
			counts rs1 1/0
			conn c1 -> vip none
			conn c2 -> vip SYN_RECV 30s
		`)
	}, "tcp4", "tcp6")
}

// TestTimeoutsAreAppliedFromTheNextPacketOn is ipvs.md 4.5.
func TestTimeoutsAreAppliedFromTheNextPacketOn(t *testing.T) {
	r := newRig(t, "tcp4")
	r.script(`
		c1 -> vip SYN       => c1 -> rs1 SYN
		c1 -> vip ACK       => c1 -> rs1 ACK
	`)
	r.apply(func(s *Spec) {
		s.Timeouts = Timeouts{TCP: 10 * time.Second, TCPFin: 20 * time.Second, UDP: 30 * time.Second}
	})
	r.script(`
		conn c1 -> vip ESTABLISHED 15m0s
		c1 -> vip ACK       => c1 -> rs1 ACK
		conn c1 -> vip ESTABLISHED 10s
		rs1 -> c1 FIN+ACK   => vip -> c1 FIN+ACK
		conn c1 -> vip FIN_WAIT 20s
	`)
	udp := newRig(t, "udp4")
	udp.apply(func(s *Spec) { s.Timeouts.UDP = 30 * time.Second })
	udp.script(`
		c1 -> vip UDP       => c1 -> rs1 UDP
		conn c1 -> vip UDP 30s
	`)
}

// TestClockWraps takes connections over the wrap of the tick, 198.8 days after the clock's start.
func TestClockWraps(t *testing.T) {
	r := newRig(t, "tcp4")
	r.now = tickLength<<32 - time.Minute
	r.script(`
		c1 -> vip SYN   => c1 -> rs1 SYN
		c1 -> vip ACK   => c1 -> rs1 ACK
		wait 14m59.996s
		conn c1 -> vip ESTABLISHED 4ms
		c1 -> vip ACK   => c1 -> rs1 ACK
		conn c1 -> vip ESTABLISHED 15m0s
		wait 15m
		conn c1 -> vip none
	`)
	r.apply(func(s *Spec) { s.Timeouts.TCP = MaxTimeout })
	r.script(`
		c1 -> vip SYN   => c1 -> rs1 SYN
		c1 -> vip ACK   => c1 -> rs1 ACK
		wait 743h59m59.996s
		conn c1 -> vip ESTABLISHED 4ms
	`)
}

// TestWorkersWithClocksApart is a packet that another worker has dated into the future.
func TestWorkersWithClocksApart(t *testing.T) {
	r := newRig(t, "tcp4")
	r.script(`c1 -> vip SYN => c1 -> rs1 SYN`)
	r.now -= 10 * tickLength
	r.script(`
		conn c1 -> vip SYN_RECV 1m0.04s
		c1 -> vip ACK   => c1 -> rs1 ACK
	`)
	r.Expire(r.now - time.Second)
	r.script(`counts rs1 1/0`)
}

// TestOneClientManyConnections tells connections apart by every part of their names.
func TestOneClientManyConnections(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		vip2 := r.service
		vip2.Address = r.end("vip2")
		r.setServers("rs1", "rs2", "rs3")
		r.apply(func(s *Spec) {
			vip2.Servers = []ServerSpec{{Address: r.end("rs1-other"), Weight: 1}}
			s.Services = append(s.Services, vip2)
		})
		what := map[Protocol]string{TCP: "SYN", UDP: "UDP"}[r.service.Protocol]
		for _, step := range [...][4]string{
			{"c1", "vip", "c1", "rs1"},
			{"c1-again", "vip", "c1-again", "rs2"},
			{"c1", "vip2", "c1", "rs1-other"},
			{"c2", "vip", "c2", "rs3"},
			{"c1", "vip", "c1", "rs1"},
			{"c2", "vip", "c2", "rs3"},
			{"rs1", "c1", "vip", "c1"},
			{"rs1-other", "c1", "vip2", "c1"},
			{"rs2", "c1-again", "vip", "c1-again"},
			{"rs2", "c1", "rs2", "c1"}, // of no connection
		} {
			r.script(step[0] + " -> " + step[1] + " " + what + " => " + step[2] + " -> " + step[3] + " " + what)
		}
	})
}

// TestProtocolsDoNotMix has the same addresses and ports in TCP and in UDP.
func TestProtocolsDoNotMix(t *testing.T) {
	r := newRig(t, "tcp4")
	r.apply(func(s *Spec) {
		udp := r.service
		udp.Protocol = UDP
		udp.Servers = []ServerSpec{{Address: r.end("rs2"), Weight: 1}}
		s.Services = append(s.Services, udp)
	})
	r.script(`
		c1 -> vip SYN   => c1 -> rs1 SYN
		c1 -> vip UDP   => c1 -> rs2 UDP
		rs1 -> c1 UDP   => rs1 -> c1 UDP
		rs2 -> c1 UDP   => vip -> c1 UDP
		rs1 -> c1 ACK   => vip -> c1 ACK
	`)
}

// TestHintIsOnlyAHint: whichever direction is looked up first, the same is found.
func TestHintIsOnlyAHint(t *testing.T) {
	for _, bits := range []uint64{0, 1<<64 - 1} {
		everyNetwork(t, func(r *rig) {
			s := r.snapshot.Load().clone()
			s.hint.bits = slices.Repeat([]uint64{bits}, len(s.hint.bits))
			r.snapshot.Store(s)
			r.about(r.connected(), `
				c1 -> vip WHAT      => c1 -> rs1 WHAT
				rs1 -> c1 WHAT      => vip -> c1 WHAT
				rs2 -> c1 WHAT      => rs2 -> c1 WHAT
				c1 -> other WHAT    => c1 -> other WHAT
			`)
		})
	}
}

// TestHintFindsAllVIPs: a VIP that the hint does not know would cost each of its packets a second look.
func TestHintFindsAllVIPs(t *testing.T) {
	vips := make(map[stack.Addr]struct{})
	for i := range uint32(5000) {
		vips[stack.AddrFrom4(0x0a000000+i)] = struct{}{}
		vips[stack.AddrFrom16([16]byte{0: 0xfd, 14: byte(i >> 8), 15: byte(i)})] = struct{}{}
	}
	hint := newVIPHint(vips)
	for a := range vips {
		if !hint.likely(a) {
			t.Fatalf("%s is a VIP", a)
		}
	}
	wrong := 0
	for i := range uint32(10_000) {
		if hint.likely(stack.AddrFrom4(0xac100000 + i*7)) {
			wrong++
		}
	}
	if wrong > 1000 {
		t.Errorf("%d of 10,000 clients are taken for VIPs", wrong)
	}
}
