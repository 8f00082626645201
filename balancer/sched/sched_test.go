package sched

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/lvsd/lvsd/stack"
)

// pool is a service's servers as the director keeps them, with names by which a test tells them apart.
type pool struct {
	t         testing.TB
	scheduler Scheduler
	servers   []*Server // newest first
	names     map[*Server]string
}

func newPool(t testing.TB, scheduler string) *pool {
	return &pool{t: t, scheduler: New(scheduler), names: make(map[*Server]string)}
}

func (p *pool) add(name string, weight int) *Server {
	s := new(Server)
	s.SetWeight(weight)
	p.names[s] = name
	p.servers = append([]*Server{s}, p.servers...)
	p.update()
	return s
}

func (p *pool) update() { p.scheduler.Update(slices.Clone(p.servers)) }

func (p *pool) find(name string) *Server {
	for s, n := range p.names {
		if n == name {
			return s
		}
	}
	p.t.Fatalf("no server %s", name)
	return nil
}

func (p *pool) edit(name string, weight int) {
	p.find(name).SetWeight(weight)
	p.update()
}

func (p *pool) remove(name string) {
	gone := p.find(name)
	p.servers = slices.DeleteFunc(slices.Clone(p.servers), func(s *Server) bool { return s == gone })
	delete(p.names, gone)
	p.update()
}

// pick schedules n connections and returns the names. open tells what becomes of the picked server's counters.
func (p *pool) pick(n int, open func(*Server)) string {
	var picked []string
	for range n {
		i := p.scheduler.Schedule(stack.Flow{})
		if i == None {
			picked = append(picked, "-")
			continue
		}
		s := p.servers[i]
		picked = append(picked, p.names[s])
		if open != nil {
			open(s)
		}
	}
	return strings.Join(picked, " ")
}

// halfOpen is a TCP connection that stays in SYN_RECV: active.
func halfOpen(s *Server) {
	s.AddTotal(1)
	s.AddActive(1)
}

func expect(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("picked %s\n  want %s", got, want)
	}
}

// TestRoundRobin holds rr against the sequences recorded from the kernel in ipvs.md 2.1.
func TestRoundRobin(t *testing.T) {
	p := newPool(t, "rr")
	for _, name := range []string{"11", "12", "13"} {
		p.add(name, 1)
	}
	expect(t, p.pick(7, nil), "13 12 11 13 12 11 13")
	p.add("14", 1)
	expect(t, p.pick(6, nil), "12 11 14 13 12 11")
	p.remove("12")
	expect(t, p.pick(5, nil), "14 13 11 14 13")
}

func TestRoundRobinSkipsQuiescedAndOverloaded(t *testing.T) {
	p := newPool(t, "rr")
	for _, name := range []string{"11", "12", "13"} {
		p.add(name, 1)
	}
	p.edit("12", 0)
	expect(t, p.pick(4, nil), "13 11 13 11")
	p.find("13").SetOverloaded(true)
	expect(t, p.pick(2, nil), "11 11")
	p.edit("11", 0)
	expect(t, p.pick(2, nil), "- -")
	p.edit("11", 5)
	expect(t, p.pick(2, nil), "11 11")
}

func TestRoundRobinLosesTheServerUnderItsCursor(t *testing.T) {
	p := newPool(t, "rr")
	for _, name := range []string{"11", "12", "13", "14"} {
		p.add(name, 1)
	}
	expect(t, p.pick(2, nil), "14 13")
	p.remove("13") // the cursor falls back to 14
	expect(t, p.pick(3, nil), "12 11 14")
	p.remove("14") // the cursor stands before the first
	expect(t, p.pick(3, nil), "12 11 12")
}

// TestWeightedRoundRobin holds wrr against the table recorded from the kernel in ipvs.md 2.2. Servers are added one at
// a time, which the phase shows.
func TestWeightedRoundRobin(t *testing.T) {
	for _, c := range []struct {
		weights [3]int
		want    string
	}{
		{[3]int{4, 3, 2}, "13 12 11 11 12 11 13 12 11 13 12 11 11 12"},
		{[3]int{5, 1, 1}, "13 12 11 11 11 11 11 13 12 11 11 11 11 11"},
		{[3]int{3, 0, 1}, "13 11 11 11 13 11 11 11 13 11 11 11 13 11"},
		{[3]int{10, 20, 30}, "13 12 11 13 13 12 13 12 11 13 13 12 13 12"},
		{[3]int{1, 1, 1}, "13 12 11 13 12 11 13 12 11 13 12 11 13 12"},
	} {
		t.Run(fmt.Sprint(c.weights), func(t *testing.T) {
			p := newPool(t, "wrr")
			for i, w := range c.weights {
				p.add(fmt.Sprint(11+i), w)
			}
			expect(t, p.pick(14, nil), c.want)
		})
	}
}

