package stack

import (
	"container/list"
	"slices"
	"sync"
	"time"
)

// Bounds of Fragments. Linux keeps fragments for 30 s; as an IPv4 sender may use an identification again after a second
// or so at today's speeds (RFC 4963), a memory that long would join the wrong ones.
const (
	fragmentLifetime  = 5 * time.Second
	maxDatagrams      = 4096
	maxHeldBytes      = 4 << 20
	maxFragmentRanges = 64
)

// FragmentVerdict says what becomes of a fragment.
type FragmentVerdict uint8

const (
	FragmentKnown     FragmentVerdict = iota // the first fragment's fate is its fate
	FragmentHeld                             // it waits for the first fragment
	FragmentDuplicate                        // its bytes have been seen
	FragmentOverlap                          // it overlaps another, so the whole datagram is refused (RFC 5722, RFC 8200 4.5)
	FragmentNoRoom                           // too many fragments wait already
)

// Fragments remembers what was done with the first fragments of datagrams, as a T, so that the same can be done with
// the later ones, and keeps those that arrive before the first. It never puts a datagram together.
//
// All is bounded: time, datagrams remembered, of which the oldest gives way, and bytes held, beyond which no more
// fragments may wait. Methods may be called concurrently.
type Fragments[T any] struct {
	mu        sync.Mutex
	datagrams map[datagramKey]*list.Element // of *datagram[T]
	oldest    *list.List
	heldBytes int
	orphans   uint64
}

type datagramKey struct {
	src, dst Addr
	id       uint32
	protocol uint8 // 0 for IPv6: there the protocol is not part of a datagram's name
}

type datagram[T any] struct {
	key     datagramKey
	born    time.Duration
	fate    T
	decided bool
	spoiled FragmentVerdict // why the datagram is refused, or FragmentKnown
	seen    []byteRange     // in order, apart from each other
	length  int             // of the whole datagram, or 0 while unknown
	held    [][]byte        // own copies of frames
}

type byteRange struct{ from, to int }

// NewFragments returns an empty memory.
func NewFragments[T any]() *Fragments[T] {
	return &Fragments[T]{datagrams: make(map[datagramKey]*list.Element), oldest: list.New()}
}

// First records the fate of a datagram whose first fragment is p and returns the fragments that waited for it, which
// are the caller's from then on. A first fragment that comes again starts the datagram anew: identifications are used
// again soon. Call it before p is rewritten.
func (f *Fragments[T]) First(p *Packet, fate T, now time.Duration) (waited [][]byte, verdict FragmentVerdict) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expire(now)
	d := f.datagram(p, now)
	if d.decided {
		d.seen, d.length, d.spoiled, d.born = d.seen[:0], 0, FragmentKnown, now
		f.oldest.MoveToBack(f.datagrams[d.key])
	}
	d.fate, d.decided = fate, true
	verdict = f.see(d, p)
	if verdict == FragmentKnown {
		waited = f.release(d)
		f.forgetIfWhole(d)
	}
	return waited, verdict
}

// Later returns the fate of a later fragment if it is known. If the first fragment has not come yet, a copy of the frame
// is kept until then. Call it before p is rewritten.
func (f *Fragments[T]) Later(p *Packet, now time.Duration) (fate T, verdict FragmentVerdict) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expire(now)
	d := f.datagram(p, now)
	if verdict := f.see(d, p); verdict != FragmentKnown {
		return fate, verdict
	}
	if !d.decided {
		if f.heldBytes+len(p.frame) > maxHeldBytes {
			f.spoil(d, FragmentNoRoom)
			return fate, FragmentNoRoom
		}
		d.held = append(d.held, slices.Clone(p.frame))
		f.heldBytes += len(p.frame)
		return fate, FragmentHeld
	}
	fate = d.fate
	f.forgetIfWhole(d)
	return fate, FragmentKnown
}

// Orphans returns how many held fragments were dropped because their first fragment never came or was refused.
func (f *Fragments[T]) Orphans() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.orphans
}

