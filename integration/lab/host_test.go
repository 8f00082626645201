package lab_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lvsd/lvsd/integration/lab"
	"github.com/lvsd/lvsd/integration/labtest"
)

func namespaceOf(path string) string {
	target, err := os.Readlink(path)
	if err != nil {
		return err.Error()
	}
	return target
}

func TestDo(t *testing.T) {
	labtest.CheckLeaks(t)
	a, b := newHost(t), newHost(t)
	home, inA, inB := namespaceOf("/proc/self/ns/net"), namespaceOf(a.Path()), namespaceOf(b.Path())
	if home == inA || home == inB || inA == inB || !strings.HasPrefix(inA, "net:[") {
		t.Fatalf("namespaces: ours %s, hosts' %s and %s", home, inA, inB)
	}
	const here = "/proc/thread-self/ns/net"
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			err := a.Do(func() error {
				if got := namespaceOf(here); got != inA {
					t.Errorf("inside: %s, want %s", got, inA)
				}
				runtime.Gosched()
				err := b.Do(func() error {
					if got := namespaceOf(here); got != inB {
						t.Errorf("inside of the other: %s, want %s", got, inB)
					}
					return io.ErrNoProgress
				})
				if got := namespaceOf(here); got != inA {
					t.Errorf("back: %s, want %s", got, inA)
				}
				return err
			})
			if err != io.ErrNoProgress {
				t.Errorf("error %v", err)
			}
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			if got := namespaceOf(here); got != home {
				t.Errorf("outside: %s, want %s", got, home)
			}
			if got := namespaceOf("/proc/self/ns/net"); got != home {
				t.Errorf("the process: %s, want %s", got, home)
			}
		})
	}
	wg.Wait()
}

// TestDoGoexit ends the goroutine inside Do, as t.FailNow would.
func TestDoGoexit(t *testing.T) {
	labtest.CheckLeaks(t)
	h := newHost(t)
	ended, survived := make(chan struct{}), false
	go func() {
		defer close(ended)
		_ = h.Do(func() error { runtime.Goexit(); return nil })
		survived = true
	}()
	<-ended
	if survived {
		t.Error("Do returned")
	}
}

