package balancer

import (
	"time"
	"unsafe"

	"github.com/lvsd/lvsd/stack"
)

// tick is a point in time in units of 4 ms, the jiffies of IPVS. It wraps after 198 days; compare ticks by difference.
type tick uint32

const tickLength = 4 * time.Millisecond

func ticksOf(d time.Duration) tick { return tick(d / tickLength) }

// duration returns a difference of ticks as time.
func (t tick) duration() time.Duration { return time.Duration(int32(t)) * tickLength }

// direction says which way a packet of a connection goes.
type direction uint8

const (
	request direction = iota // from the client to the VIP
	reply                    // from the real server to the client
)

// connKey names a connection as seen by a packet of it: the client, which has the same address and port in both
// directions, and the other end, which is the VIP in a request and the RIP in a reply.
type connKey struct {
	client, other         stack.Addr
	clientPort, otherPort uint16
	protocol              uint8
	dir                   direction
}

func requestKey(f stack.Flow) connKey {
	return connKey{f.Src, f.Dst, f.SrcPort, f.DstPort, f.Protocol, request}
}

func replyKey(f stack.Flow) connKey {
	return connKey{f.Dst, f.Src, f.DstPort, f.SrcPort, f.Protocol, reply}
}

// record is a connection as it lies in a slab, but for its addresses. It holds numbers, no pointers: the garbage
// collector never looks at it, and it means the same to another process that maps the slab.
type record struct {
	last       tick   // of the last packet
	timeout    tick   // how long after it the connection ends
	server     uint32 // number of the real server
	packets    uint32 // requests; wraps
	next       uint32 // of a free record: the next free one
	clientPort uint16
	vipPort    uint16
	serverPort uint16
	protocol   uint8
	state      connState
	active     bool // counted as active by its server
	live       bool // not free
}

// record4 is a cache line, record6 is never on more than two.
type record4 struct {
	record
	client, vip, rip uint32
	_                [20]byte
}

type record6 struct {
	record
	client, vip, rip stack.Addr
	_                [16]byte
}

var (
	_ = [1]struct{}{}[unsafe.Sizeof(record4{})-64]
	_ = [1]struct{}{}[unsafe.Sizeof(record6{})-96]
)

// expired tells whether the connection has been idle for its timeout. Clocks of workers differ by up to a batch, so
// last may lie ahead of now.
func (r *record) expired(now tick) bool { return int32(now-r.last) >= int32(r.timeout) }
