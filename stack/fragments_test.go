package stack_test

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lvsd/lvsd/stack"
	"github.com/lvsd/lvsd/stack/packettest"
)

// piece is a fragment by what Fragments looks at. Offsets are in bytes.
type piece struct {
	id       uint32
	from, to int
	last     bool
}

// frame builds the piece as one of a UDP datagram from the client to the VIP.
func (x piece) frame(f family) []byte {
	n := x.to - x.from
	data := bytes.Repeat([]byte{byte(x.from / 8)}, n)
	if x.from == 0 {
		copy(data, wire("03e80035 40000000")) // a UDP header that asks for more
	}
	bits := uint16(x.from)
	if f.vip.Is4() {
		bits = uint16(x.from / 8)
		if !x.last {
			bits |= 0x2000
		}
		frame := f.request().Frame(stack.ProtocolUDP, data)
		frame = edit(frame, 4, byte(x.id>>8), byte(x.id), byte(bits>>8), byte(bits))
		return resealed4(frame)
	}
	if !x.last {
		bits |= 1
	}
	h := []byte{stack.ProtocolUDP, 0, byte(bits >> 8), byte(bits), byte(x.id >> 24), byte(x.id >> 16), byte(x.id >> 8), byte(x.id)}
	return f.request().Frame(packettest.Fragment, slices.Concat(h, data))
}

// memory drives a stack.Fragments as a director does.
type memory struct {
	*stack.Fragments[string]
	t testing.TB
	f family
}

func newMemory(t testing.TB, f family) memory {
	return memory{stack.NewFragments[string](), t, f}
}

// put hands a piece over at a time and returns the verdict, the fate if there is one, and the frames that are free to go.
func (m memory) put(x piece, fate string, now time.Duration) (stack.FragmentVerdict, string, [][]byte) {
	m.t.Helper()
	frame := x.frame(m.f)
	p := decode(m.t, frame)
	if !p.Fragmented {
		m.t.Fatalf("%+v is no fragment to Decode", x)
	}
	if p.Kind == stack.KindLaterFragment {
		got, verdict := m.Later(p, now)
		clear(frame) // it is borrowed: what waits must be a copy
		if verdict == stack.FragmentKnown {
			return verdict, got, [][]byte{x.frame(m.f)}
		}
		return verdict, "", nil
	}
	waited, verdict := m.First(p, fate, now)
	if verdict == stack.FragmentKnown {
		return verdict, fate, append([][]byte{frame}, waited...)
	}
	if len(waited) > 0 {
		m.t.Errorf("%+v is refused, but %d frames are set free", x, len(waited))
	}
	return verdict, "", nil
}

// wantHeld checks how many datagrams are remembered and how many frames wait, and that the bytes are accounted for.
func (m memory) wantHeld(datagrams, frames int) {
	m.t.Helper()
	gotDatagrams, gotFrames, accounted, really := m.Held()
	if gotDatagrams != datagrams || gotFrames != frames || accounted != really {
		m.t.Errorf("%d datagrams with %d frames of %d bytes (accounted for: %d), want %d with %d",
			gotDatagrams, gotFrames, really, accounted, datagrams, frames)
	}
}

const (
	known     = stack.FragmentKnown
	held      = stack.FragmentHeld
	duplicate = stack.FragmentDuplicate
	overlap   = stack.FragmentOverlap
	noRoom    = stack.FragmentNoRoom
)

// permutations returns all orders of n things.
func permutations(n int) (all [][]int) {
	if n == 0 {
		return [][]int{nil}
	}
	for _, p := range permutations(n - 1) {
		for at := range n {
			all = append(all, slices.Insert(slices.Clone(p), at, n-1))
		}
	}
	return all
}

// In any order every fragment comes out once, as it went in, with the fate of the first; and then nothing is left.
func TestFragmentsAnyOrder(t *testing.T) {
	pieces := []piece{{1, 0, 24, false}, {1, 24, 32, false}, {1, 32, 80, false}, {1, 80, 88, false}, {1, 88, 91, true}}
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			for _, order := range permutations(len(pieces)) {
				m := newMemory(t, f)
				var out [][]byte
				for _, i := range order {
					verdict, fate, frames := m.put(pieces[i], "server 7", 0)
					if verdict != known && verdict != held || verdict == known && fate != "server 7" {
						t.Fatalf("%v: piece %d has verdict %d, fate %q", order, i, verdict, fate)
					}
					out = append(out, frames...)
				}
				if len(out) != len(pieces) {
					t.Fatalf("%v: %d fragments came out", order, len(out))
				}
				for _, x := range pieces {
					if !slices.ContainsFunc(out, func(b []byte) bool { return bytes.Equal(b, x.frame(f)) }) {
						t.Fatalf("%v: %+v did not come out as it went in", order, x)
					}
				}
				m.wantHeld(0, 0)
				if m.Orphans() != 0 {
					t.Fatalf("%v: %d orphans", order, m.Orphans())
				}
			}
		})
	}
}