// Expire drops what is too old. First and Later do so too; it is for times without fragments.
func (f *Fragments[T]) Expire(now time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expire(now)
}

func (f *Fragments[T]) datagram(p *Packet, now time.Duration) *datagram[T] {
	key := datagramKey{p.Flow.Src, p.Flow.Dst, p.Fragment.ID, p.Flow.Protocol}
	if p.v6 {
		key.protocol = 0
	}
	if e, ok := f.datagrams[key]; ok {
		return e.Value.(*datagram[T])
	}
	if len(f.datagrams) >= maxDatagrams {
		f.forget(f.oldest.Front().Value.(*datagram[T]))
	}
	d := &datagram[T]{key: key, born: now}
	f.datagrams[key] = f.oldest.PushBack(d)
	return d
}

func (f *Fragments[T]) expire(now time.Duration) {
	for e := f.oldest.Front(); e != nil; e = f.oldest.Front() {
		d := e.Value.(*datagram[T])
		if now-d.born < fragmentLifetime {
			return
		}
		f.forget(d)
	}
}

func (f *Fragments[T]) forget(d *datagram[T]) {
	f.orphans += uint64(len(d.held))
	f.release(d)
	f.oldest.Remove(f.datagrams[d.key])
	delete(f.datagrams, d.key)
}

func (f *Fragments[T]) forgetIfWhole(d *datagram[T]) {
	if d.length > 0 && len(d.seen) == 1 && d.seen[0] == (byteRange{0, d.length}) {
		f.forget(d)
	}
}

func (f *Fragments[T]) release(d *datagram[T]) (held [][]byte) {
	held, d.held = d.held, nil
	for _, frame := range held {
		f.heldBytes -= len(frame)
	}
	return held
}

// see adds the fragment's bytes to those seen of its datagram. One overlap spoils the datagram.
func (f *Fragments[T]) see(d *datagram[T], p *Packet) FragmentVerdict {
	if d.spoiled != FragmentKnown {
		return d.spoiled
	}
	verdict := d.cover(byteRange{p.Fragment.Offset, p.Fragment.Offset + p.Fragment.Len}, !p.Fragment.More)
	if verdict == FragmentOverlap || verdict == FragmentNoRoom {
		f.spoil(d, verdict)
	}
	return verdict
}

// spoil refuses all of a datagram that can never be whole again.
func (f *Fragments[T]) spoil(d *datagram[T], why FragmentVerdict) {
	d.spoiled = why
	f.orphans += uint64(len(d.held))
	f.release(d)
}

func (d *datagram[T]) cover(r byteRange, last bool) FragmentVerdict {
	end := 0
	if len(d.seen) > 0 {
		end = d.seen[len(d.seen)-1].to
	}
	switch {
	case last && (d.length > 0 && d.length != r.to || end > r.to),
		!last && d.length > 0 && r.to >= d.length:
		return FragmentOverlap
	}
	at, _ := slices.BinarySearchFunc(d.seen, r, func(s, r byteRange) int { return s.from - r.from })
	switch {
	case at < len(d.seen) && d.seen[at].from <= r.from && r.to <= d.seen[at].to,
		at > 0 && r.to <= d.seen[at-1].to:
		return FragmentDuplicate
	case at < len(d.seen) && d.seen[at].from < r.to,
		at > 0 && r.from < d.seen[at-1].to:
		return FragmentOverlap
	}
	if last {
		d.length = r.to
	}
	touchesNext := at < len(d.seen) && d.seen[at].from == r.to
	touchesPrevious := at > 0 && d.seen[at-1].to == r.from
	switch {
	case touchesPrevious && touchesNext:
		d.seen[at-1].to = d.seen[at].to
		d.seen = slices.Delete(d.seen, at, at+1)
	case touchesPrevious:
		d.seen[at-1].to = r.to
	case touchesNext:
		d.seen[at].from = r.from
	case len(d.seen) >= maxFragmentRanges:
		return FragmentNoRoom
	default:
		d.seen = slices.Insert(d.seen, at, r)
	}
	return FragmentKnown
}
