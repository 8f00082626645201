package balancer

import (
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/lvsd/lvsd/stack"
	"github.com/lvsd/lvsd/stack/packettest"
)

func itoa(n int) string { return strconv.Itoa(n) }

func fragmentsOf(frame []byte, id uint32, size int) [][]byte {
	return packettest.Fragments(frame, id, size)
}

// reassemble puts frames together as their receiver would, and reads the datagram.
func (r *rig) reassemble(frames [][]byte) string {
	r.Helper()
	var packets [][]byte
	for _, frame := range frames {
		packets = append(packets, frame[stack.OffloadLen:])
	}
	packet, err := packettest.Reassemble(packets)
	if err != nil {
		return fmt.Sprintf("%d frames: %v", len(frames), err)
	}
	packettest.Check(r, packet)
	return r.book.describe(r, packet)
}

// permutations calls visit with every order of n things.
func permutations(n int, visit func(order []int)) {
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	var choose func(k int)
	choose = func(k int) {
		if k == n {
			visit(order)
			return
		}
		for i := k; i < n; i++ {
			order[k], order[i] = order[i], order[k]
			choose(k + 1)
			order[k], order[i] = order[i], order[k]
		}
	}
	choose(0)
}

// TestFragmentsInAnyOrder takes a request and a reply of four fragments through the director in every order. What comes
// out is the datagram, translated.
func TestFragmentsInAnyOrder(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		what := r.connected()
		id := uint32(0)
		permutations(4, func(order []int) {
			for in, want := range map[string]string{
				"c1 -> vip " + what: "c1 -> rs1 " + what,
				"rs1 -> c1 " + what: "vip -> c1 " + what,
			} {
				id++
				frames := fragmentsOf(r.book.frame(r, in+" len=1500"), id, 400)
				if len(frames) != 4 {
					r.Fatalf("%d fragments", len(frames))
				}
				var out [][]byte
				for _, i := range order {
					out = append(out, r.forward(frames[i])...)
				}
				if got := r.reassemble(out); got != want {
					r.Fatalf("%s in order %v became %s, want %s", in, order, got, want)
				}
			}
		})
		if drops := r.Status().Drops; len(drops) != 0 {
			r.Errorf("drops: %v", drops)
		}
	})
}

// TestFirstFragmentOpens: a datagram's first fragment is scheduled, once, and all count for the server that it went to.
func TestFirstFragmentOpens(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.setServers("rs1", "rs2")
		frames := fragmentsOf(r.book.frame(r, "c1 -> vip UDP len=4000"), 9, 1400)
		slices.Reverse(frames)
		if got := r.reassemble(r.forward(frames...)); got != "c1 -> rs1 UDP" {
			r.Errorf("got %s", got)
		}
		bytes := uint64(0)
		for _, frame := range frames {
			bytes += uint64(len(frame) - stack.OffloadLen)
		}
		want := Traffic{Conns: 1, InPackets: uint64(len(frames)), InBytes: bytes}
		if got := r.server("rs1").Traffic; got != want {
			r.Errorf("counted %+v, want %+v", got, want)
		}
	}, "udp4", "udp6")
}

// TestFragmentsWithoutAddressOfOurs are sent on like any packet that is none of ours.
func TestFragmentsWithoutAddressOfOurs(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		for _, in := range []string{"rs1 -> other UDP", "rs1 -> other PING", "rs1 -> other protocol=47"} {
			frames := r.fragments(in+" len=1500", 400)
			slices.Reverse(frames)
			if got := r.reassemble(r.forward(frames...)); got != in {
				r.Errorf("%s became %s", in, got)
			}
		}
	}, "udp4", "udp6")
}

// TestLaterFragmentsOfAnAnsweredOne: one answer is enough for a datagram. Later fragments are refused, whether they come
// after the first one or before it.
func TestLaterFragmentsOfAnAnsweredOne(t *testing.T) {
	for _, reversed := range []bool{false, true} {
		t.Run(fmt.Sprintf("reversed=%v", reversed), func(t *testing.T) {
			everyNetwork(t, func(r *rig) {
				r.setServers()
				id := 0
				for in, want := range map[string]string{
					"c1 -> closed UDP":      "vip -> c1 unreachable-port {c1 -> closed UDP}",
					"c1 -> vip UDP":         "vip -> c1 unreachable-port {c1 -> vip UDP}",
					"c1 -> vip protocol=47": "vip -> c1 unreachable-protocol {c1 -> vip protocol=47}",
					"c1 -> closed ACK":      "closed -> c1 RST",
				} {
					id++
					frames := r.fragments(in+" len=2000 id="+itoa(id), 400)
					if reversed {
						slices.Reverse(frames)
					}
					before := r.Status().Drops["fragment_refused"]
					out := r.forward(frames...)
					if len(out) != 1 {
						r.Errorf("%s in %d fragments is answered by %d frames", in, len(frames), len(out))
						continue
					}
					got := r.answerToFragment(out[0])
					if got != want {
						r.Errorf("%s is answered by %s, want %s", in, got, want)
					}
					if drops := r.Status().Drops["fragment_refused"] - before; int(drops) != len(frames)-1 {
						r.Errorf("%s: %d of %d later fragments are counted", in, drops, len(frames)-1)
					}
				}
			}, "udp4", "udp6")
		})
	}
}