// TestFragmentsVerdicts has pieces of one datagram in the order of arrival.
func TestFragmentsVerdicts(t *testing.T) {
	type step struct {
		from, to int
		last     bool
		want     stack.FragmentVerdict
	}
	const more, last = false, true
	for _, tt := range []struct {
		name    string
		steps   []step
		frames  int // that wait in the end
		orphans uint64
	}{
		{"duplicate, waiting", []step{{24, 48, more, held}, {24, 48, more, duplicate}}, 1, 0},
		{"duplicate, known", []step{{0, 24, more, known}, {24, 48, more, known}, {24, 48, more, duplicate}}, 0, 0},
		{"duplicate of the last", []step{{24, 29, last, held}, {24, 29, last, duplicate}}, 1, 0},
		{"duplicate inside what has grown together", []step{{8, 16, more, held}, {16, 24, more, held}, {24, 32, more, held},
			{16, 24, more, duplicate}}, 3, 0},
		{"contained at the start", []step{{8, 32, more, held}, {8, 16, more, duplicate}}, 1, 0},
		{"contained in the middle", []step{{8, 32, more, held}, {16, 24, more, duplicate}}, 1, 0},
		{"contained at the end", []step{{8, 32, more, held}, {24, 32, more, duplicate}}, 1, 0},
		{"overlap from below", []step{{16, 32, more, held}, {8, 24, more, overlap}}, 0, 1},
		{"overlap from above", []step{{16, 32, more, held}, {24, 40, more, overlap}}, 0, 1},
		{"overlap around", []step{{16, 32, more, held}, {8, 40, more, overlap}}, 0, 1},
		{"overlap around, same start", []step{{16, 32, more, held}, {16, 40, more, overlap}}, 0, 1},
		{"overlap of two", []step{{8, 16, more, held}, {24, 32, more, held}, {8, 32, more, overlap}}, 0, 2},
		{"overlap by the first", []step{{16, 32, more, held}, {0, 24, more, overlap}}, 0, 1},
		{"overlap of the first", []step{{0, 24, more, known}, {16, 32, more, overlap}}, 0, 0},
		{"teardrop", []step{{0, 40, more, known}, {24, 28, last, overlap}}, 0, 0},
		{"an overlap spoils all that follows", []step{{16, 32, more, held}, {8, 24, more, overlap}, {40, 48, more, overlap},
			{0, 8, more, overlap}, {48, 51, last, overlap}}, 0, 1},
		{"past the end", []step{{24, 29, last, held}, {32, 40, more, overlap}}, 0, 1},
		{"to the end, but more to come", []step{{24, 32, last, held}, {16, 32, more, overlap}}, 0, 1},
		{"at the end, but more to come", []step{{16, 24, last, held}, {24, 32, more, overlap}}, 0, 1},
		{"the end before what is there", []step{{32, 40, more, held}, {16, 24, last, overlap}}, 0, 1},
		{"two ends, the later one shorter", []step{{24, 32, last, held}, {8, 16, last, overlap}}, 0, 1},
		{"two ends, the later one longer", []step{{24, 32, last, held}, {40, 48, last, overlap}}, 0, 1},
		{"two ends at different bytes of one fragment", []step{{24, 32, last, held}, {24, 31, last, overlap}}, 0, 1},
	} {
		for _, f := range families {
			t.Run(f.name+" "+tt.name, func(t *testing.T) {
				m := newMemory(t, f)
				for i, s := range tt.steps {
					if got, _, _ := m.put(piece{1, s.from, s.to, s.last}, "", 0); got != s.want {
						t.Fatalf("step %d, %d to %d: verdict %d, want %d", i+1, s.from, s.to, got, s.want)
					}
				}
				m.wantHeld(1, tt.frames)
				if m.Orphans() != tt.orphans {
					t.Errorf("%d orphans, want %d", m.Orphans(), tt.orphans)
				}
				m.Expire(stack.FragmentLifetime)
				m.wantHeld(0, 0)
				if want := tt.orphans + uint64(tt.frames); m.Orphans() != want {
					t.Errorf("%d orphans in the end, want %d", m.Orphans(), want)
				}
			})
		}
	}
}

