package stacktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lvsd/lvsd/stack/packettest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	client4, server4 = netip.MustParseAddr("10.0.1.1"), netip.MustParseAddr("10.0.2.11")
	client6, server6 = netip.MustParseAddr("fd00:1::1"), netip.MustParseAddr("fd00:2::11")
	router4, router6 = netip.MustParseAddr("10.0.1.254"), netip.MustParseAddr("fd00:1::fe")
	behind4, behind6 = netip.MustParseAddr("10.0.9.1"), netip.MustParseAddr("fd00:9::1")
	vip4, vip6       = netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::10")
)

// mirror is a device that gives every frame back, after change has had it.
type mirror struct {
	frames chan []byte
	change func(frame []byte) []byte
}

func newMirror(change func(frame []byte) []byte) *mirror {
	return &mirror{make(chan []byte, 4096), change}
}

func (m *mirror) Inject(frame []byte) bool {
	frame = bytes.Clone(frame)
	if m.change != nil {
		frame = m.change(frame)
	}
	select {
	case m.frames <- frame:
		return true
	default:
		return false
	}
}

func (m *mirror) Receive(ctx context.Context) ([]byte, error) {
	select {
	case frame := <-m.frames:
		return frame, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// rig is a client, which reaches the server directly, and a server, which reaches everybody by the device.
type rig struct {
	*Router
	client, server *Host
}

func newRig(t *testing.T, device Device, o Options, client, server HostOptions) *rig {
	t.Helper()
	o.Addresses, o.VIPs = []netip.Addr{router4, router6}, []netip.Addr{vip4, vip6}
	r := &rig{Router: NewRouter(device, o)}
	t.Cleanup(r.Close)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(r.Diagram(100))
		}
	})
	client.Name, client.Addresses = "client", []netip.Addr{client4, client6}
	server.Name, server.Addresses, server.Server = "server", []netip.Addr{server4, server6}, true
	var err error
	if r.client, err = r.AddHost(client); err != nil {
		t.Fatal(err)
	}
	if r.server, err = r.AddHost(server); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) sound(t *testing.T) {
	t.Helper()
	for _, err := range r.Violations() {
		t.Error(err)
	}
	for _, h := range []*Host{r.client, r.server} {
		if n := h.Refused(); n > 0 {
			t.Errorf("%s refused %d packets", h, n)
		}
	}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx, tick := within(t), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("never: " + what)
		}
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// echo serves one connection.
func echo(t *testing.T, l net.Listener) *sync.WaitGroup {
	var done sync.WaitGroup
	done.Go(func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		if _, err := io.Copy(c, c); err != nil {
			t.Error(err)
		}
	})
	return &done
}

func TestTCP(t *testing.T) {
	for _, tso := range []bool{false, true} {
		for _, to := range []netip.Addr{server4, server6} {
			for _, faults := range []Faults{{}, {Loss: 0.02, Duplication: 0.02, Reordering: 0.05, Delay: 100 * time.Microsecond}} {
				t.Run(fmt.Sprintf("tso %t, %s, %+v", tso, to, faults), func(t *testing.T) {
					r := newRig(t, newMirror(nil), Options{Faults: faults, Seed: 1}, HostOptions{TSO: tso}, HostOptions{TSO: tso})
					at := netip.AddrPortFrom(to, 80)
					l, err := r.server.ListenTCP(at)
					if err != nil {
						t.Fatal(err)
					}
					defer l.Close()
					served := echo(t, l)
					c, err := r.client.DialTCP(within(t), at)
					if err != nil {
						t.Fatal(err)
					}
					data := random(1 << 19)
					served.Go(func() {
						if _, err := c.Write(data); err != nil {
							t.Error(err)
						}
						c.(interface{ CloseWrite() error }).CloseWrite()
					})
					if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
						t.Errorf("%d bytes came back of %d, %v", len(got), len(data), err)
					}
					c.Close()
					served.Wait()
					r.sound(t)
					counts := r.Counts()
					if got := counts.ToDevice.Super > 0; got != tso {
						t.Errorf("super-packets: %+v", counts)
					}
					if got := counts.Lost > 0 && counts.Duplicated > 0 && counts.HeldBack > 0; got != (faults.Loss > 0) {
						t.Errorf("faults: %+v", counts)
					}
				})
			}
		}
	}
}

func TestRefusedConnection(t *testing.T) {
	r := newRig(t, newMirror(nil), Options{}, HostOptions{}, HostOptions{})
	for _, to := range []netip.Addr{server4, server6} {
		_, err := r.client.DialTCP(within(t), netip.AddrPortFrom(to, 1))
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("tcp %s: %v", to, err)
		}
		c, err := r.client.DialUDP(netip.AddrPort{}, netip.AddrPortFrom(to, 1))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("udp %s: %v", to, err)
		}
	}
	r.sound(t)
}