func TestClosedHost(t *testing.T) {
	labtest.CheckLeaks(t)
	h := newHost(t)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	_, sysctl := h.Sysctl("net.ipv4.ip_forward")
	_, listen := h.Listen("tcp", ":0")
	_, dial := h.Dial(t.Context(), "tcp", "127.0.0.1:1")
	_, counters := h.Counters()
	_, ping := h.Ping(t.Context(), netip.MustParseAddr("127.0.0.1"))
	for name, err := range map[string]error{
		"Do": h.Do(func() error { t.Error("Do ran it"); return nil }), "Sysctl": sysctl, "Listen": listen, "Dial": dial,
		"Counters": counters, "Ping": ping, "Start": h.Command(t.Context(), "true").Start(),
		"Connect": lab.Connect(newHost(t), "a", h, "b", 0), "SetOffload": h.SetOffload("lo", true),
	} {
		if !errors.Is(err, lab.ErrClosed) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if err := h.Close(); err != nil {
		t.Errorf("Close again: %v", err)
	}
}

// TestTeardown sees that the kernel has destroyed the namespaces, by links that end in them.
func TestTeardown(t *testing.T) {
	labtest.CheckLeaks(t)
	witness := newHost(t)
	n := labtest.New(t, lab.Options{Clients: 2, ClientRouter: true})
	ctx := withTimeout(t)
	for i, h := range n.Hosts() {
		if err := lab.Connect(witness, fmt.Sprint("to", i), h, "witness", 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range n.Servers {
		serve(t, s)
		if _, err := echo(ctx, n.Clients[0], "tcp", netip.AddrPortFrom(s.IPv4, 7000), "hello\n"); err != nil {
			t.Error(err)
		}
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	wantOnlyLoopback(t, witness)
}

func wantOnlyLoopback(t *testing.T, h *lab.Host) {
	t.Helper()
	labtest.Poll(t, 20*time.Second, func() error {
		links, err := h.Netlink().LinkList()
		if err == nil && len(links) != 1 {
			err = fmt.Errorf("%d links besides lo", len(links)-1)
		}
		return err
	})
}

// TestHalfWay fails when all hosts and a part of the links are made: the smallest MTU of a veth is 68.
func TestHalfWay(t *testing.T) {
	labtest.CheckLeaks(t)
	labtest.NeedLab(t)
	n, err := lab.New(lab.Options{MTU: lab.MTU{Servers: 67}})
	if n != nil || !errors.Is(err, unix.EINVAL) || !strings.Contains(fmt.Sprint(err), "MTU 67") {
		t.Errorf("network %v, error %v", n, err)
	}
}

func TestSysctl(t *testing.T) {
	a, b := newHost(t), newHost(t)
	if err := lab.Connect(a, "with.dot", b, "b", 0); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"net.ipv4.ip_forward", "net/ipv4/conf/with.dot/proxy_arp"} {
		before, err := a.Sysctl(name)
		if err != nil || before != "0" {
			t.Errorf("%s is %q, %v", name, before, err)
		}
		if err := a.SetSysctl(name, "1"); err != nil {
			t.Error(err)
		}
		if after, err := a.Sysctl(name); err != nil || after != "1" {
			t.Errorf("%s is %q, %v", name, after, err)
		}
	}
	if other, err := b.Sysctl("net.ipv4.ip_forward"); err != nil || other != "0" {
		t.Errorf("another host's: %q, %v", other, err)
	}
	if err := a.SetSysctl("net.ipv4.no_such", "1"); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "net.ipv4.no_such") {
		t.Errorf("an unknown name: %v", err)
	}
}

// TestSetOffload looks at what a sender leaves to the receiver: with offloads off, no packet exceeds the MTU.
func TestSetOffload(t *testing.T) {
	n := labtest.New(t, lab.Options{Servers: 1})
	c, s := n.Clients[0], n.Servers[0]
	if _, err := s.ServeHTTP(":80"); err != nil {
		t.Fatal(err)
	}
	for _, on := range []bool{false, true, false} {
		if err := n.SetOffload(on); err != nil {
			t.Fatal(err)
		}
		for host, links := range map[*lab.Host][]string{c: {"eth0"}, n.Director: {"dc", "dr"}, s: {"eth0"}} {
			for _, link := range links {
				features, err := host.Offloads(link)
				if err != nil || len(features) < 5 {
					t.Fatalf("features of %s of %s: %v, %v", link, host.Name, features, err)
				}
				for name, got := range features {
					if got != on {
						t.Errorf("%s of %s of %s is %t", name, link, host.Name, got)
					}
				}
			}
		}
		before := linkStatistics(t, n.Director, "dr")
		if _, err := get(withTimeout(t), c, "http://10.0.2.11/bytes/5000000"); err != nil {
			t.Fatal(err)
		}
		after := linkStatistics(t, n.Director, "dr")
		average := (after.RxBytes - before.RxBytes) / (after.RxPackets - before.RxPackets)
		if whole := average > 1514; whole != on {
			t.Errorf("offload %t: the average packet from the server has %d bytes", on, average)
		}
	}
	if err := c.SetOffload("eth7", false); err == nil || !strings.Contains(err.Error(), "eth7") {
		t.Errorf("an unknown link: %v", err)
	}
}

func linkStatistics(t *testing.T, h *lab.Host, name string) netlink.LinkStatistics {
	t.Helper()
	link, err := h.Link(name)
	if err != nil {
		t.Fatal(err)
	}
	return *link.Attrs().Statistics
}

// TestCounters sends datagrams with a wrong checksum.
func TestCounters(t *testing.T) {
	h := newHost(t)
	if _, err := h.ServeUDPEcho(":7000"); err != nil {
		t.Fatal(err)
	}
	before, err := h.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if wrong := before.ChecksumErrors(); len(wrong) != 0 {
		t.Errorf("a new host has checksum errors: %s", wrong)
	}
	datagram := []byte{0x10, 0, 0x1b, 0x58, 0, 9, 0xba, 0xad, 'x'} // from port 4096 to 7000
	for _, raw := range []struct{ network, to string }{{"ip4:17", "127.0.0.1"}, {"ip6:17", "::1"}} {
		if raw.to == "::1" && !hasIPv6(t, h) {
			continue
		}
		c, err := h.ListenPacket(raw.network, raw.to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range 3 {
			if _, err := c.WriteTo(datagram, c.LocalAddr()); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := "UdpInCsumErrors=3"
	if hasIPv6(t, h) {
		want = "Udp6InCsumErrors=3 UdpInCsumErrors=3"
	}
	labtest.Poll(t, 10*time.Second, func() error {
		after, err := h.Counters()
		if got := after.Since(before).ChecksumErrors().String(); err == nil && got != want {
			err = fmt.Errorf("checksum errors %q, want %q", got, want)
		}
		return err
	})
	after, err := h.Counters()
	if err != nil || after.Get("UdpInCsumErrors") != 3 || after.Get("TcpRetransSegs") != 0 || after.Get("TcpExtTCPTimeouts") != 0 {
		t.Errorf("%v, %s", err, after)
	}
	if got := after.Get("IcmpMsgInType13"); got != 0 {
		t.Errorf("a type of message that nobody sent: %d", got)
	}
	defer func() {
		if recover() == nil {
			t.Error("a name that no kernel has was taken for 0")
		}
	}()
	after.Get("UdpInChecksumErrors")
}

func TestDialNeedsDigits(t *testing.T) {
	h := newHost(t)
	if c, err := h.Dial(t.Context(), "tcp", "server1:80"); err == nil || !strings.Contains(err.Error(), "server1:80") {
		t.Errorf("%v, %v", c, err)
	}
}

// TestPath enters a namespace by a program that knows nothing of the lab.
func TestPath(t *testing.T) {
	labtest.Need(t, "nsenter", "readlink")
	h := newHost(t)
	out, err := exec.Command("nsenter", "--net="+h.Path(), "readlink", "/proc/self/ns/net").CombinedOutput()
	if got, want := strings.TrimSpace(string(out)), namespaceOf(h.Path()); err != nil || got != want {
		t.Errorf("%s: in %q, %v; want %s", h.Path(), got, err, want)
	}
}

// TestWaitUp gives up on a link whose other end is down.
func TestWaitUp(t *testing.T) {
	a, b := newHost(t), newHost(t)
	if err := lab.Connect(a, "a", b, "b", 0); err != nil {
		t.Fatal(err)
	}
	if err := a.WaitUp(withTimeout(t)); err != nil {
		t.Error(err)
	}
	if err := b.SetDown("b"); err != nil {
		t.Fatal(err)
	}
	labtest.Poll(t, 10*time.Second, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := a.WaitUp(ctx); !errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("with the other end down: %v", err)
		}
		return nil
	})
}

func BenchmarkNew(b *testing.B) {
	labtest.NeedLab(b)
	for b.Loop() {
		n, err := lab.New(lab.Options{})
		if err != nil {
			b.Fatal(err)
		}
		n.Close()
	}
}

func BenchmarkDo(b *testing.B) {
	labtest.NeedLab(b)
	h, err := lab.NewHost("alone")
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	for b.Loop() {
		if err := h.Do(func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