// answerToFragment reads an answer. A quotation of a first fragment is not a whole packet, whatever its length says.
func (r *rig) answerToFragment(frame []byte) string {
	r.Helper()
	packet := slices.Clone(frame[stack.OffloadLen:])
	packettest.Check(r, packet)
	h, err := packettest.Walk(packet)
	if err != nil {
		r.Fatal(err)
	}
	if h.Protocol != stack.ProtocolTCP {
		packet = packet[:len(packet)-1]
	}
	return r.book.describe(r, packet)
}

// TestFragmentedEcho is answered fragment by fragment; together they are the reply.
func TestFragmentedEcho(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		id := uint32(0)
		permutations(3, func(order []int) {
			id++
			frames := fragmentsOf(r.book.frame(r, "c1 -> vip PING len=3000"), id, 1400)
			var out [][]byte
			for _, i := range order {
				out = append(out, r.forward(frames[i])...)
			}
			if got := r.reassemble(out); got != "vip -> c1 PONG" {
				r.Fatalf("in order %v: %s", order, got)
			}
		})
	}, "udp4", "udp6")
}

// TestFragmentsOfManyWorkers: what one worker has seen of a datagram the other knows.
func TestFragmentsOfManyWorkers(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		what := r.connected()
		workers := []*Worker{r.worker, r.NewWorker()}
		defer workers[1].Close()
		id := uint32(0)
		permutations(3, func(order []int) {
			for assignment := range 8 {
				id++
				frames := fragmentsOf(r.book.frame(r, "c1 -> vip "+what+" len=1100"), id, 400)
				var out [][]byte
				for _, i := range order {
					for _, frame := range workers[assignment>>i&1].Forward([][]byte{frames[i]}, r.now) {
						out = append(out, slices.Clone(frame))
					}
				}
				if got := r.reassemble(out); got != "c1 -> rs1 "+what {
					r.Fatalf("in order %v, workers %03b: %s", order, assignment, got)
				}
			}
		})
	})
}

// TestFragmentTrouble counts what is wrong with fragments by its kind.
func TestFragmentTrouble(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.connected()
		count := func(frames ...[]byte) (passed int, drops string) {
			before := r.Status().Drops
			passed = len(r.forward(frames...))
			return passed, r.outcome(before, nil, "")
		}
		cut := func(id uint32) [][]byte { return fragmentsOf(r.book.frame(r, "c1 -> vip UDP len=1500"), id, 400) }

		f := cut(1)
		again := cut(1)
		passed, drops := count(f[0], f[1], again[1], f[2], again[2])
		if passed != 3 || drops != "drop fragment_duplicate & drop fragment_duplicate" {
			r.Errorf("duplicates: %d passed, %s", passed, drops)
		}
		f = cut(2)
		other := fragmentsOf(r.book.frame(r, "c1 -> vip UDP len=1500"), 2, 408)
		passed, drops = count(f[0], other[1], f[2], f[3])
		if passed != 2 || drops != "drop fragment_overlap & drop fragment_overlap" {
			r.Errorf("overlaps: %d passed, %s", passed, drops)
		}
		f = cut(3)
		if passed, drops := count(f[1], f[2]); passed != 0 || drops != "nothing" {
			r.Errorf("waiting: %d passed, %s", passed, drops)
		}
		r.now += 5 * time.Second
		r.script(`expire`)
		if got := r.Status().Drops["fragment_orphan"]; got != 2 {
			r.Errorf("%d fragments that waited in vain are counted, want 2", got)
		}
		if passed, _ := count(f[0]); passed != 1 {
			r.Error("the first fragment is refused when its later ones are forgotten")
		}
	}, "udp4", "udp6")
}

// TestHeldFragmentsAreCountedOnce: fragments that waited and were sent on were never dropped.
func TestHeldFragmentsAreCountedOnce(t *testing.T) {
	r := newRig(t, "udp4")
	frames := r.fragments("c1 -> vip UDP len=1500", 400)
	slices.Reverse(frames)
	out := r.forward(frames...)
	if got := r.Status(); len(out) != len(frames) || got.Frames.In != 4 || got.Frames.Out != 4 || len(got.Drops) != 0 {
		r.Errorf("%+v, drops %v", got.Frames, got.Drops)
	}
}

// TestFragmentsTooBig: the error says what fits, and the datagram's other fragments are no concern of its receiver.
func TestFragmentsTooBig(t *testing.T) {
	everyNetwork(t, func(r *rig) {
		r.connected()
		r.path("rs1", Path{MTU: 1300})
		frames := fragmentsOf(r.book.frame(r, "c1 -> vip UDP len=4000 df"), 5, 1400)
		if out := r.forward(frames[0]); len(out) != 1 || r.answerToFragment(out[0]) != "vip -> c1 too-big=1300 {c1 -> vip UDP}" {
			r.Errorf("%d frames came out", len(out))
		}
	}, "udp6")
}