func TestUDPAndPing(t *testing.T) {
	for _, tso := range []bool{false, true} {
		r := newRig(t, newMirror(nil), Options{}, HostOptions{TSO: tso}, HostOptions{TSO: tso, LinkMTU: 1300})
		for _, to := range []netip.Addr{server4, server6} {
			sizes := []int{0, 1, 1200}
			if to.Is4() {
				sizes = append(sizes, 1472, 3000, 60000) // a router may cut fragments into smaller ones
			}
			s, err := r.server.ListenUDP(netip.AddrPortFrom(to, 53))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			c, err := r.client.DialUDP(netip.AddrPort{}, netip.AddrPortFrom(to, 53))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			for _, size := range sizes {
				data, buf := random(size), make([]byte, maxPacket)
				if _, err := c.Write(data); err != nil {
					t.Fatal(err)
				}
				s.SetReadDeadline(time.Now().Add(30 * time.Second))
				n, from, err := s.ReadFrom(buf)
				if err != nil || from.Addr() != r.client.Addr(to) || !bytes.Equal(buf[:n], data) {
					t.Fatalf("%d bytes to %s: %d from %s, %v", size, to, n, from, err)
				}
				if err := r.client.Ping(within(t), to, size); err != nil {
					t.Fatal(err)
				}
			}
			c.SetReadDeadline(time.Now().Add(-time.Second))
			if _, err := c.Read(nil); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
		}
		r.sound(t)
		if r.Counts().Fragmented == 0 {
			t.Error("nothing was cut up")
		}
	}
}

// TestHops sends a packet with few hops left over all of them.
func TestHops(t *testing.T) {
	for _, tt := range []struct {
		src, dst, router, behind netip.Addr
	}{{client4, server4, router4, behind4}, {client6, server6, router6, behind6}} {
		var toServer, toClient []byte
		r := newRig(t, newMirror(nil), Options{}, HostOptions{}, HostOptions{Behind: []netip.Addr{behind4, behind6}})
		l, err := r.server.ListenUDP(netip.AddrPortFrom(tt.dst, 53))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		for ttl, want := range map[uint8]string{1: tt.router.String(), 2: tt.behind.String(), 3: ""} {
			packet := packettest.IP{Src: tt.src, Dst: tt.dst, TTL: ttl}.UDP(4000, 53, []byte{ttl})
			r.client.Send(packet)
			if want == "" {
				buf := make([]byte, 10)
				l.SetReadDeadline(time.Now().Add(30 * time.Second))
				if _, _, err := l.ReadFrom(buf); err != nil || buf[0] != ttl {
					t.Errorf("ttl %d: %v", ttl, err)
				}
				continue
			}
			eventually(t, "an answer from "+want, func() bool {
				for _, e := range r.Events() {
					h, err := packettest.Walk(e.Packet)
					if err == nil && e.To == "client" && h.Src.String() == want && h.Dst == tt.src {
						toClient = e.Packet
						return true
					}
				}
				return false
			})
			if !bytes.Contains(toClient, append(tt.src.AsSlice(), tt.dst.AsSlice()...)) {
				t.Errorf("the error about ttl %d quotes nothing: %x", ttl, toClient)
			}
		}
		for _, e := range r.Events() {
			if h, err := packettest.Walk(e.Packet); err == nil && e.To == "server" && h.Dst == tt.dst {
				toServer = e.Packet
			}
		}
		if got := ttlOf(toServer); got != 1 {
			t.Errorf("the packet with 3 hops arrives with %d", got)
		}
		r.sound(t)
		if got := r.Counts().TimeExceeded; got != 2 {
			t.Errorf("%d answers", got)
		}
	}
}

func ttlOf(packet []byte) int {
	switch {
	case len(packet) < 20:
		return -1
	case packet[0]>>4 == 4:
		return int(packet[8])
	}
	return int(packet[7])
}

// TestPathMTU has a client learn the MTU of a link that it does not see, from the router in front of it.
func TestPathMTU(t *testing.T) {
	for _, tso := range []bool{false, true} {
		for _, to := range []netip.Addr{server4, server6} {
			r := newRig(t, newMirror(nil), Options{}, HostOptions{TSO: tso}, HostOptions{LinkMTU: 1300})
			at := netip.AddrPortFrom(to, 80)
			l, err := r.server.ListenTCP(at)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			served := echo(t, l)
			c, err := r.client.DialTCP(within(t), at)
			if err != nil {
				t.Fatal(err)
			}
			data := random(1 << 18)
			served.Go(func() {
				if _, err := c.Write(data); err != nil {
					t.Error(err)
				}
				c.(interface{ CloseWrite() error }).CloseWrite()
			})
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes came back of %d, %v", len(got), len(data), err)
			}
			c.Close()
			served.Wait()
			r.sound(t)
			if counts := r.Counts(); counts.TooBig == 0 || counts.Fragmented > 0 {
				t.Errorf("%+v", counts)
			}
		}
	}
}

