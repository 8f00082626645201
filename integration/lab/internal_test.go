package lab

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"
)

func TestUserNamespaceHint(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		sys  map[string]string
		want string
	}{
		{"Debian's switch", unix.EPERM, map[string]string{"kernel/unprivileged_userns_clone": "0"}, "sysctl kernel.unprivileged_userns_clone=1"},
		{"Ubuntu's switch", unix.EACCES, map[string]string{"kernel/apparmor_restrict_unprivileged_userns": "1"}, "AppArmor profile"},
		{"no user namespaces", unix.ENOSPC, map[string]string{"user/max_user_namespaces": "0"}, "sysctl user.max_user_namespaces=1000"},
		{"no network namespaces", unix.ENOSPC, map[string]string{"user/max_user_namespaces": "9", "user/max_net_namespaces": "0"}, "sysctl user.max_net_namespaces=1000"},
		{"too many", unix.ENOSPC, map[string]string{"user/max_user_namespaces": "9"}, "as many namespaces as"},
		{"switches that allow", unix.EPERM, map[string]string{"kernel/unprivileged_userns_clone": "1", "kernel/apparmor_restrict_unprivileged_userns": "0"}, "seccomp"},
		{"not built", unix.EINVAL, nil, "CONFIG_USER_NS"},
		{"something else", unix.ENOENT, nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sys := make(fstest.MapFS)
			for name, value := range tt.sys {
				sys[name] = &fstest.MapFile{Data: []byte(value + "\n")}
			}
			if got := userNamespaceHint(tt.err, sys); !strings.Contains(got, tt.want) || (got == "") != (tt.want == "") {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestReadCounters(t *testing.T) {
	const snmp = "Ip: Forwarding InReceives\nIp: 1 18446744073709551615\nTcp: MaxConn\nTcp: -1\n"
	const netstat = "TcpExt: TCPTimeouts\nTcpExt: 7\nIpExt: InCsumErrors\nIpExt: 2\n"
	const snmp6 = "Ip6InReceives                   \t12\nUdp6InCsumErrors\t3\n"
	for _, tt := range []struct {
		name                 string
		snmp, netstat, snmp6 string
		want                 string // counters, or what is wrong
	}{
		{"all", snmp, netstat, snmp6, "Ip6InReceives=12 IpExtInCsumErrors=2 IpForwarding=1 IpInReceives=-1 TcpExtTCPTimeouts=7 TcpMaxConn=-1 Udp6InCsumErrors=3"},
		{"no IPv6", "", netstat, "", "IpExtInCsumErrors=2 TcpExtTCPTimeouts=7"},
		{"values missing", "Ip: A\n", "", "", "snmp: no values"},
		{"too few values", "Ip: A B\nIp: 1\n", "", "", "do not match"},
		{"other protocol", "Ip: A\nTcp: 1\n", "", "", "do not match"},
		{"empty lines", "\n\n", "", "", "do not match"},
		{"not a number", "", "X: A\nX: many\n", "", "netstat: counter XA"},
		{"no value", "", "", "Ip6InReceives\n", "snmp6: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			proc := fstest.MapFS{"snmp": {Data: []byte(tt.snmp)}, "netstat": {Data: []byte(tt.netstat)}}
			if tt.snmp6 != "" {
				proc["snmp6"] = &fstest.MapFile{Data: []byte(tt.snmp6)}
			}
			c, err := readCounters(proc)
			got := c.String()
			if err != nil {
				got = err.Error()
			}
			if got != tt.want && (err == nil || !strings.Contains(got, tt.want)) {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
	if _, err := readCounters(fstest.MapFS{}); err == nil {
		t.Error("no files, and no error")
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Messages to a host that sends to 10.0.2.11 and fd00:2::11, with made-up checksums.
const (
	reply4    = "0000 0000 1234 0007 6869"
	request4  = "0800 0000 1234 0007 6869"
	exceeded4 = "0b00 0000 0000 0000  4500 001c 0001 0000 0111 0000 0a000101 0a00020b  1000 829a 0008 0000"
	options4  = "0b00 0000 0000 0000  4600 0020 0001 0000 0111 0000 0a000101 0a00020b 01010100  1000 829a 0008 0000"
	other4    = "0b00 0000 0000 0000  4500 001c 0001 0000 0111 0000 0a000101 0a00020c  1000 829a 0008 0000"
	short4    = "0b00 0000 0000 0000  4500 001c 0001 0000 0111 0000 0a000101 0a00020b  1000 829a 00"
	echoGone4 = "0301 0000 0000 0000  4500 001c 0001 0000 4001 0000 0a000101 0a00020b  0800 0000 1234 0007"
	badIHL4   = "0b00 0000 0000 0000  4f00 001c 0001 0000 0111 0000 0a000101 0a00020b  1000 829a 0008 0000"
	ip6       = "fd000001000000000000000000000001 fd000002000000000000000000000011"
	reply6    = "8100 0000 1234 0007 6869"
	tooBig6   = "0200 0000 0000 0514  6000 0000 0010 3a40 " + ip6 + " 8000 0000 1234 0007"
	fragment6 = "0200 0000 0000 0514  6000 0000 0010 2c40 " + ip6 + " 3a000001 00000001  8000 0000 1234 0007"
	neighbor6 = "8700 0000 0000 0000 fd000002000000000000000000000011"
)

func TestParseICMP(t *testing.T) {
	for _, tt := range []struct {
		name, to, message string
		ok                bool
		want              answer
		failure           string // its type and code
		mtu               int
	}{
		{"echo reply", "10.0.2.11", reply4, true, answer{protocol: 1, id: 0x1234, seq: 7, data: []byte("hi")}, "", 0},
		{"echo request", "10.0.2.11", request4, false, answer{}, "", 0},
		{"time exceeded", "10.0.2.11", exceeded4, true, answer{protocol: 17, id: 4096, seq: 33434}, "time exceeded 0", 0},
		{"options", "10.0.2.11", options4, true, answer{protocol: 17, id: 4096, seq: 33434}, "time exceeded 0", 0},
		{"about another address", "10.0.2.11", other4, false, answer{}, "", 0},
		{"short quotation", "10.0.2.11", short4, false, answer{}, "", 0},
		{"bad header length", "10.0.2.11", badIHL4, false, answer{}, "", 0},
		{"host unreachable", "10.0.2.11", echoGone4, true, answer{protocol: 1, id: 0x1234, seq: 7}, "destination unreachable 1", 0},
		{"echo reply 6", "fd00:2::11", reply6, true, answer{protocol: 58, id: 0x1234, seq: 7, data: []byte("hi")}, "", 0},
		{"too big", "fd00:2::11", tooBig6, true, answer{protocol: 58, id: 0x1234, seq: 7}, "packet too big 0", 1300},
		{"fragment", "fd00:2::11", fragment6, true, answer{protocol: 58, id: 0x1234, seq: 7}, "packet too big 0", 1300},
		{"neighbour solicitation", "fd00:2::11", neighbor6, false, answer{}, "", 0},
		{"nothing", "10.0.2.11", "", false, answer{}, "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &prober{to: netip.MustParseAddr(tt.to)}
			a, ok := p.parse(unhex(t, tt.message))
			if ok != tt.ok || a.protocol != tt.want.protocol || a.id != tt.want.id || a.seq != tt.want.seq || string(a.data) != string(tt.want.data) {
				t.Errorf("%+v, %t", a, ok)
			}
			got, mtu := "", 0
			if a.failure != nil {
				got, mtu = strings.TrimSuffix(strings.ReplaceAll(a.failure.Error(), ", code", ""), "\n"), a.failure.MTU
				got = strings.TrimPrefix(got, "invalid IP says ")
			}
			if got != tt.failure || mtu != tt.mtu {
				t.Errorf("failure %q, MTU %d, want %q, %d", got, mtu, tt.failure, tt.mtu)
			}
		})
	}
}

// FuzzParseICMP checks that what is accepted was really about the address.
func FuzzParseICMP(f *testing.F) {
	for _, s := range []string{reply4, exceeded4, options4, short4, badIHL4} {
		f.Add(false, unhex(f, s))
	}
	for _, s := range []string{reply6, tooBig6, fragment6} {
		f.Add(true, unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, is6 bool, b []byte) {
		to := netip.MustParseAddr("10.0.2.11")
		if is6 {
			to = netip.MustParseAddr("fd00:2::11")
		}
		a, ok := (&prober{to: to}).parse(b)
		if ok && a.failure != nil && !strings.Contains(string(b), string(to.AsSlice())) {
			t.Errorf("%x was taken for an answer about %s", b, to)
		}
		if ok && a.failure == nil && (a.id != int(b[4])<<8|int(b[5]) || string(a.data) != string(b[8:])) {
			t.Errorf("%x was read as %+v", b, a)
		}
	})
}

func FuzzParseEcho(f *testing.F) {
	f.Add([]byte("server1 10.0.1.1:5 hello there"))
	f.Add([]byte("server1 [fd00:1::1]:5 "))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseEcho(b)
		if err != nil {
			return
		}
		again, err := ParseEcho(e.appendTo(nil))
		if err != nil || again.Server != e.Server || again.Client != e.Client || string(again.Data) != string(e.Data) {
			t.Errorf("%+v became %+v, %v", e, again, err)
		}
	})
}

// TestNoBridge puts point-to-point links where the kernel has no bridges, unless hosts have to share a network.
func TestNoBridge(t *testing.T) {
	if err := Check(); err != nil {
		t.Skip(err) // and TestTopologies says so
	}
	noBridge := func(*Host) error { return fmt.Errorf("test: %w", errNoBridge) }
	n, err := newNetwork(Options{}, noBridge)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if len(n.ServerLinks) != 3 || n.ServerLinks[2] != "dr3" || len(n.Hosts()) != 5 {
		t.Errorf("links to servers %v, %d hosts", n.ServerLinks, len(n.Hosts()))
	}
	for _, s := range n.Servers {
		for _, to := range s.Addresses() {
			if _, err := n.Clients[0].Ping(t.Context(), to); err != nil {
				t.Error(err)
			}
		}
	}
	if n, err := newNetwork(Options{OneNetwork: true}, noBridge); n != nil || !errors.Is(err, errNoBridge) {
		t.Errorf("one network: %v, %v", n, err)
	}
}
