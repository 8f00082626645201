package stack_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lvsd/lvsd/stack"
)

// naive is Fragments in the simplest words: a datagram is a row of bytes that have been seen or not. It knows no bounds
// but time.
type naive map[uint32]*naiveDatagram

type naiveDatagram struct {
	born             time.Duration
	fate             string
	decided, spoiled bool
	seen             [512]bool
	end              int // -1 while unknown
	waiting          int
}

// put returns the verdict and fate of a piece, and how many fragments come out.
func (n naive) put(x piece, fate string, now time.Duration) (stack.FragmentVerdict, string, int) {
	n.expire(now)
	d := n[x.id]
	if d == nil {
		d = &naiveDatagram{born: now, end: -1}
		n[x.id] = d
	}
	if x.from == 0 {
		if d.decided {
			*d = naiveDatagram{born: now, end: -1}
		}
		d.decided, d.fate = true, fate
	}
	if d.spoiled {
		return overlap, "", 0
	}
	count, highest := 0, 0
	for at, seen := range d.seen {
		if seen && at >= x.from && at < x.to {
			count++
		}
		if seen {
			highest = at + 1
		}
	}
	switch {
	case d.end >= 0 && (x.to > d.end || x.last != (x.to == d.end)), x.last && highest > x.to, count > 0 && count < x.to-x.from:
		d.spoiled, d.waiting = true, 0
		return overlap, "", 0
	case count > 0:
		return duplicate, "", 0
	}
	for at := x.from; at < x.to; at++ {
		d.seen[at] = true
	}
	if x.last {
		d.end = x.to
	}
	if !d.decided {
		d.waiting++
		return held, "", 0
	}
	out := 1 + d.waiting
	d.waiting = 0
	fate = d.fate
	if d.end >= 0 && !slices.Contains(d.seen[:d.end], false) {
		delete(n, x.id)
	}
	return known, fate, out
}

func (n naive) expire(now time.Duration) {
	for id, d := range n {
		if now-d.born >= stack.FragmentLifetime {
			delete(n, id)
		}
	}
}

// Random datagrams, cut at random, in random order, with duplicates, losses and now and then a fragment of nobody's, mean
// the same to Fragments and to the naive reference.
func TestFragmentsModel(t *testing.T) {
	r := rand.New(rand.NewPCG(5722, 6946))
	for round := range 300 {
		m, model := newMemory(t, families[round%2]), naive{}
		var history []string
		now := time.Duration(0)
		for _, x := range randomPieces(r) {
			now += time.Duration(r.IntN(int(stack.FragmentLifetime / 20)))
			fate := fmt.Sprint(now)
			verdict, gotFate, frames := m.put(x, fate, now)
			wantVerdict, wantFate, out := model.put(x, fate, now)
			history = append(history, fmt.Sprintf("%v %+v: verdict %d, fate %q, %d out", now, x, verdict, gotFate, len(frames)))
			if verdict != wantVerdict || gotFate != wantFate || len(frames) != out {
				t.Fatalf("round %d: want verdict %d, fate %q, %d out\n%s", round, wantVerdict, wantFate, out, strings.Join(history, "\n"))
			}
			waiting := 0
			for _, d := range model {
				waiting += d.waiting
			}
			m.wantHeld(len(model), waiting)
		}
	}
}

// randomPieces returns the fragments of some datagrams as they arrive.
func randomPieces(r *rand.Rand) (pieces []piece) {
	for range 12 {
		id, length, at := uint32(r.IntN(6)), 1+r.IntN(200), 0
		for at < length {
			n := 8 * (1 + r.IntN(6))
			pieces = append(pieces, piece{id, at, min(at+n, length), at+n >= length})
			at += n
		}
	}
	for range r.IntN(30) {
		x := pieces[r.IntN(len(pieces))]
		switch r.IntN(3) {
		case 0: // lost
			i := slices.Index(pieces, x)
			pieces = slices.Delete(pieces, i, i+1)
		case 1: // twice
			pieces = append(pieces, x)
		case 2: // of nobody
			from := 8 * r.IntN(20)
			pieces = append(pieces, piece{x.id, from, from + 8*(1+r.IntN(6)), r.IntN(4) == 0})
		}
	}
	for i := range pieces { // not too far from its place
		j := min(len(pieces)-1, i+r.IntN(12))
		pieces[i], pieces[j] = pieces[j], pieces[i]
	}
	return slices.DeleteFunc(pieces, func(x piece) bool { return x.from == 0 && (x.last || x.to < 8) })
}
