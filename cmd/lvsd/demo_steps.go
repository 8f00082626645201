package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/lvsd/lvsd/balancer/admin"
	"github.com/lvsd/lvsd/integration/lab"
)

var demoSteps = []demoStep{
	{"TCP: each server gets its share of 30 HTTP requests", (*demo).proveHTTP},
	{"UDP: each server gets its share of 30 datagrams", (*demo).proveUDP},
	{"ping: the VIP answers, though no interface has it", (*demo).provePing},
	{"a port without a service is refused at once", (*demo).proveRefusal},
	{"a drained server keeps its connections and gets no new ones", (*demo).proveDrain},
	{"bulk data moves as super-packets", (*demo).proveThroughput},
}

const demoRequests = 30

func hostPort(a netip.Addr, port string) string { return net.JoinHostPort(a.String(), port) }

// share counts who answered whom.
type share struct {
	servers map[string]int
	clients map[netip.Addr]bool // as the servers saw them
}

func newShare() share { return share{make(map[string]int), make(map[netip.Addr]bool)} }

func (s share) add(server string, client netip.Addr) {
	s.servers[server]++
	s.clients[client.Unmap()] = true
}

// line writes "10.96.0.10: server1 10, server2 10, server3 10; they saw 10.0.1.1", and checks that the shares are even
// among the servers that are wanted and that the client was seen as itself.
func (s share) line(vip, client netip.Addr, wanted ...string) (string, error) {
	names := slices.Sorted(maps.Keys(s.servers))
	parts := make([]string, len(names))
	for i, name := range names {
		parts[i] = fmt.Sprintf("%s %d", name, s.servers[name])
	}
	line := fmt.Sprintf("%s: %s; they saw the client as %s", vip, strings.Join(parts, ", "), slices.Collect(maps.Keys(s.clients)))
	if !slices.Equal(names, wanted) {
		return "", fmt.Errorf("expected answers of %v: %s", wanted, line)
	}
	for _, n := range s.servers {
		if n*len(names) != demoRequests {
			return "", fmt.Errorf("the shares are uneven: %s", line)
		}
	}
	if !s.clients[client] || len(s.clients) != 1 {
		return "", fmt.Errorf("the servers should have seen %s: %s", client, line)
	}
	return strings.NewReplacer("[", "", "]", "").Replace(line), nil
}

// families calls prove for each VIP with the client's address of that family, and collects the lines.
func (d *demo) families(prove func(vip, client netip.Addr) (string, error)) ([]string, error) {
	var lines []string
	for _, vip := range d.net.VIPs() {
		client := d.net.Clients[0].IPv4
		if vip.Is6() {
			client = d.net.Clients[0].IPv6
		}
		line, err := prove(vip, client)
		if err != nil {
			return nil, err
		}
		lines = append(lines, line)
	}
	return lines, nil
}

func (d *demo) serverNames() []string {
	var names []string
	for _, s := range d.net.Servers {
		names = append(names, s.Name)
	}
	return names
}

func (d *demo) proveHTTP(ctx context.Context) ([]string, error) {
	return d.families(func(vip, client netip.Addr) (string, error) {
		s, err := d.request(ctx, vip)
		if err != nil {
			return "", err
		}
		return s.line(vip, client, d.serverNames()...)
	})
}

// request makes the demo's HTTP requests, each by a connection of its own.
func (d *demo) request(ctx context.Context, vip netip.Addr) (share, error) {
	s := newShare()
	client := d.net.Clients[0].HTTPClient()
	for range demoRequests {
		resp, err := client.Get("http://" + hostPort(vip, demoPort) + "/")
		if err != nil {
			return s, err
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return s, err
		}
		name, from, _ := strings.Cut(strings.TrimSpace(string(body)), " ")
		addr, err := netip.ParseAddrPort(from)
		if err != nil {
			return s, fmt.Errorf("%s answered %q", vip, body)
		}
		s.add(name, addr.Addr())
		if ctx.Err() != nil {
			return s, ctx.Err()
		}
	}
	return s, nil
}

func (d *demo) proveUDP(ctx context.Context) ([]string, error) {
	return d.families(func(vip, client netip.Addr) (string, error) {
		s := newShare()
		for range demoRequests {
			e, err := d.datagram(ctx, vip)
			if err != nil {
				return "", err
			}
			s.add(e.Server, e.Client.Addr())
		}
		return s.line(vip, client, d.serverNames()...)
	})
}

// datagram sends a datagram from a new socket and returns the answer.
func (d *demo) datagram(ctx context.Context, vip netip.Addr) (lab.Echo, error) {
	conn, err := d.net.Clients[0].Dial(ctx, "udp", hostPort(vip, "53"))
	if err != nil {
		return lab.Echo{}, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return lab.Echo{}, err
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		return lab.Echo{}, err
	}
	b := make([]byte, 1500)
	n, err := conn.Read(b)
	if err != nil {
		return lab.Echo{}, err
	}
	return lab.ParseEcho(b[:n])
}

func (d *demo) provePing(ctx context.Context) ([]string, error) {
	return d.families(func(vip, _ netip.Addr) (string, error) {
		pong, err := d.net.Clients[0].Ping(ctx, vip)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%s: %v", vip, pong.RTT.Round(10*time.Microsecond)), nil
	})
}

