package balancer

import (
	"testing"

	"github.com/lvsd/lvsd/stack"
)

// TestMalformedFrames counts what is not a packet by what is wrong with it.
func TestMalformedFrames(t *testing.T) {
	r := newRig(t, "tcp4")
	frame := func(text string) []byte { return r.book.frame(r, text) }
	change := func(text string, f func(frame []byte) []byte) []byte { return f(frame(text)) }
	at := func(offset int, value byte) func([]byte) []byte {
		return func(frame []byte) []byte { frame[offset] = value; return frame }
	}
	const ip, tcp = stack.OffloadLen, stack.OffloadLen + 20
	for _, c := range []struct {
		name   string
		frame  []byte
		reason string
	}{
		{"nothing", []byte{}, "truncated"},
		{"an offload header only", make([]byte, stack.OffloadLen), "truncated"},
		{"19 bytes", change("c1 -> vip SYN", func(f []byte) []byte { return f[:ip+19] }), "truncated"},
		{"cut in the TCP header", change("c1 -> vip SYN", func(f []byte) []byte { return f[:tcp+10] }), "truncated"},
		{"version 5", change("c1 -> vip SYN", at(ip, 0x55)), "bad_version"},
		{"header of 16 bytes", change("c1 -> vip SYN", at(ip, 0x44)), "bad_ip_header"},
		{"header longer than the packet", change("c1 -> vip SYN", at(ip, 0x4f)), "bad_ip_header"},
		{"land", frame("vip -> vip SYN"), "bad_address"},
		{"land of another port", frame("closed -> vip SYN"), "bad_address"},
		{"from loopback", frame("127.0.0.1:9 -> vip SYN"), "bad_address"},
		{"from a group", frame("224.0.0.1:9 -> vip SYN"), "bad_address"},
		{"from everybody", frame("255.255.255.255:9 -> vip SYN"), "bad_address"},
		{"from nobody", frame("0.0.0.0:9 -> vip SYN"), "bad_address"},
		{"data offset of 4 words", change("c1 -> vip SYN", at(tcp+12, 0x40)), "bad_transport_header"},
		{"data offset of 15 words", change("c1 -> vip SYN", at(tcp+12, 0xf0)), "bad_transport_header"},
		{"UDP length of 7", change("c1 -> vip UDP", at(tcp+5, 7)), "bad_transport_header"},
		{"UDP length of 200", change("c1 -> vip UDP", at(tcp+5, 200)), "bad_transport_header"},
		{"second fragment at 8", change("c1 -> vip SYN", at(ip+7, 1)), "bad_fragment"},
		{"first fragment of 20 bytes", change("c1 -> vip SYN", at(ip+6, 0x20)), "bad_fragment"},
		{"offload flags", change("c1 -> vip SYN", at(0, 0x80)), "bad_offload_header"},
		{"checksum in the IP header", change("c1 -> vip SYN partial", at(6, 4)), "bad_offload_header"},
		{"checksum behind the end", change("c1 -> vip SYN partial", at(7, 4)), "bad_offload_header"},
		{"super-packet of another family", change("c1 -> vip ACK len=3000 gso=1000", at(1, stack.SegmentTCPv6)), "bad_offload_header"},
		{"super-packet with segments of 0", frame("c1 -> vip ACK len=3000 gso=0"), "bad_offload_header"},
		{"unknown kind of super-packet", change("c1 -> vip ACK len=3000 gso=1000", at(1, 3)), "bad_offload_header"},
	} {
		before := r.Status()
		if out := r.forward(c.frame); len(out) != 0 {
			r.Errorf("%s: something came out: % x", c.name, out)
		}
		after := r.Status()
		if got := after.Drops[c.reason] - before.Drops[c.reason]; got != 1 {
			r.Errorf("%s: counted %d as %s; all drops are %v", c.name, got, c.reason, after.Drops)
		}
		if after.Frames.In != before.Frames.In+1 || after.Frames.InBytes != before.Frames.InBytes+uint64(len(c.frame)) {
			r.Errorf("%s: counted as %+v, before %+v", c.name, after.Frames, before.Frames)
		}
	}
	if n, _ := r.ConnCount(); n != 0 {
		r.Errorf("%d connections were made", n)
	}
	newRig(t, "tcp6").script(`
		vip -> vip SYN          => drop bad_address
		closed -> vip SYN       => drop bad_address
		[::1]:9 -> vip SYN      => drop bad_address
		[ff02::1]:9 -> vip SYN  => drop bad_address
		[::]:9 -> vip SYN       => drop bad_address
	`)
}