// A datagram is named by its addresses, its identification, and in IPv4 its protocol.
func TestFragmentsNames(t *testing.T) {
	later := func(h packettest.IP, id uint32, protocol uint8) []byte {
		return packettest.Fragments(h.Frame(protocol, text(64)), id, 32)[1]
	}
	for _, f := range families {
		other := f.request()
		other.Src = f.router
		for _, tt := range []struct {
			name  string
			frame []byte
			same  bool
		}{
			{"the same", later(f.request(), 1, stack.ProtocolUDP), true},
			{"another identification", later(f.request(), 2, stack.ProtocolUDP), false},
			{"another source", later(other, 1, stack.ProtocolUDP), false},
			{"the other way", later(f.reply(), 1, stack.ProtocolUDP), false},
			{"another protocol", later(f.request(), 1, 99), f == v6},
		} {
			t.Run(f.name+" "+tt.name, func(t *testing.T) {
				m := newMemory(t, f)
				m.put(piece{1, 0, 32, false}, "fate", 0)
				fate, verdict := m.Later(decode(t, tt.frame), 0)
				if same := verdict == known; same != tt.same || same && fate != "fate" {
					t.Errorf("verdict %d, fate %q", verdict, fate)
				}
			})
		}
	}
}

// An identification is used again: each first fragment has the fate of its own datagram.
func TestFragmentsIdentificationAgain(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			m := newMemory(t, f)
			want := func(x piece, put string, now time.Duration, verdict stack.FragmentVerdict, fate string) {
				t.Helper()
				if gotVerdict, got, _ := m.put(x, put, now); gotVerdict != verdict || got != fate {
					t.Errorf("%+v: verdict %d, fate %q, want %d, %q", x, gotVerdict, got, verdict, fate)
				}
			}
			first, middle, last := piece{1, 0, 8, false}, piece{1, 8, 16, false}, piece{1, 16, 20, true}
			want(first, "one", 0, known, "one") // whole, then again
			want(middle, "", 0, known, "one")
			want(last, "", 0, known, "one")
			m.wantHeld(0, 0)
			want(first, "two", 0, known, "two") // the rest of it is lost, then again
			want(middle, "", 0, known, "two")
			want(first, "three", 1, known, "three")
			want(middle, "", 1, known, "three")
			want(piece{1, 16, 40, true}, "", 1, known, "three") // of another length than the ones before
			m.wantHeld(0, 0)
			want(piece{1, 24, 40, false}, "", 1, held, "") // spoiled, then again
			want(piece{1, 16, 32, false}, "", 1, overlap, "")
			want(first, "four", 1, overlap, "")
			want(first, "five", 2, known, "five")
			want(piece{1, 8, 16, true}, "", 2, known, "five")
			m.wantHeld(0, 0)
		})
	}
}

// A datagram that starts anew has all its time before it.
func TestFragmentsAnewLiveAnew(t *testing.T) {
	m := newMemory(t, v6)
	m.put(piece{1, 0, 8, false}, "old", 0)
	m.put(piece{1, 0, 8, false}, "new", stack.FragmentLifetime-1)
	if verdict, fate, _ := m.put(piece{1, 8, 16, true}, "", stack.FragmentLifetime+1); verdict != known || fate != "new" {
		t.Errorf("2 ns after its first fragment: verdict %d, fate %q", verdict, fate)
	}
}

func TestFragmentsExpire(t *testing.T) {
	const life = stack.FragmentLifetime
	m := newMemory(t, v6)
	m.put(piece{1, 0, 8, false}, "one", 0)
	m.put(piece{2, 8, 16, false}, "", 0)
	m.put(piece{3, 8, 16, false}, "", 1)
	m.put(piece{3, 16, 24, false}, "", life-1)
	m.wantHeld(3, 3)
	if verdict, fate, _ := m.put(piece{1, 8, 16, false}, "", life-1); verdict != known || fate != "one" {
		t.Errorf("just in time: verdict %d, fate %q", verdict, fate)
	}
	m.Expire(life)
	m.wantHeld(1, 2)
	if m.Orphans() != 1 {
		t.Errorf("%d orphans, want 1", m.Orphans())
	}
	if verdict, _, _ := m.put(piece{1, 16, 24, false}, "", life); verdict != held {
		t.Errorf("too late: verdict %d, want held", verdict)
	}
	m.put(piece{4, 0, 8, false}, "four", life+1) // expires too
	m.wantHeld(2, 1)
	if m.Orphans() != 3 {
		t.Errorf("%d orphans, want 3", m.Orphans())
	}
}

