package stacktest

import (
	"bytes"
	"container/heap"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Faults are what links do to frames, each link and each direction by itself. Probabilities are from 0 to 1, of each
// frame: a super-packet on its way to the router, and a packet on its way to a host.
type Faults struct {
	Loss        float64
	Duplication float64
	Reordering  float64       // that a frame is held back for a moment, so that later ones overtake it
	Delay       time.Duration // of all frames
}

// longestHold bounds how long a frame is held back to be overtaken.
const longestHold = 2 * time.Millisecond

// lane is one direction of a link.
type lane struct {
	faults *atomic.Pointer[Faults]
	later  *delayer
	out    func(frame []byte)
	fate   func(frame []byte, what fate)

	mu     sync.Mutex
	random *rand.Rand
}

// fate is what a link does to a frame.
type fate string

const (
	lost       fate = "lost"
	duplicated fate = "duplicated"
	heldBack   fate = "held back"
	overflowed fate = "lost for want of room"
)

// queueLen bounds every queue of frames in this package.
const queueLen = 1 << 14

// pass sends a frame along the lane, which owns it from then on.
func (l *lane) pass(frame []byte) {
	f := l.faults.Load()
	l.mu.Lock()
	loses, repeats, holds := l.random.Float64() < f.Loss, l.random.Float64() < f.Duplication, l.random.Float64() < f.Reordering
	hold := time.Duration(l.random.Int64N(int64(longestHold)))
	l.mu.Unlock()
	if loses {
		l.fate(frame, lost)
		return
	}
	var again []byte
	if repeats {
		again = bytes.Clone(frame)
		l.fate(frame, duplicated)
	}
	delay := f.Delay
	if holds {
		l.fate(frame, heldBack)
		delay += hold
	}
	l.forward(frame, delay)
	if again != nil {
		l.forward(again, f.Delay)
	}
}

func (l *lane) forward(frame []byte, delay time.Duration) {
	if delay == 0 {
		l.out(frame)
		return
	}
	if !l.later.add(delay, func() { l.out(frame) }) {
		l.fate(frame, overflowed)
	}
}

// delayer does things later, in the order of their times, in one goroutine.
type delayer struct {
	mu      sync.Mutex
	waiting deeds
	added   uint64
	wake    chan struct{}
}

// deed is something to be done; those of the same time in the order in which they came.
type deed struct {
	due    time.Time
	number uint64
	do     func()
}

func newDelayer() *delayer { return &delayer{wake: make(chan struct{}, 1)} }

func (d *delayer) add(delay time.Duration, do func()) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.waiting) >= queueLen {
		return false
	}
	d.added++
	heap.Push(&d.waiting, deed{time.Now().Add(delay), d.added, do})
	select {
	case d.wake <- struct{}{}:
	default:
	}
	return true
}

// run does what is due until done is closed. What is not due by then is never done.
func (d *delayer) run(done <-chan struct{}) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-done:
			return
		case <-d.wake:
		case <-timer.C:
		}
		for do, wait := d.next(); ; do, wait = d.next() {
			if do == nil {
				timer.Reset(wait)
				break
			}
			do()
		}
	}
}

// next takes what is due, or tells how long nothing will be.
func (d *delayer) next() (do func(), wait time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.waiting) == 0 {
		return nil, time.Hour
	}
	if wait := time.Until(d.waiting[0].due); wait > 0 {
		return nil, wait
	}
	return heap.Pop(&d.waiting).(deed).do, 0
}

// deeds is a heap.
type deeds []deed

func (d deeds) Len() int { return len(d) }
func (d deeds) Less(i, j int) bool {
	return d[i].due.Before(d[j].due) || d[i].due.Equal(d[j].due) && d[i].number < d[j].number
}
func (d deeds) Swap(i, j int) { d[i], d[j] = d[j], d[i] }
func (d *deeds) Push(x any)   { *d = append(*d, x.(deed)) }
func (d *deeds) Pop() any {
	last := (*d)[len(*d)-1]
	*d = (*d)[:len(*d)-1]
	return last
}
