package lab_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/lvsd/lvsd/integration/lab"
	"github.com/lvsd/lvsd/integration/labtest"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func withTimeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// TestTopologies builds every kind of network and goes from each client to each server and back, by its addresses as
// they are drawn in the package's documentation.
func TestTopologies(t *testing.T) {
	type way struct{ there, back []string } // client1 to server1 and back: who answers on each hop
	const (
		client, client6 = "10.0.1.1", "fd00:1::1"
		server, server6 = "10.0.2.11", "fd00:2::11"
	)
	plain := way{[]string{"10.0.1.254", server}, []string{"10.0.2.254", client}}
	plain6 := way{[]string{"fd00:1::fe", server6}, []string{"fd00:2::fe", client6}}
	tests := []struct {
		name        string
		options     lab.Options
		ipv4, ipv6  way
		clientLinks []string
		serverLinks []string
	}{
		{"standard", lab.Options{}, plain, plain6, []string{"dc"}, []string{"dr"}},
		{"one server", lab.Options{Servers: 1}, plain, plain6, []string{"dc"}, []string{"dr"}},
		{"two clients", lab.Options{Clients: 2, Servers: 2}, plain, plain6, []string{"dc"}, []string{"dr"}},
		{"strict rp_filter", lab.Options{RPFilter: 1}, plain, plain6, []string{"dc"}, []string{"dr"}},
		{"point to point", lab.Options{Clients: 2, Servers: 2, PointToPoint: true, RPFilter: 1}, plain, plain6,
			[]string{"dc1", "dc2"}, []string{"dr1", "dr2"}},
		{"client router", lab.Options{ClientRouter: true, Clients: 2},
			way{[]string{"10.0.1.254", "10.0.3.254", server}, []string{"10.0.2.254", "10.0.3.1", client}},
			way{[]string{"fd00:1::fe", "fd00:3::fe", server6}, []string{"fd00:2::fe", "fd00:3::1", client6}},
			[]string{"dc"}, []string{"dr"}},
		{"server router", lab.Options{ServerRouter: true, RPFilter: 1},
			way{[]string{"10.0.1.254", "10.0.4.1", server}, []string{"10.0.2.254", "10.0.4.254", client}},
			way{[]string{"fd00:1::fe", "fd00:4::1", server6}, []string{"fd00:2::fe", "fd00:4::fe", client6}},
			[]string{"dc"}, []string{"dr"}},
		{"both routers", lab.Options{ClientRouter: true, ServerRouter: true, PointToPoint: true},
			way{[]string{"10.0.1.254", "10.0.3.254", "10.0.4.1", server}, []string{"10.0.2.254", "10.0.4.254", "10.0.3.1", client}},
			way{[]string{"fd00:1::fe", "fd00:3::fe", "fd00:4::1", server6}, []string{"fd00:2::fe", "fd00:4::fe", "fd00:3::1", client6}},
			[]string{"dc"}, []string{"dr"}},
		{"one network", lab.Options{OneNetwork: true, Clients: 2},
			way{[]string{"10.0.1.11"}, []string{"10.0.1.254", client}},
			way{[]string{"fd00:1::11"}, []string{"fd00:1::fe", client6}},
			[]string{"dc"}, []string{"dc"}},
		{"small MTUs", lab.Options{MTU: lab.MTU{Clients: 1400, Servers: 1300}}, plain, plain6, []string{"dc"}, []string{"dr"}},
		{"IPv4 only", lab.Options{NoIPv6: true}, plain, way{}, []string{"dc"}, []string{"dr"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := labtest.New(t, tt.options)
			ctx := withTimeout(t)
			if diff := cmp.Diff([][]string{tt.clientLinks, tt.serverLinks}, [][]string{n.ClientLinks, n.ServerLinks}); diff != "" {
				t.Errorf("the director's links (-want +got):\n%s", diff)
			}
			for _, s := range n.Servers {
				serve(t, s)
				for _, c := range n.Clients {
					for i, to := range s.Addresses() {
						reach(t, ctx, c, c.Addresses()[i], s, to)
					}
				}
			}
			c, s := n.Clients[0], n.Servers[0]
			wantWay(t, ctx, c, s.IPv4, tt.ipv4.there)
			wantWay(t, ctx, s, c.IPv4, tt.ipv4.back)
			if tt.ipv6.there == nil || !n.IPv6 {
				if n.IPv6 || n.VIP6.IsValid() || len(n.VIPs()) != 1 || len(s.Addresses()) != 1 {
					t.Errorf("IPv6 where there should be none: VIPs %v, addresses of %s %v", n.VIPs(), s.Name, s.Addresses())
				}
				return
			}
			wantWay(t, ctx, c, s.IPv6, tt.ipv6.there)
			wantWay(t, ctx, s, c.IPv6, tt.ipv6.back)
		})
	}
}

