package balancer

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lvsd/lvsd/stack"
)

// The tables of ipvs.md 4.1, as they stand there.

const stateTable = `
	0  NO NONE        2   no
	1  ES ESTABLISHED 900 yes
	2  SS SYN_SENT    120 yes
	3  SR SYN_RECV    60  yes
	4  FW FIN_WAIT    120 no
	5  TW TIME_WAIT   120 no
	6  CL CLOSE       10  no
	7  CW CLOSE_WAIT  60  no
	8  LA LAST_ACK    30  no
	9  LI LISTEN      120 no
	10 SA SYNACK      120 yes
`

const transitionTable = `
	           NO ES SS SR FW TW CL CW LA LI SA
	INPUT  SYN SR ES ES SR SR SR SR SR SR SR SR
	INPUT  FIN CL CW SS TW TW TW CL CW LA LI TW
	INPUT  ACK ES ES SS ES FW TW CL CW CL LI ES
	INPUT  RST CL CL CL SR CL CL CL CL LA LI SR
	OUTPUT SYN SS ES SS SR SS SS SS SS SS LI SR
	OUTPUT FIN TW FW SS TW FW TW CL TW LA LI TW
	OUTPUT ACK ES ES SS ES FW TW CL CW LA ES ES
	OUTPUT RST CL CL SS CL CL TW CL CL CL CL CL
`

// rows returns the words of each line.
func rows(table string) (rows [][]string) {
	for line := range strings.Lines(table) {
		if words := strings.Fields(line); len(words) > 0 {
			rows = append(rows, words)
		}
	}
	return rows
}

// statesByAbbreviation are the numbers of the states in the transition table.
func statesByAbbreviation() map[string]connState {
	states := make(map[string]connState)
	for i, row := range rows(stateTable) {
		states[row[1]] = connState(i)
	}
	return states
}

func TestStateTable(t *testing.T) {
	timeouts := newStateTimeouts(DefaultTimeouts())
	table := rows(stateTable)
	if len(table) != tcpStates {
		t.Fatalf("there are %d states, want %d", tcpStates, len(table))
	}
	for i, row := range table {
		state := connState(i)
		active := map[bool]string{false: "no", true: "yes"}[tcpActive[state]]
		seconds := timeouts.of(stack.ProtocolTCP, state).duration().Seconds()
		got := fmt.Sprintf("%d %s %s %v %s", state, row[1], stateName(stack.ProtocolTCP, state), seconds, active)
		if want := strings.Join(row, " "); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	if got := timeouts.of(stack.ProtocolUDP, udpNormal).duration(); got != 300*time.Second {
		t.Errorf("UDP has a timeout of %v, want 300 s", got)
	}
	if name := stateName(stack.ProtocolUDP, udpNormal); name != "UDP" || tcpActive[udpNormal] {
		t.Errorf("UDP's state is called %s, active %v", name, tcpActive[udpNormal])
	}
}

func TestTransitions(t *testing.T) {
	table, states := rows(transitionTable), statesByAbbreviation()
	flags := map[string]uint8{"SYN": 0x02, "FIN": 0x01, "ACK": 0x10, "RST": 0x04}
	directions := map[string]direction{"INPUT": request, "OUTPUT": reply}
	checked := 0
	for _, row := range table[1:] {
		for i, want := range row[2:] {
			from := table[0][i]
			if got := nextState(stack.ProtocolTCP, states[from], directions[row[0]], flags[row[1]]); got != states[want] {
				t.Errorf("%s %s in %s leads to %s, want %s", row[0], row[1], from, tcpStateNames[got], want)
			}
			checked++
		}
	}
	if checked != 2*4*11 {
		t.Fatalf("%d transitions checked", checked)
	}
}

// TestTransitionsOfOtherFlags: of several flags the first of RST, SYN, FIN, ACK counts, the others of the flag byte
// never do, and a segment without any of the four closes.
func TestTransitionsOfOtherFlags(t *testing.T) {
	states := slices.Sorted(maps.Values(statesByAbbreviation()))
	for flags := range 256 {
		first := uint8(0)
		for _, f := range [...]uint8{0x04, 0x02, 0x01, 0x10} {
			if first == 0 && flags&int(f) != 0 {
				first = f
			}
		}
		for _, dir := range [...]direction{request, reply} {
			for _, state := range states {
				want := connState(6) // CLOSE
				if first != 0 {
					want = nextState(stack.ProtocolTCP, state, dir, first)
				}
				if got := nextState(stack.ProtocolTCP, state, dir, uint8(flags)); got != want {
					t.Errorf("flags %#x in %s lead to %s, want %s", flags, tcpStateNames[state], tcpStateNames[got], tcpStateNames[want])
				}
			}
		}
	}
}

func TestUDPHasOneState(t *testing.T) {
	for flags := range 256 {
		for _, dir := range [...]direction{request, reply} {
			if got := nextState(stack.ProtocolUDP, udpNormal, dir, uint8(flags)); got != udpNormal {
				t.Fatalf("a datagram leads to state %d", got)
			}
		}
	}
}

// TestSettableTimeouts is ipvs.md 4.5: three can be set, the others are fixed.
func TestSettableTimeouts(t *testing.T) {
	timeouts := newStateTimeouts(Timeouts{TCP: 11 * time.Second, TCPFin: 12 * time.Second, UDP: 13 * time.Second})
	for i, row := range rows(stateTable) {
		want := row[3]
		switch row[1] {
		case "ES":
			want = "11"
		case "FW":
			want = "12"
		}
		if got := fmt.Sprint(timeouts.of(stack.ProtocolTCP, connState(i)).duration().Seconds()); got != want {
			t.Errorf("%s has a timeout of %s s, want %s", row[2], got, want)
		}
	}
	if got := timeouts.of(stack.ProtocolUDP, udpNormal).duration(); got != 13*time.Second {
		t.Errorf("UDP has a timeout of %v", got)
	}
}