func (d *demo) proveRefusal(ctx context.Context) ([]string, error) {
	return d.families(func(vip, _ netip.Addr) (string, error) {
		start := time.Now()
		conn, err := d.net.Clients[0].Dial(ctx, "tcp", hostPort(vip, "81"))
		if err == nil {
			conn.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return "", fmt.Errorf("expected a refusal of TCP port 81, got %w", orNone(err))
		}
		if err := d.refusedDatagram(ctx, vip); !errors.Is(err, syscall.ECONNREFUSED) {
			return "", fmt.Errorf("expected a refusal of UDP port 81, got %w", orNone(err))
		}
		return fmt.Sprintf("%s: TCP by a reset, UDP by port unreachable, in %v", vip, time.Since(start).Round(100*time.Microsecond)), nil
	})
}

func (d *demo) refusedDatagram(ctx context.Context, vip netip.Addr) error {
	conn, err := d.net.Clients[0].Dial(ctx, "udp", hostPort(vip, "81"))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

func orNone(err error) error {
	if err == nil {
		return errors.New("no error")
	}
	return err
}

// proveDrain opens a connection, drains its server by an edit of the file and SIGHUP, and goes on using it while new
// connections go elsewhere.
func (d *demo) proveDrain(ctx context.Context) ([]string, error) {
	vip := d.net.VIP4
	conn, err := d.net.Clients[0].Dial(ctx, "tcp", hostPort(vip, "7000"))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	lines := bufio.NewReader(conn)
	before, err := say(conn, lines, "before")
	if err != nil {
		return nil, err
	}
	if err := d.drain(ctx, before.Server); err != nil {
		return nil, err
	}
	var others []string
	for _, name := range d.serverNames() {
		if name != before.Server {
			others = append(others, name)
		}
	}
	seen, err := d.families(func(vip, client netip.Addr) (string, error) {
		s, err := d.request(ctx, vip)
		if err != nil {
			return "", err
		}
		return s.line(vip, client, others...)
	})
	if err != nil {
		return nil, err
	}
	after, err := say(conn, lines, "after")
	if err != nil {
		return nil, fmt.Errorf("the connection to the drained server broke: %w", err)
	}
	if after.Server != before.Server {
		return nil, fmt.Errorf("the connection moved from %s to %s", before.Server, after.Server)
	}
	if err := d.drain(ctx, ""); err != nil {
		return nil, err
	}
	return append([]string{fmt.Sprintf("%s drained; a connection to it from before still answers", before.Server)}, seen...), nil
}

// drain gives a server weight 0 in all services and waits until that is in force; "" drains nobody.
func (d *demo) drain(ctx context.Context, name string) error {
	if err := d.writeConfig(name); err != nil {
		return err
	}
	if err := d.lvsd.Process.Signal(syscall.SIGHUP); err != nil {
		return err
	}
	addresses := make(map[netip.Addr]bool)
	for _, s := range d.net.Servers {
		if s.Name == name {
			addresses[s.IPv4], addresses[s.IPv6] = true, true
		}
	}
	return d.await(ctx, "the drained server's weight to be 0", func(s *admin.Status) bool {
		for _, svc := range s.Services {
			for _, srv := range svc.Servers {
				if (srv.Weight == 0) != addresses[srv.Address.Addr()] {
					return false
				}
			}
		}
		return true
	})
}

// say sends a line on an echo connection and returns the answer.
func say(conn net.Conn, lines *bufio.Reader, text string) (lab.Echo, error) {
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return lab.Echo{}, err
	}
	if _, err := fmt.Fprintln(conn, text); err != nil {
		return lab.Echo{}, err
	}
	line, err := lines.ReadBytes('\n')
	if err != nil {
		return lab.Echo{}, err
	}
	return lab.ParseEcho(line)
}

// proveThroughput sends for a second and asks the director how large the frames were.
func (d *demo) proveThroughput(ctx context.Context) ([]string, error) {
	return d.families(func(vip, _ netip.Addr) (string, error) {
		before, err := d.status(ctx)
		if err != nil {
			return "", err
		}
		conn, err := d.net.Clients[0].Dial(ctx, "tcp", hostPort(vip, "9000"))
		if err != nil {
			return "", err
		}
		defer conn.Close()
		start, sent := time.Now(), 0
		if err := conn.SetDeadline(start.Add(10 * time.Second)); err != nil {
			return "", err
		}
		for chunk := make([]byte, 256<<10); time.Since(start) < time.Second; {
			n, err := conn.Write(chunk)
			if err != nil {
				return "", err
			}
			sent += n
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			return "", err
		}
		answer, err := io.ReadAll(conn)
		if err != nil {
			return "", err
		}
		took := time.Since(start)
		if string(answer) != fmt.Sprintln(sent) {
			return "", fmt.Errorf("%d bytes were sent and %s arrived", sent, answer)
		}
		after, err := d.status(ctx)
		if err != nil {
			return "", err
		}
		average := (after.Frames.InBytes - before.Frames.InBytes) / max(1, after.Frames.In-before.Frames.In)
		return fmt.Sprintf("%s: %.1f Gbit/s over one connection, %s a frame", vip, float64(sent)*8/took.Seconds()/1e9, bytesText(average)), nil
	})
}

// leftovers finds what lvsd should have taken away with it.
func (d *demo) leftovers() ([]string, error) {
	h := d.net.Director.Netlink()
	if _, err := h.LinkByName("lvs0"); err == nil {
		return nil, errors.New("the device lvs0 is still there")
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			if r.Dst != nil && slices.ContainsFunc(d.net.VIPs(), func(vip netip.Addr) bool { return r.Dst.IP.Equal(vip.AsSlice()) }) {
				return nil, fmt.Errorf("the route %v is still there", r)
			}
		}
		rules, err := h.RuleList(family)
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			if r.IifName != "" {
				return nil, fmt.Errorf("the rule %v is still there", r)
			}
		}
	}
	return []string{"no device, no route and no rule is left"}, nil
}