func serve(t *testing.T, h *lab.Host) {
	t.Helper()
	for _, start := range []func() (*lab.Service, error){
		func() (*lab.Service, error) { return h.ServeHTTP(":80") },
		func() (*lab.Service, error) { return h.ServeUDPEcho(":7000") },
		func() (*lab.Service, error) { return h.ServeTCPEcho(":7000") },
	} {
		if _, err := start(); err != nil {
			t.Fatal(err)
		}
	}
}

// reach uses every service of a server that serve started.
func reach(t *testing.T, ctx context.Context, client *lab.Host, from netip.Addr, server *lab.Host, to netip.Addr) {
	t.Helper()
	if _, err := client.Ping(ctx, to); err != nil {
		t.Error(err)
	}
	if body, err := get(ctx, client, "http://"+netip.AddrPortFrom(to, 80).String()); err != nil {
		t.Error(err)
	} else if want := fmt.Sprintf("%s %s", server.Name, netip.AddrPortFrom(from, 0)); !strings.HasPrefix(body, strings.TrimSuffix(want, "0")) {
		t.Errorf("HTTP from %s to %s: %q, want %q", client.Name, to, body, want)
	}
	for _, network := range []string{"tcp", "udp"} {
		e, err := echo(ctx, client, network, netip.AddrPortFrom(to, 7000), "hello\n")
		if err != nil {
			t.Error(err)
		} else if e.Server != server.Name || e.Client.Addr() != from || string(e.Data) != "hello\n" {
			t.Errorf("%s echo from %s to %s: %+v, want %s, %s, hello", network, client.Name, to, e, server.Name, from)
		}
	}
}

func get(ctx context.Context, h *lab.Host, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return "", err
	}
	resp, err := h.HTTPClient().Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// echo sends one datagram or line, and reads one answer.
func echo(ctx context.Context, h *lab.Host, network string, to netip.AddrPort, data string) (lab.Echo, error) {
	c, err := h.Dial(ctx, network, to.String())
	if err != nil {
		return lab.Echo{}, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if _, err := io.WriteString(c, data); err != nil {
		return lab.Echo{}, err
	}
	b := make([]byte, 1<<16)
	n, err := c.Read(b)
	if err != nil {
		return lab.Echo{}, err
	}
	return lab.ParseEcho(b[:n])
}

// wantWay goes a way by TTL twice, with echo requests and with datagrams to a closed port.
func wantWay(t *testing.T, ctx context.Context, from *lab.Host, to netip.Addr, want []string) {
	t.Helper()
	check := func(hops []lab.Hop, err error) {
		t.Helper()
		var got []string
		for _, h := range hops {
			got = append(got, h.From.String())
		}
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("way from %s to %s (-want +got): %v\n%s", from.Name, to, err, diff)
		}
	}
	check(from.TracerouteICMP(ctx, to, 6))
	check(from.TracerouteUDP(ctx, netip.AddrPortFrom(to, 33434), 6))
}

// TestTracerouteEnds tells the three ways apart in which a target can answer.
func TestTracerouteEnds(t *testing.T) {
	n := labtest.New(t, lab.Options{Servers: 1})
	ctx := withTimeout(t)
	c, s := n.Clients[0], n.Servers[0]
	serve(t, s)
	last := func(hops []lab.Hop, err error) lab.Hop {
		t.Helper()
		if err != nil || len(hops) != 2 {
			t.Fatalf("hops %v, error %v", hops, err)
		}
		return hops[1]
	}
	for _, tt := range []struct {
		to                         netip.Addr
		exceeded, reply, portIsOff any
		code                       int
	}{
		{s.IPv4, ipv4.ICMPTypeTimeExceeded, ipv4.ICMPTypeEchoReply, ipv4.ICMPTypeDestinationUnreachable, 3},
		{s.IPv6, ipv6.ICMPTypeTimeExceeded, ipv6.ICMPTypeEchoReply, ipv6.ICMPTypeDestinationUnreachable, 4},
	} {
		if !tt.to.IsValid() {
			continue
		}
		hops, err := c.TracerouteICMP(ctx, tt.to, 5)
		if got := last(hops, err); got.From != tt.to || got.Type != tt.reply || hops[0].Type != tt.exceeded {
			t.Errorf("echo requests: %v", hops)
		}
		if got := last(c.TracerouteUDP(ctx, netip.AddrPortFrom(tt.to, 33434), 5)); got.Type != tt.portIsOff || got.Code != tt.code {
			t.Errorf("closed port: %v", got)
		}
		if got := last(c.TracerouteUDP(ctx, netip.AddrPortFrom(tt.to, 7000), 5)); got.Type != nil || got.From != tt.to {
			t.Errorf("echo service: %v", got)
		}
	}
}

