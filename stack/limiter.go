package stack

import "time"

// Limits says how many answers a [Limiter] lets through, as the sysctls of Linux hosts do. A zero value of a field means
// no limit.
type Limits struct {
	// PerAddress is the time between two ICMP errors to one address (icmp_ratelimit); a burst of 6 may come first.
	PerAddress time.Duration
	// PerSecond is how many packets may be made in a second in all (icmp_msgs_per_sec); bursts may be as large.
	PerSecond int
}

// DefaultLimits are Linux's own.
func DefaultLimits() Limits { return Limits{PerAddress: time.Second, PerSecond: 10000} }

const (
	addressBurst      = 6 // XRLIM_BURST_FACTOR of Linux
	addressBucketBits = 10
	addressBuckets    = 1 << addressBucketBits // addresses share buckets when there are more
)

// Limiter holds token buckets for answers. It is for one goroutine and takes constant memory.
type Limiter struct {
	limits  Limits
	all     bucket
	address [addressBuckets]bucket
}

// bucket is a token bucket in the form of the time at which it was last empty, or would have been.
type bucket struct{ empty time.Duration }

// has tells whether there is a token in a bucket that gains one every interval and holds up to burst.
func (b *bucket) has(interval time.Duration, burst int, now time.Duration) bool {
	b.empty = max(b.empty, now-interval*time.Duration(burst))
	return b.empty+interval <= now
}

func (b *bucket) take(interval time.Duration) { b.empty += interval }

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
	if l.limits.PerSecond == 0 {
		return true
	}
	interval := time.Second / time.Duration(l.limits.PerSecond)
	if !l.all.has(interval, l.limits.PerSecond, now) {
		return false
	}
	l.all.take(interval)
	return true
}

// AllowTo tells whether an ICMP error may be sent to an address now.
func (l *Limiter) AllowTo(a Addr, now time.Duration) bool {
	if l.limits.PerAddress == 0 {
		return l.Allow(now)
	}
	const golden = 0x9e3779b97f4a7c15
	b := &l.address[(a.hi^a.lo)*golden>>(64-addressBucketBits)]
	if !b.has(l.limits.PerAddress, addressBurst, now) || !l.Allow(now) {
		return false
	}
	b.take(l.limits.PerAddress)
	return true
}