func TestFragmentsDatagramBound(t *testing.T) {
	m := newMemory(t, v6)
	for id := range uint32(stack.MaxDatagrams) {
		x := piece{id, 8, 16, false}
		if id%2 == 0 {
			x = piece{id, 0, 8, false}
		}
		m.put(x, "fate", time.Duration(id))
	}
	m.wantHeld(stack.MaxDatagrams, stack.MaxDatagrams/2)
	const now = stack.MaxDatagrams
	m.put(piece{1 << 20, 0, 8, false}, "new", now) // instead of 0
	m.put(piece{1 << 21, 0, 8, false}, "new", now) // instead of 1
	m.wantHeld(stack.MaxDatagrams, stack.MaxDatagrams/2-1)
	if m.Orphans() != 1 {
		t.Errorf("%d orphans, want 1", m.Orphans())
	}
	if verdict, _, _ := m.put(piece{2, 8, 16, false}, "", now); verdict != known {
		t.Errorf("number 2 has verdict %d, want known: only the oldest gives way", verdict)
	}
	if verdict, _, _ := m.put(piece{0, 8, 16, false}, "", now); verdict != held {
		t.Errorf("number 0 has verdict %d, want held: it was to give way", verdict)
	}
}

// fill holds fragments until there is no room for another one of 60000 bytes, and returns how many.
func (m memory) fill() (frames int) {
	m.t.Helper()
	for id := uint32(1000); ; id++ {
		switch verdict, _, _ := m.put(piece{id, 8, 60008, false}, "", 0); verdict {
		case held:
			frames++
		case noRoom:
			return frames
		default:
			m.t.Fatalf("verdict %d", verdict)
		}
		if id > 1000+stack.MaxHeldBytes/60000 {
			m.t.Fatal("no bound in sight")
		}
	}
}

func TestFragmentsByteBound(t *testing.T) {
	m := newMemory(t, v6)
	frames := m.fill()
	if _, _, accounted, really := m.Held(); accounted != really || really > stack.MaxHeldBytes || really < stack.MaxHeldBytes-61000 {
		t.Errorf("full with %d bytes, accounted for: %d", really, accounted)
	}
	// What need not wait goes on, and makes room where others wait for it.
	if verdict, _, _ := m.put(piece{1, 0, 8, false}, "fate", 0); verdict != known {
		t.Errorf("first fragment: verdict %d", verdict)
	}
	if verdict, _, _ := m.put(piece{1, 8, 60008, false}, "", 0); verdict != known {
		t.Errorf("later fragment of a known datagram: verdict %d", verdict)
	}
	if _, _, out := m.put(piece{1000, 0, 8, false}, "fate", 0); len(out) != 2 {
		t.Errorf("%d frames come out, want 2", len(out))
	}
	if verdict, _, _ := m.put(piece{2, 8, 60008, false}, "", 0); verdict != held {
		t.Errorf("there is room again, but verdict %d", verdict)
	}
	if m.Orphans() != 0 {
		t.Errorf("%d orphans", m.Orphans())
	}
	m.Expire(stack.FragmentLifetime)
	m.wantHeld(0, 0)
	if m.Orphans() != uint64(frames) {
		t.Errorf("%d orphans, want %d", m.Orphans(), frames)
	}
}

// A fragment for which there was no room has not been seen: when it comes again it is no duplicate.
func TestFragmentsNoRoomIsNotSeen(t *testing.T) {
	m := newMemory(t, v6)
	m.fill()
	x := piece{1, 8, 60008, false}
	if verdict, _, _ := m.put(x, "", 0); verdict != noRoom {
		t.Fatalf("verdict %d, want no room", verdict)
	}
	m.put(piece{1, 0, 8, false}, "fate", 0)
	if verdict, _, _ := m.put(x, "", 0); verdict == duplicate {
		t.Error("a fragment that never went anywhere is called a duplicate")
	}
}

