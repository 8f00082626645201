package stack

import "time"

// Limits says how many answers a director may make by itself, as the sysctls of Linux hosts do. A zero value of a field
// means no limit.
type Limits struct {
	// PerAddress is the time between two ICMP errors to one address (icmp_ratelimit); a burst of 6 may come first.
	PerAddress time.Duration
	// PerSecond is how many packets may be made in a second in all (icmp_msgs_per_sec); bursts may be as large.
	PerSecond int
}

// DefaultLimits are Linux's own.
func DefaultLimits() Limits { return Limits{PerAddress: time.Second, PerSecond: 10000} }

const (
	addressBurst   = 6    // XRLIM_BURST_FACTOR of Linux
	addressBuckets = 1024 // addresses share buckets when there are more
)

// Limiter holds token buckets for answers. It is for one goroutine and takes constant memory.
type Limiter struct {
	limits  Limits
	all     bucket
	address [addressBuckets]bucket
}

// bucket is a token bucket in the form of the time at which it was last empty, or would have been.
type bucket struct{ empty time.Duration }

// take takes a token from a bucket that gains one every interval and holds up to burst.
func (b *bucket) take(interval time.Duration, burst int, now time.Duration) bool {
	if floor := now - interval*time.Duration(burst); b.empty < floor {
		b.empty = floor
	}
	if b.empty+interval > now {
		return false
	}
	b.empty += interval
	return true
}

// NewLimiter returns a limiter whose buckets are full at the time 0.
func NewLimiter(limits Limits) *Limiter {
	l := &Limiter{limits: limits}
	l.all.empty = -time.Second
	for i := range l.address {
		l.address[i].empty = -addressBurst * limits.PerAddress
	}
	return l
}

// Allow tells whether a packet may be made now, for an answer that is bounded in all only: an echo reply, a reset,
// fragmentation needed.
func (l *Limiter) Allow(now time.Duration) bool {
	return l.limits.PerSecond == 0 || l.all.take(time.Second/time.Duration(l.limits.PerSecond), l.limits.PerSecond, now)
}

// AllowTo tells whether an ICMP error may be sent to an address now.
func (l *Limiter) AllowTo(a Addr, now time.Duration) bool {
	if l.limits.PerAddress > 0 {
		const golden = 0x9e3779b97f4a7c15
		h := (a.hi ^ a.lo) * golden
		if !l.address[h>>(64-10)].take(l.limits.PerAddress, addressBurst, now) {
			return false
		}
	}
	return l.Allow(now)
}
