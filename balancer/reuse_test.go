package balancer

import (
	"fmt"
	"strings"
	"testing"
)

// Scripts that take a connection of c1 with rs1 to a state.
var scriptsTo = map[string]string{
	"ESTABLISHED": `
		c1 -> vip SYN       => c1 -> rs1 SYN
		c1 -> vip ACK       => c1 -> rs1 ACK
		conn c1 -> vip ESTABLISHED 15m0s
	`,
	"SYN_RECV": `
		c1 -> vip SYN       => c1 -> rs1 SYN
		conn c1 -> vip SYN_RECV 1m0s
	`,
	"FIN_WAIT": `
		c1 -> vip SYN       => c1 -> rs1 SYN
		c1 -> vip ACK       => c1 -> rs1 ACK
		rs1 -> c1 FIN+ACK   => vip -> c1 FIN+ACK
		conn c1 -> vip FIN_WAIT 2m0s
	`,
	"CLOSE_WAIT": `
		c1 -> vip SYN       => c1 -> rs1 SYN
		c1 -> vip ACK       => c1 -> rs1 ACK
		c1 -> vip FIN+ACK   => c1 -> rs1 FIN+ACK
		conn c1 -> vip CLOSE_WAIT 1m0s
	`,
	"TIME_WAIT": `
		c1 -> vip SYN       => c1 -> rs1 SYN
		c1 -> vip ACK       => c1 -> rs1 ACK
		c1 -> vip FIN+ACK   => c1 -> rs1 FIN+ACK
		rs1 -> c1 FIN+ACK   => vip -> c1 FIN+ACK
		conn c1 -> vip TIME_WAIT 2m0s
	`,
	"CLOSE": `
		c1 -> vip SYN       => c1 -> rs1 SYN
		c1 -> vip ACK       => c1 -> rs1 ACK
		c1 -> vip RST       => c1 -> rs1 RST
		conn c1 -> vip CLOSE 10s
	`,
}

// TestConnReuseMode is ipvs.md 4.2. rs1 is the first pick of rr and rs2 the second, so who gets the SYN tells whether it
// was scheduled anew. Of a director that sees both directions FIN_WAIT is never reused, whatever the mode.
func TestConnReuseMode(t *testing.T) {
	again := "c1 -> rs2 SYN; SYN_RECV"
	for mode := range 4 {
		for state, script := range scriptsTo {
			want := "c1 -> rs1 SYN; " + map[string]string{ // INPUT SYN of the transition table
				"ESTABLISHED": "ESTABLISHED", "SYN_RECV": "SYN_RECV", "FIN_WAIT": "SYN_RECV", "CLOSE_WAIT": "SYN_RECV",
				"TIME_WAIT": "SYN_RECV", "CLOSE": "SYN_RECV",
			}[state]
			if mode != 0 && (state == "TIME_WAIT" || state == "CLOSE") {
				want = again
			}
			t.Run(fmt.Sprintf("%d/%s", mode, state), func(t *testing.T) {
				everyNetwork(t, func(r *rig) {
					r.setServers("rs1", "rs2")
					r.apply(func(s *Spec) { s.Tunables.ConnReuseMode = mode })
					r.script(script)
					got := r.send("c1 -> vip SYN")
					state, _, _ := strings.Cut(r.conn("c1", "vip"), " ")
					if got += "; " + state; got != want {
						r.Errorf("got %s, want %s", got, want)
					}
					if n, _ := r.ConnCount(); n != 1 {
						r.Errorf("there are %d connections", n)
					}
				}, "tcp4", "tcp6")
			})
		}
	}
}

// TestReuseIsForSYN: no other segment ends a finished connection.
func TestReuseIsForSYN(t *testing.T) {
	r := newRig(t, "tcp4")
	r.setServers("rs1", "rs2")
	r.script(scriptsTo["TIME_WAIT"] + `
		c1 -> vip ACK       => c1 -> rs1 ACK
		c1 -> vip FIN+ACK   => c1 -> rs1 FIN+ACK
		c1 -> vip RST       => c1 -> rs1 RST
		conn c1 -> vip CLOSE 10s
		rs1 -> c1 SYN       => vip -> c1 SYN      # nor does a reply
		conn c1 -> vip SYN_SENT 2m0s
	`)
}

// TestSYNOnQuiescedServer is ipvs.md 4.2, first rule: with expire_nodest_conn a SYN leaves a server of weight 0 whatever
// the connection's state and conn_reuse_mode; everything else goes on.
func TestSYNOnQuiescedServer(t *testing.T) {
	for state, script := range scriptsTo {
		t.Run(state, func(t *testing.T) {
			r := newRig(t, "tcp4")
			r.setServers("rs1", "rs2")
			r.script(`tune conn_reuse_mode 0` + script + `
				set rs1:0
				c1 -> vip ACK   => c1 -> rs1 ACK
				rs1 -> c1 ACK   => vip -> c1 ACK
				c1 -> vip SYN   => c1 -> rs2 SYN
				c2 -> vip SYN   => c2 -> rs2 SYN
				counts rs1 0/0
			`)
		})
	}
	t.Run("without expire_nodest_conn", func(t *testing.T) {
		r := newRig(t, "tcp4")
		r.setServers("rs1", "rs2")
		r.script(`tune expire_nodest_conn 0` + scriptsTo["ESTABLISHED"] + `
			set rs1:0
			c1 -> vip SYN   => c1 -> rs1 SYN
			c2 -> vip SYN   => c2 -> rs2 SYN
		`)
	})
	t.Run("UDP has no SYN", func(t *testing.T) {
		r := newRig(t, "udp4")
		r.setServers("rs1", "rs2")
		r.script(`
			c1 -> vip UDP   => c1 -> rs1 UDP
			set rs1:0
			c1 -> vip UDP   => c1 -> rs1 UDP
			c2 -> vip UDP   => c2 -> rs2 UDP
			c3 -> vip UDP   => c3 -> rs2 UDP
		`)
	})
	t.Run("nobody else", func(t *testing.T) {
		r := newRig(t, "tcp4")
		r.script(scriptsTo["ESTABLISHED"] + `
			set rs1:0
			c1 -> vip SYN   => vip -> c1 unreachable-port {c1 -> vip SYN}
			conn c1 -> vip none
		`)
	})
}