// TestPing covers what a ping can come to besides a plain answer.
func TestPing(t *testing.T) {
	n := labtest.New(t, lab.Options{Servers: 1})
	ctx := withTimeout(t)
	c, s := n.Clients[0], n.Servers[0]
	for _, to := range s.Addresses() {
		pong, err := c.PingData(ctx, to, make([]byte, 8000))
		if err != nil || pong.From != to || pong.TTL != 63 || pong.RTT <= 0 {
			t.Errorf("8000 bytes to %s: %+v, %v", to, pong, err)
		}
	}
	hurryNeighbours(t, n.Director, "dr")
	// The director has no neighbours of these addresses, and no route to those.
	for _, to := range []string{"10.0.2.99", "10.99.0.1", "fd00:2::99", "fd00:99::1"} {
		if addr(to).Is6() && !n.IPv6 {
			continue
		}
		_, err := c.Ping(ctx, addr(to))
		var failure *lab.ICMPError
		if !errors.As(err, &failure) || failure.From != n.Director.Addresses()[btoi(addr(to).Is6())] {
			t.Errorf("ping %s: error %v, want an ICMP error from the director", to, err)
		}
	}
	if err := s.SetSysctl("net.ipv4.icmp_echo_ignore_all", "1"); err != nil {
		t.Fatal(err)
	}
	reason := errors.New("that is enough")
	short, cancel := context.WithTimeoutCause(ctx, 50*time.Millisecond, reason)
	defer cancel()
	if pong, err := c.Ping(short, s.IPv4); !errors.Is(err, reason) {
		t.Errorf("a server that is mute: %+v, %v", pong, err)
	}
	if hops, err := c.TracerouteICMP(short, s.IPv4, 5); !errors.Is(err, reason) {
		t.Errorf("traceroute after the context is done: %v, %v", hops, err)
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestVIPIsNowhere sees to it that nobody answers for the VIP by himself: it is up to the director's routes, or the
// client finds nobody who has it in its network.
func TestVIPIsNowhere(t *testing.T) {
	for _, options := range []lab.Options{{Servers: 1}, {Servers: 1, VIPInClientNetwork: true}, {Servers: 1, OneNetwork: true}} {
		n := labtest.New(t, options)
		ctx := withTimeout(t)
		hurryNeighbours(t, n.Clients[0], "eth0")
		for i, vip := range n.VIPs() {
			want := n.Director.Addresses()[i]
			if options.VIPInClientNetwork {
				want = n.Clients[0].Addresses()[i]
			}
			pong, err := n.Clients[0].Ping(ctx, vip)
			var failure *lab.ICMPError
			if !errors.As(err, &failure) || failure.From != want {
				t.Errorf("%+v: ping %s: %+v, %v; want an ICMP error from %s", options, vip, pong, err, want)
			}
		}
	}
}

// hurryNeighbours shortens the time until a host knows that an address has no neighbour, from 3 s.
func hurryNeighbours(t *testing.T, h *lab.Host, link string) {
	t.Helper()
	for _, family := range []string{"ipv4", "ipv6"} {
		if err := h.SetSysctl("net/"+family+"/neigh/"+link+"/retrans_time_ms", "50"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestForwardingLeftAlone(t *testing.T) {
	n := labtest.New(t, lab.Options{Servers: 1, NoForwarding: true})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	for _, to := range n.Servers[0].Addresses() {
		if pong, err := n.Clients[0].Ping(ctx, to); err == nil {
			t.Errorf("a director that does not forward: %+v from %s", pong, to)
		}
	}
	if err := n.Director.SetForwarding(n.IPv6); err != nil {
		t.Fatal(err)
	}
	for _, to := range n.Servers[0].Addresses() {
		if _, err := n.Clients[0].Ping(withTimeout(t), to); err != nil {
			t.Error(err)
		}
	}
}

// TestSetMTU sees the MTU of one server's link from the client, which is told by the director.
func TestSetMTU(t *testing.T) {
	n := labtest.New(t, lab.Options{Servers: 2, PointToPoint: true})
	ctx := withTimeout(t)
	if err := n.SetMTU(n.Servers[1], 1300); err != nil {
		t.Fatal(err)
	}
	for host, links := range map[*lab.Host]map[string]int{
		n.Director:   {"dr1": 1500, "dr2": 1300, "dc": 1500},
		n.Servers[0]: {"eth0": 1500},
		n.Servers[1]: {"eth0": 1300},
	} {
		for name, want := range links {
			link, err := host.Link(name)
			if err != nil {
				t.Fatal(err)
			}
			if got := link.Attrs().MTU; got != want {
				t.Errorf("MTU of %s of %s is %d, want %d", name, host.Name, got, want)
			}
		}
	}
	if !n.IPv6 {
		return
	}
	_, err := n.Clients[0].PingData(ctx, n.Servers[1].IPv6, make([]byte, 1400))
	var failure *lab.ICMPError
	if !errors.As(err, &failure) || failure.Type != ipv6.ICMPTypePacketTooBig || failure.MTU != 1300 || failure.From != addr("fd00:1::fe") {
		t.Errorf("1400 bytes over a link of MTU 1300: %v", err)
	}
	if _, err := n.Clients[0].PingData(ctx, n.Servers[1].IPv6, make([]byte, 1400)); err != nil {
		t.Errorf("after the client has learned the path's MTU: %v", err)
	}
}

// TestTwoAtOnce has the same addresses in two networks, with services in only one of them.
func TestTwoAtOnce(t *testing.T) {
	one, other := labtest.New(t, lab.Options{}), labtest.New(t, lab.Options{})
	ctx := withTimeout(t)
	for i, s := range one.Servers {
		serve(t, s)
		for _, to := range s.Addresses() {
			reach(t, ctx, one.Clients[0], one.Clients[0].Addresses()[btoi(to.Is6())], s, to)
			c, err := other.Clients[0].Dial(ctx, "tcp", netip.AddrPortFrom(to, 80).String())
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("a server's port that is closed: %v, %v", c, err)
			}
		}
		if i == 0 {
			if err := other.Close(); err != nil { // and the other goes on
				t.Fatal(err)
			}
			other = labtest.New(t, lab.Options{})
		}
	}
}

func TestOptionsRefused(t *testing.T) {
	labtest.CheckLeaks(t)
	for _, tt := range []struct {
		options lab.Options
		want    string
	}{
		{lab.Options{Clients: 11}, "11 clients"},
		{lab.Options{Servers: 81}, "81 servers"},
		{lab.Options{Servers: -1}, "-1 servers"},
		{lab.Options{OneNetwork: true, ServerRouter: true}, "OneNetwork excludes"},
		{lab.Options{VIPInClientNetwork: true, ClientRouter: true}, "VIPInClientNetwork excludes"},
	} {
		n, err := lab.New(tt.options)
		if err == nil || !strings.Contains(err.Error(), tt.want) || n != nil {
			t.Errorf("%+v: %v, error %v, want %q", tt.options, n, err, tt.want)
		}
	}
}

// TestLargest has the most hosts that Options allow.
func TestLargest(t *testing.T) {
	if testing.Short() {
		t.Skip("91 hosts")
	}
	n := labtest.New(t, lab.Options{Clients: lab.MaxClients, Servers: lab.MaxServers})
	ctx := withTimeout(t)
	for _, to := range n.Servers[lab.MaxServers-1].Addresses() {
		if _, err := n.Clients[lab.MaxClients-1].Ping(ctx, to); err != nil {
			t.Error(err)
		}
	}
}

func TestDump(t *testing.T) {
	n := labtest.New(t, lab.Options{Servers: 2})
	if n.IPv6 {
		if _, err := n.Clients[0].Ping(withTimeout(t), n.Servers[0].IPv6); err != nil {
			t.Fatal(err)
		}
	}
	var b strings.Builder
	n.Dump(&b)
	for _, want := range []string{
		"== client1", "== director", "== server2", "== switch-servers", "link dr veth mtu 1500", "address 10.0.2.254/24",
		"rule 0: lookup 255", "unicast 10.0.2.0/24 src 10.0.2.254 link dr scope link", "unicast 0.0.0.0/0 via 10.0.1.254",
		"unicast ::/0 via fd00:1::fe link eth0", "neighbour fd00:1::fe eth0", "counters ", "Icmp6InEchoReplies=1",
	} {
		if !strings.Contains(b.String(), want) && n.IPv6 {
			t.Errorf("no %q in the dump", want)
		}
	}
	if strings.Contains(b.String(), "!") {
		t.Errorf("something could not be read:\n%s", b.String())
	}
}