// scatter puts as many pieces of a datagram that do not touch as are allowed.
func (m memory) scatter(id uint32) {
	m.t.Helper()
	for i := range stack.MaxFragmentRanges {
		if verdict, _, _ := m.put(piece{id, 16 * (i + 1), 16*(i+1) + 8, false}, "", 0); verdict != held {
			m.t.Fatalf("piece %d: verdict %d", i, verdict)
		}
	}
}

func TestFragmentsRangeBound(t *testing.T) {
	m := newMemory(t, v6)
	m.scatter(1)
	if verdict, _, _ := m.put(piece{1, 4096, 4104, false}, "", 0); verdict != noRoom {
		t.Errorf("one more range: verdict %d, want no room", verdict)
	}
	if verdict, _, _ := m.put(piece{2, 4096, 4104, false}, "", 0); verdict != held {
		t.Errorf("another datagram: verdict %d, want held", verdict)
	}
	_, frames, accounted, really := m.Held()
	if frames > stack.MaxFragmentRanges+1 || accounted != really {
		t.Errorf("%d frames of %d bytes, accounted for: %d", frames, really, accounted)
	}
	m.Expire(stack.FragmentLifetime)
	m.wantHeld(0, 0)
	if m.Orphans() < stack.MaxFragmentRanges {
		t.Errorf("%d orphans, want at least %d", m.Orphans(), stack.MaxFragmentRanges)
	}
}

// A first fragment that is refused itself gives no fate to the others.
func TestFragmentsRefusedFirst(t *testing.T) {
	m := newMemory(t, v6)
	m.scatter(1)
	if verdict, _, _ := m.put(piece{1, 0, 8, false}, "fate", 0); verdict == known {
		t.Fatal("the test is wrong: it is let go")
	}
	if verdict, _, _ := m.put(piece{1, 24, 32, false}, "", 0); verdict == known {
		t.Error("a later fragment goes where its first fragment was not let go")
	}
}

// A reordered datagram of the largest size in the smallest fragments of a usual link is within the bounds.
func TestFragmentsLargestDatagram(t *testing.T) {
	for _, f := range families {
		frames := packettest.Fragments(f.request().UDP(1000, 53, text(65000)), 7, 1232)
		for _, order := range []string{"backwards", "every second one first"} {
			m, out := newMemory(t, f), 0
			slices.Reverse(frames)
			sorted := frames
			if order != "backwards" {
				sorted = nil
				for _, start := range []int{0, 1} {
					for i := start; i < len(frames); i += 2 {
						sorted = append(sorted, frames[i])
					}
				}
			}
			for _, frame := range sorted {
				p := decode(t, frame)
				if p.Kind == stack.KindLaterFragment {
					if _, verdict := m.Later(p, 0); verdict == known {
						out++
					} else if verdict != held {
						t.Fatalf("%s %s: verdict %d", f.name, order, verdict)
					}
				} else if waited, verdict := m.First(p, "", 0); verdict == known {
					out += 1 + len(waited)
				}
			}
			if out != len(frames) {
				t.Errorf("%s %s: %d of %d fragments came out", f.name, order, out, len(frames))
			}
			m.wantHeld(0, 0)
		}
	}
}

// Queues share the memory.
func TestFragmentsConcurrently(t *testing.T) {
	m := newMemory(t, v6)
	var wg sync.WaitGroup
	var mu sync.Mutex
	out := map[string]int{}
	const workers, datagrams = 4, 200
	for w := range workers {
		wg.Go(func() {
			for id := range uint32(datagrams) {
				// Each worker has one fragment of each datagram.
				x := piece{id, 8 * w, 8*w + 8, w == workers-1}
				verdict, fate, frames := m.put(x, fmt.Sprint(id), time.Duration(id))
				if verdict != known && verdict != held || verdict == known && fate != fmt.Sprint(id) {
					t.Errorf("%+v: verdict %d, fate %q", x, verdict, fate)
				}
				mu.Lock()
				for _, f := range frames {
					out[string(f)]++
				}
				mu.Unlock()
				m.Expire(time.Duration(id))
				m.Orphans()
			}
		})
	}
	wg.Wait()
	if len(out) != workers*datagrams {
		t.Errorf("%d fragments came out, want %d", len(out), workers*datagrams)
	}
	for f, n := range out {
		if n != 1 {
			t.Errorf("came out %d times: %x", n, f)
		}
	}
	m.wantHeld(0, 0)
}
