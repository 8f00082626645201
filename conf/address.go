package conf

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// parseVIP reads the address of a virtual service: an IP address and a port. Whether packets can be routed to it is
// for the balancer to say.
func parseVIP(s string) (address netip.AddrPort, problem string) {
	if address, err := netip.ParseAddrPort(s); err == nil {
		return address, ""
	}
	if addr, err := netip.ParseAddr(s); err == nil && addr.Is4() {
		return netip.AddrPort{}, fmt.Sprintf("%s has no port; write \"%s:80\", with the port that clients connect to", quote(s), addr)
	}
	if host, port := splitPort(s); (host == "" || host == "*") && isPort(port) {
		return netip.AddrPort{}, fmt.Sprintf("%s names no address; a virtual service has one VIP: \"192.0.2.10:%s\"", quote(s), port)
	}
	return netip.AddrPort{}, addressProblem(s)
}

// parseRIP reads the address of a real server: an IP address with a port, or without for the service's port. An IPv6
// address may come without brackets where that can only mean one thing.
func parseRIP(s string, port uint16) (address netip.AddrPort, problem string) {
	if address, err := netip.ParseAddrPort(s); err == nil {
		return address, ""
	}
	bare, bracketed := strings.CutPrefix(s, "[")
	if bracketed {
		bare, bracketed = strings.CutSuffix(bare, "]")
	}
	addr, err := netip.ParseAddr(bare)
	if err != nil || bracketed && addr.Is4() {
		return netip.AddrPort{}, addressProblem(s)
	}
	if host, tail := splitPort(s); !bracketed && addr.Is6() && isAddr(host) && isPort(tail) {
		return netip.AddrPort{}, fmt.Sprintf("%s can be read in two ways; write \"[%s]:%s\" if %s is the port, else \"[%s]\"", quote(s), host, tail, tail, s)
	}
	return netip.AddrPortFrom(addr, port), ""
}

// addressProblem says why s is not an address and a port, and what was probably meant.
func addressProblem(s string) string {
	const right = `write an address and a port, such as "10.0.0.1:80" or "[2001:db8::1]:80"`
	host, port := splitPort(s)
	bareHost := strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	fields := strings.Fields(s)
	switch {
	case s == "":
		return "is empty; " + right
	case strings.Contains(s, "${"):
		return fmt.Sprintf("%s has a variable in it, and variables are not replaced unless that is asked for", quote(s))
	case len(fields) == 2 && isAddr(fields[0]) && isPort(fields[1]):
		return fmt.Sprintf("%s has a blank in it; write \"%s\"", quote(s), joinPort(fields[0], fields[1]))
	case strings.Join(fields, "") != s:
		return fmt.Sprintf("%s has a blank in it; %s", quote(s), right)
	case strings.Contains(s, "://"):
		return fmt.Sprintf("%s is a URL; %s", quote(s), right)
	case strings.HasSuffix(s, "/tcp"), strings.HasSuffix(s, "/udp"):
		return fmt.Sprintf("%s names a protocol, which has a key of its own on the service: protocol = \"%s\"", quote(s), s[len(s)-3:])
	case strings.Contains(s, "/"):
		return fmt.Sprintf("%s has a \"/\" in it, and networks cannot be given; %s", quote(s), right)
	case isAddr(host) && isPort(port) && strings.Contains(host, ":"):
		return fmt.Sprintf("%s needs brackets around the IPv6 address; write \"%s\"", quote(s), joinPort(host, port))
	case isAddr(s):
		return fmt.Sprintf("%s has no port, and an IPv6 address with a port needs brackets; write \"[%s]:80\"", quote(s), s)
	case strings.HasPrefix(s, "[") && strings.Contains(s, "::") && isAddr(strings.TrimSuffix(s[1:], "]")):
		return fmt.Sprintf("%s has no port; write \"[%s]:80\", with the port that clients connect to", quote(s), strings.TrimSuffix(s[1:], "]"))
	case host != bareHost && isAddr(bareHost) && !strings.Contains(bareHost, ":"):
		return fmt.Sprintf("%s has brackets, which are for IPv6 only; write \"%s\"", quote(s), joinPort(bareHost, port))
	case isAddr(bareHost) && strings.ContainsAny(port, "-,"):
		return fmt.Sprintf("%s has more than one port; write a service for each port", quote(s))
	case isAddr(bareHost):
		return fmt.Sprintf("%s has no port that is a number from 1 to 65535; %s", quote(s), right)
	case looksLikeName(bareHost):
		return fmt.Sprintf("%s has a name in it, and names are not looked up; %s", quote(s), right)
	}
	if _, err := netip.ParseAddr(bareHost); err != nil {
		_, reason, _ := strings.Cut(err.Error(), "): ")
		return fmt.Sprintf("%s is not an address (%s); %s", quote(s), reason, right)
	}
	return fmt.Sprintf("%s is not an address; %s", quote(s), right)
}

// splitPort cuts at the last colon.
func splitPort(s string) (host, port string) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return s, ""
	}
	return s[:i], s[i+1:]
}

func joinPort(host, port string) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port == "" {
		return host
	}
	return host + ":" + port
}

func isAddr(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0 && s[0] != '0' && s[0] != '+'
}

// looksLikeName tells whether s could be a host name: it has a letter that no IPv6 address has.
func looksLikeName(s string) bool {
	return !strings.Contains(s, ":") && strings.ContainsAny(strings.ToLower(s), "ghijklmnopqrstuvwxyz")
}
