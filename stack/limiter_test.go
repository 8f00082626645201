package stack_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/lvsd/lvsd/stack"
)

// allowed counts how many of n questions at a time are answered yes.
func allowed(n int, ask func() bool) (yes int) {
	for range n {
		if ask() {
			yes++
		}
	}
	return yes
}

// TestLimiter asks many times at each of some moments: how many answers may be made then.
func TestLimiter(t *testing.T) {
	const perSecond, perAddress = false, true
	type moment struct {
		at   time.Duration
		want int
	}
	const ms, asked = time.Millisecond, 5000
	for _, tt := range []struct {
		name    string
		limits  stack.Limits
		errors  bool
		moments []moment
	}{
		{"the burst in all", stack.Limits{PerSecond: 100}, perSecond, []moment{{0, 100}, {0, 0}, {9 * ms, 0}, {10 * ms, 1}, {10 * ms, 0}}},
		{"refill in all", stack.Limits{PerSecond: 100}, perSecond, []moment{{0, 100}, {250 * ms, 25}, {255 * ms, 0}, {260 * ms, 1}}},
		{"no more than a second of rest", stack.Limits{PerSecond: 100}, perSecond, []moment{{0, 100}, {time.Hour, 100}, {time.Hour + 10*ms, 1}}},
		{"full at the start, whenever that is", stack.Limits{PerSecond: 100}, perSecond, []moment{{time.Hour, 100}, {time.Hour, 0}}},
		{"one a second", stack.Limits{PerSecond: 1}, perSecond, []moment{{0, 1}, {999 * ms, 0}, {1000 * ms, 1}, {1999 * ms, 0}, {9000 * ms, 1}}},
		{"no limit in all", stack.Limits{PerAddress: time.Second}, perSecond, []moment{{0, asked}, {0, asked}}},
		{"no limit at all", stack.Limits{}, perAddress, []moment{{0, asked}, {0, asked}}},
		{"the burst to an address", stack.Limits{PerAddress: time.Second}, perAddress, []moment{{0, 6}, {0, 0}, {999 * ms, 0}, {1000 * ms, 1}}},
		{"refill to an address", stack.Limits{PerAddress: time.Second}, perAddress, []moment{{0, 6}, {3500 * ms, 3}, {4000 * ms, 1}}},
		{"no more than six of rest", stack.Limits{PerAddress: time.Second}, perAddress, []moment{{0, 6}, {time.Hour, 6}, {time.Hour, 0}}},
		{"the limit in all holds for errors too, and what it refuses costs the address nothing",
			stack.Limits{PerAddress: time.Second, PerSecond: 4}, perAddress,
			[]moment{{0, 4}, {250 * ms, 1}, {500 * ms, 1}, {500 * ms, 0}}},
		{"errors without a limit by address", stack.Limits{PerSecond: 4}, perAddress, []moment{{0, 4}, {250 * ms, 1}, {500 * ms, 1}}},
		{"Linux's own", stack.DefaultLimits(), perAddress, []moment{{0, 6}, {1000 * ms, 1}}},
		{"a refusal costs nothing", stack.Limits{PerSecond: 10}, perSecond, []moment{{0, 10}, {50 * ms, 0}, {99 * ms, 0}, {100 * ms, 1}}},
		{"time that goes back brings nothing", stack.Limits{PerSecond: 10}, perSecond, []moment{{time.Hour, 10}, {0, 0}, {time.Hour, 0}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, to := stack.NewLimiter(tt.limits), addr(v4.client)
			for i, m := range tt.moments {
				got := allowed(asked, func() bool {
					if tt.errors {
						return l.AllowTo(to, m.at)
					}
					return l.Allow(m.at)
				})
				if got != m.want {
					t.Errorf("moment %d, %v: %d allowed, want %d", i+1, m.at, got, m.want)
				}
			}
		})
	}
}

// Errors to one address leave those to others alone; echoes and resets are not bounded by address.
func TestLimiterAddresses(t *testing.T) {
	l := stack.NewLimiter(stack.Limits{PerAddress: time.Second})
	flooded := addr(v4.client)
	allowed(1000, func() bool { return l.AllowTo(flooded, 0) })
	for _, other := range []netip.Addr{v4.router, v6.client, v6.router} {
		if n := allowed(10, func() bool { return l.AllowTo(addr(other), 0) }); n != stack.AddressBurst {
			t.Errorf("%d to %s, want %d", n, other, stack.AddressBurst)
		}
	}
	if !l.Allow(0) {
		t.Error("an answer that is not bounded by address is refused")
	}
}

// Neighbouring addresses have buckets of their own, as far as there are any: a scan cannot empty those of most clients.
func TestLimiterSpreads(t *testing.T) {
	for name, address := range map[string]func(i int) stack.Addr{
		"v4":          func(i int) stack.Addr { return stack.AddrFrom4(0xac100000 + uint32(i)) },
		"v4 networks": func(i int) stack.Addr { return stack.AddrFrom4(0x0a000001 + uint32(i)<<8) },
		"v6":          func(i int) stack.Addr { return stack.AddrFrom16([16]byte{0: 0xfd, 14: byte(i >> 8), 15: byte(i)}) },
		"v6 networks": func(i int) stack.Addr { return stack.AddrFrom16([16]byte{0: 0xfd, 6: byte(i >> 8), 7: byte(i), 15: 1}) },
	} {
		l, yes := stack.NewLimiter(stack.Limits{PerAddress: time.Second}), 0
		const addresses = 256
		for i := range addresses {
			yes += allowed(stack.AddressBurst, func() bool { return l.AllowTo(address(i), 0) })
		}
		if yes < addresses*stack.AddressBurst*3/4 {
			t.Errorf("%s: %d answers to %d addresses", name, yes, addresses)
		}
	}
}

// A bucket is never in debt and never fuller than full: against one that counts its tokens.
func TestLimiterModel(t *testing.T) {
	for _, perSecond := range []int{1, 3, 7, 1000, 12345} {
		t.Run(fmt.Sprint(perSecond), func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(perSecond), 1))
			l := stack.NewLimiter(stack.Limits{PerSecond: perSecond})
			interval := time.Second / time.Duration(perSecond)
			tokens, spent, now := perSecond, time.Duration(0), time.Duration(0) // full, and since when a token is growing
			for range 20000 {
				if r.IntN(3) == 0 {
					now += time.Duration(r.Int64N(int64(3 * interval)))
				}
				if r.IntN(2000) == 0 {
					now += 2 * time.Second
				}
				for tokens < perSecond && now-spent >= interval {
					tokens, spent = tokens+1, spent+interval
				}
				if tokens == perSecond {
					spent = now
				}
				want := tokens > 0
				if want {
					tokens--
				}
				if got := l.Allow(now); got != want {
					t.Fatalf("at %v with %d tokens: %t, want %t", now, tokens, got, want)
				}
			}
		})
	}
}

func TestLimiterAllocatesNothing(t *testing.T) {
	l, to, now := stack.NewLimiter(stack.DefaultLimits()), addr(v6.client), time.Duration(0)
	if n := testing.AllocsPerRun(100, func() { now += time.Second; l.AllowTo(to, now) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
