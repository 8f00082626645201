package stacktest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/lvsd/lvsd/stack/packettest"
)

const (
	traceLen  = 1024 // events that are kept
	traceSnap = 128  // bytes of a packet that are kept
)

// Event is a frame that went by, or something that happened to one.
type Event struct {
	At       time.Duration // since the router was made
	From, To string        // names of hosts, "router", "director"
	Packet   []byte        // the packet's first 128 bytes
	Note     string        // what is special about it
}

// Lost tells whether the frame did not arrive.
func (e Event) Lost() bool {
	switch e.Note {
	case "", string(duplicated), string(heldBack):
		return false
	}
	return !strings.HasPrefix(e.Note, superNote)
}

const superNote = "super-packet"

func (e Event) String() string {
	text := fmt.Sprintf("%.3f ms %s", float64(e.At.Microseconds())/1000, describe(e.Packet))
	if e.Note != "" {
		text += " (" + e.Note + ")"
	}
	return text
}

// Events returns what went by lately, the latest last. Frames are seen when the router hands them on, packets also where
// a link does something to them.
func (r *Router) Events() []Event { return r.trace.all() }

// Diagram returns the latest of the events, at most n, as a sequence diagram for mermaid, which can be read without it
// too.
func (r *Router) Diagram(n int) string {
	events := r.trace.all()
	events = events[max(0, len(events)-n):]
	var b strings.Builder
	b.WriteString("sequenceDiagram\n")
	for _, e := range events {
		arrow := "->>"
		if e.Lost() {
			arrow = "-x"
		}
		fmt.Fprintf(&b, "    %s%s%s: %s\n", e.From, arrow, e.To, e)
	}
	return b.String()
}

// trace keeps the latest events in a ring.
type trace struct {
	start time.Time

	mu     sync.Mutex
	events []Event
	oldest int
}

func newTrace() *trace { return &trace{start: time.Now()} }

func (t *trace) frame(from, to place, frame []byte) {
	note := ""
	if frame[1] != 0 {
		note = fmt.Sprintf("%s of %d, cut at %d", superNote, len(frame)-offloadLen, binary.NativeEndian.Uint16(frame[4:]))
	}
	t.note(from, to, frame[offloadLen:], note)
}

func (t *trace) note(from, to place, packet []byte, note string) {
	e := Event{time.Since(t.start), from.String(), to.String(), bytes.Clone(packet[:min(len(packet), traceSnap)]), note}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.events) < traceLen {
		t.events = append(t.events, e)
		return
	}
	t.events[t.oldest] = e
	t.oldest = (t.oldest + 1) % traceLen
}

func (t *trace) all() []Event {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append(append([]Event(nil), t.events[t.oldest:]...), t.events[:t.oldest]...)
}

// describe says in a line what a packet is, of which the end may be missing.
func describe(packet []byte) string {
	h, err := packettest.Walk(packet)
	if err != nil {
		return fmt.Sprintf("no packet: %x", packet)
	}
	decoded := packettest.Parse(packet)
	ttl, length := 0, 0
	switch ip := decoded.NetworkLayer().(type) {
	case *layers.IPv4:
		ttl, length = int(ip.TTL), int(ip.Length)
	case *layers.IPv6:
		ttl, length = int(ip.HopLimit), int(ip.Length)+40
	}
	text := describeTransport(h, decoded, length)
	if h.Fragmented {
		text += fmt.Sprintf(", fragment %#x at %d", h.ID, h.Offset)
	}
	return fmt.Sprintf("%s, ttl %d", text, ttl)
}

func describeTransport(h packettest.Headers, decoded gopacket.Packet, length int) string {
	ends := func(src, dst int) string {
		return net.JoinHostPort(h.Src.String(), fmt.Sprint(src)) + " > " + net.JoinHostPort(h.Dst.String(), fmt.Sprint(dst))
	}
	if h.Offset == 0 {
		for _, l := range decoded.Layers() {
			switch l := l.(type) {
			case *layers.TCP:
				return fmt.Sprintf("tcp %s %s seq %d ack %d, %d bytes", ends(int(l.SrcPort), int(l.DstPort)), tcpFlags(l), l.Seq, l.Ack,
					length-h.Transport-int(l.DataOffset)*4)
			case *layers.UDP:
				return fmt.Sprintf("udp %s, %d bytes", ends(int(l.SrcPort), int(l.DstPort)), int(l.Length)-8)
			case *layers.ICMPv4:
				return fmt.Sprintf("icmp %s > %s %s", h.Src, h.Dst, l.TypeCode)
			case *layers.ICMPv6:
				return fmt.Sprintf("icmpv6 %s > %s %s", h.Src, h.Dst, l.TypeCode)
			}
		}
	}
	return fmt.Sprintf("%s > %s protocol %d, %d bytes", h.Src, h.Dst, h.Protocol, length-h.Transport)
}

func tcpFlags(t *layers.TCP) string {
	var b strings.Builder
	for _, f := range []struct {
		set  bool
		name string
	}{{t.SYN, "SYN "}, {t.FIN, "FIN "}, {t.RST, "RST "}, {t.PSH, "PSH "}, {t.ACK, "ACK "}} {
		if f.set {
			b.WriteString(f.name)
		}
	}
	return strings.TrimSpace(b.String())
}