func TestWeightedRoundRobinAfterAnEdit(t *testing.T) {
	p := newPool(t, "wrr")
	for i, w := range []int{4, 3, 2} {
		p.add(fmt.Sprint(11+i), w)
	}
	p.pick(4, nil)
	p.edit("13", 8)
	expect(t, p.pick(12, nil), "13 11 13 12 11 13 12 11 13 12 11 13")
}

func TestWeightedRoundRobinWithNobody(t *testing.T) {
	p := newPool(t, "wrr")
	expect(t, p.pick(2, nil), "- -")
	p.add("11", 0)
	expect(t, p.pick(2, nil), "- -")
	p.add("12", 3).SetOverloaded(true)
	expect(t, p.pick(2, nil), "- -")
	p.find("12").SetOverloaded(false)
	expect(t, p.pick(3, nil), "12 12 12")
}

// TestWeightedRoundRobinShares checks, for random weights, that a full round gives each server its weight's share.
func TestWeightedRoundRobinShares(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		p := newPool(t, "wrr")
		weights, sum := make(map[string]int), 0
		for i := range 1 + random.IntN(6) {
			w := random.IntN(12)
			p.add(fmt.Sprint(i), w)
			weights[fmt.Sprint(i)], sum = w, sum+w
		}
		if sum == 0 {
			continue
		}
		p.pick(sum, nil) // past what is left of the round that history began
		got := make(map[string]int)
		for _, name := range strings.Fields(p.pick(sum, nil)) {
			got[name]++
		}
		divisor := 0
		for _, w := range weights {
			divisor = gcd(divisor, w)
		}
		for name, w := range weights {
			if got[name] != w {
				t.Fatalf("weights %v: server %s was picked %d times in %d, want %d (divisor %d)", weights, name, got[name], sum, w, divisor)
			}
		}
	}
}

// TestLeastConnection holds lc against ipvs.md 2.3.
func TestLeastConnection(t *testing.T) {
	p := newPool(t, "lc")
	for _, name := range []string{"11", "12", "13"} {
		p.add(name, 1)
	}
	expect(t, p.pick(6, halfOpen), "13 12 11 13 12 11")
	p.edit("13", 0)
	expect(t, p.pick(4, halfOpen), "12 11 12 11")
}

// TestLeastConnectionOverhead pins how an active connection compares with inactive ones.
func TestLeastConnectionOverhead(t *testing.T) {
	p := newPool(t, "lc")
	p.add("active", 1)
	p.add("inactive", 1).AddTotal(256)
	halfOpen(p.find("active"))
	expect(t, p.pick(1, nil), "inactive") // 256 < 257
	p.find("inactive").AddTotal(1)
	expect(t, p.pick(1, nil), "inactive") // equal: the newer one
	p.find("inactive").AddTotal(1)
	expect(t, p.pick(1, nil), "active")
}

// TestWeightedLeastConnection holds wlc against ipvs.md 2.4.
func TestWeightedLeastConnection(t *testing.T) {
	p := newPool(t, "wlc")
	for i, name := range []string{"11", "12", "13"} {
		p.add(name, i+1)
	}
	expect(t, p.pick(12, halfOpen), "13 12 11 13 12 13 13 12 11 13 12 13")
}

func TestWeightedLeastConnectionHugeNumbers(t *testing.T) {
	p := newPool(t, "wlc")
	heavy := p.add("heavy", 1<<31-1)
	heavy.AddTotal(1 << 30)
	heavy.AddActive(1 << 30)
	light := p.add("light", 1)
	light.AddTotal(1)
	expect(t, p.pick(1, nil), "light") // 1/1 against about 128
	light.AddTotal(200)
	expect(t, p.pick(1, nil), "heavy")
}

func TestNames(t *testing.T) {
	names := Names()
	if !slices.IsSorted(names) || !slices.Equal(names, []string{"lc", "rr", "wlc", "wrr"}) {
		t.Errorf("Names() = %v", names)
	}
	for _, name := range names {
		if i := New(name).Schedule(stack.Flow{}); i != None {
			t.Errorf("%s without servers picks %d", name, i)
		}
	}
	if Known("") || Known("RR") {
		t.Error("a scheduler that does not exist is known")
	}
}

// BenchmarkSchedule is a decision among many servers.
func BenchmarkSchedule(b *testing.B) {
	for _, name := range Names() {
		for _, n := range []int{1, 10, 1000} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				p := newPool(b, name)
				for i := range n {
					p.add(fmt.Sprint(i), 1+i%7)
				}
				for b.Loop() {
					p.scheduler.Schedule(stack.Flow{})
				}
			})
		}
	}
}