// TestViolations has a device that spoils what goes through it.
func TestViolations(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(frame []byte) []byte
		want   string
	}{
		{"TCP checksum", func(f []byte) []byte { f[offloadLen+20+16] ^= 1; return f }, "is not sound reached client"},
		{"IPv4 checksum", func(f []byte) []byte { f[offloadLen+10] ^= 1; return f }, "wrong IPv4 header checksum"},
		{"offload header", func(f []byte) []byte { f[1] = 77; return f }, "Linux refuses"},
		{"cut", func(f []byte) []byte { return f[:offloadLen+10] }, "Linux refuses"},
		{"no segment size", func(f []byte) []byte { f[0], f[1] = 1, 1; return f }, "Linux refuses"},
		{"loop", func(f []byte) []byte { return readdress(f, 16, vip4) }, "into it again"},
		{"own name", func(f []byte) []byte { return readdress(f, 12, router4) }, "own name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, newMirror(tt.change), Options{}, HostOptions{}, HostOptions{})
			r.server.Send(packettest.Between("10.0.2.11", "10.0.1.1").Frame(6, tcpSegment()))
			eventually(t, tt.name, func() bool { return len(r.Violations()) > 0 })
			if got := r.Violations()[0].Error(); !strings.Contains(got, tt.want) {
				t.Errorf("%s, want %q", got, tt.want)
			}
		})
	}
}

// tcpSegment is a RST, which nobody answers, with the checksum that it has from server4 to client4.
func tcpSegment() []byte {
	segment := make([]byte, 20)
	segment[12], segment[13] = 5<<4, 4
	frame := packettest.Between("10.0.2.11", "10.0.1.1").Frame(6, segment)
	return packettest.Seal(frame[offloadLen:])[20:]
}

func readdress(frame []byte, at int, a netip.Addr) []byte {
	copy(frame[offloadLen+at:], a.AsSlice())
	return append(frame[:offloadLen:offloadLen], packettest.Seal(frame[offloadLen:])...)
}

func TestHostsAreDifferent(t *testing.T) {
	r := newRig(t, newMirror(nil), Options{}, HostOptions{}, HostOptions{})
	for _, a := range []netip.Addr{client4, vip6, router4} {
		if _, err := r.AddHost(HostOptions{Name: "other", Addresses: []netip.Addr{a}}); err == nil {
			t.Errorf("%s was given twice", a)
		}
	}
}

// TestClose ends what waits.
func TestClose(t *testing.T) {
	r := newRig(t, newMirror(nil), Options{Faults: Faults{Delay: time.Hour}}, HostOptions{}, HostOptions{})
	l, err := r.server.ListenTCP(netip.AddrPortFrom(server4, 80))
	if err != nil {
		t.Fatal(err)
	}
	u, err := r.server.ListenUDP(netip.AddrPortFrom(server4, 80))
	if err != nil {
		t.Fatal(err)
	}
	var waiting sync.WaitGroup
	waiting.Go(func() {
		if _, err := l.Accept(); err == nil {
			t.Error("accepted something")
		}
	})
	waiting.Go(func() {
		if _, _, err := u.ReadFrom(nil); err == nil {
			t.Error("read something")
		}
	})
	waiting.Go(func() {
		if _, err := r.client.DialTCP(within(t), netip.AddrPortFrom(server4, 80)); err == nil {
			t.Error("connected")
		}
	})
	r.Close()
	waiting.Wait()
}

func TestDiagram(t *testing.T) {
	r := newRig(t, newMirror(nil), Options{Faults: Faults{Loss: 1}}, HostOptions{TSO: true}, HostOptions{})
	super := packettest.Super(packettest.Between("10.0.1.1", "10.0.2.11").UDP(1, 2, make([]byte, 4000)), 1000)
	u, err := r.server.ListenUDP(netip.AddrPortFrom(server4, 2))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	r.client.Send(super)
	r.SetFaults(Faults{})
	r.client.Send(super)
	r.client.Send(packettest.Between("10.0.1.1", "10.9.9.9").Echo(1, 2, nil))
	eventually(t, "3 events", func() bool { return len(r.Events()) >= 3 })
	got := r.Diagram(3)
	for _, want := range []string{
		"sequenceDiagram\n",
		"client-xrouter: ", "udp 10.0.1.1:1 > 10.0.2.11:2, 4000 bytes, ttl 64 (lost)\n",
		"client->>server: ", "udp 10.0.1.1:1 > 10.0.2.11:2, 4000 bytes, ttl 63 (super-packet of 4028, cut at 1000)\n",
		"client-xrouter: ", "icmp 10.0.1.1 > 10.9.9.9 EchoRequest, ttl 64 (no route)\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestFragment(t *testing.T) {
	packet := packettest.IP{Src: client4, Dst: server4, ID: 7, Options: make([]byte, 8)}.UDP(1, 2, random(5000))[offloadLen:]
	var pieces [][]byte
	for _, first := range fragment(packet, 2000) {
		pieces = append(pieces, fragment(first, 600)...)
	}
	for _, p := range pieces {
		if err := packettest.Verify(p); err != nil || len(p) > 600 {
			t.Errorf("%d bytes: %v", len(p), err)
		}
	}
	rand.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
	if got, err := packettest.Reassemble(pieces); err != nil || !bytes.Equal(got, packet) {
		t.Errorf("of %d pieces: %v", len(pieces), err)
	}
	if got := fragment(packet, len(packet)); len(got) != 1 || &got[0][0] != &packet[0] {
		t.Error("what fits was touched")
	}
}
