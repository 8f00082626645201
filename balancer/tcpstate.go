package balancer

import (
	"time"

	"github.com/lvsd/lvsd/stack"
)

// connState is the state of a connection. For TCP the numbers are those of IPVS (ipvs.md 4.1).
type connState uint8

const (
	tcpNone connState = iota
	tcpEstablished
	tcpSynSent
	tcpSynRecv
	tcpFinWait
	tcpTimeWait
	tcpClose
	tcpCloseWait
	tcpLastAck
	tcpListen
	tcpSynAck
	tcpStates = iota
)

// udpNormal is the one state of UDP.
const udpNormal connState = 0

var tcpStateNames = [tcpStates]string{
	"NONE", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT", "TIME_WAIT", "CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN", "SYNACK",
}

// stateName returns the name that ipvsadm shows.
func stateName(protocol uint8, s connState) string {
	if protocol == stack.ProtocolUDP {
		return "UDP"
	}
	return tcpStateNames[s]
}

// tcpActive are the states in which a connection weighs on its server.
var tcpActive = [tcpStates]bool{tcpEstablished: true, tcpSynSent: true, tcpSynRecv: true, tcpSynAck: true}

// tcpEvent is what a segment's flags mean to the state machine; the first that matches counts.
type tcpEvent uint8

const (
	eventSYN tcpEvent = iota
	eventFIN
	eventACK
	eventRST
	tcpEvents = iota
)

func tcpEventOf(flags uint8) (event tcpEvent, known bool) {
	switch {
	case flags&stack.FlagRST != 0:
		return eventRST, true
	case flags&stack.FlagSYN != 0:
		return eventSYN, true
	case flags&stack.FlagFIN != 0:
		return eventFIN, true
	case flags&stack.FlagACK != 0:
		return eventACK, true
	}
	return 0, false
}

// tcpNext is the normal transition table of ipvs.md 4.1: the next state by direction, event and state.
var tcpNext = func() (t [2][tcpEvents][tcpStates]connState) {
	const (
		no, es, ss, sr, fw = tcpNone, tcpEstablished, tcpSynSent, tcpSynRecv, tcpFinWait
		tw, cl, cw, la, li = tcpTimeWait, tcpClose, tcpCloseWait, tcpLastAck, tcpListen
	)
	//                        from:        NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
	t[request][eventSYN] = [...]connState{sr, es, es, sr, sr, sr, sr, sr, sr, sr, sr}
	t[request][eventFIN] = [...]connState{cl, cw, ss, tw, tw, tw, cl, cw, la, li, tw}
	t[request][eventACK] = [...]connState{es, es, ss, es, fw, tw, cl, cw, cl, li, es}
	t[request][eventRST] = [...]connState{cl, cl, cl, sr, cl, cl, cl, cl, la, li, sr}
	t[reply][eventSYN] = [...]connState{ss, es, ss, sr, ss, ss, ss, ss, ss, li, sr}
	t[reply][eventFIN] = [...]connState{tw, fw, ss, tw, fw, tw, cl, tw, la, li, tw}
	t[reply][eventACK] = [...]connState{es, es, ss, es, fw, tw, cl, cw, la, es, es}
	t[reply][eventRST] = [...]connState{cl, cl, ss, cl, cl, tw, cl, cl, cl, cl, cl}
	return t
}()

// nextState returns the state a packet leads to. A segment with none of the four flags closes.
func nextState(protocol uint8, state connState, dir direction, flags uint8) connState {
	if protocol != stack.ProtocolTCP {
		return udpNormal
	}
	event, known := tcpEventOf(flags)
	if !known {
		return tcpClose
	}
	return tcpNext[dir][event][state]
}

// stateTimeouts are idle times by state.
type stateTimeouts struct {
	tcp [tcpStates]tick
	udp tick
}

// newStateTimeouts puts the three that can be set into IPVS's table of fixed ones.
func newStateTimeouts(t Timeouts) *stateTimeouts {
	s := &stateTimeouts{udp: ticksOf(t.UDP)}
	for state, seconds := range [tcpStates]int{
		tcpNone: 2, tcpSynSent: 120, tcpSynRecv: 60, tcpTimeWait: 120, tcpClose: 10, tcpCloseWait: 60,
		tcpLastAck: 30, tcpListen: 120, tcpSynAck: 120,
	} {
		s.tcp[state] = ticksOf(time.Duration(seconds) * time.Second)
	}
	s.tcp[tcpEstablished], s.tcp[tcpFinWait] = ticksOf(t.TCP), ticksOf(t.TCPFin)
	return s
}

func (s *stateTimeouts) of(protocol uint8, state connState) tick {
	if protocol == stack.ProtocolTCP {
		return s.tcp[state]
	}
	return s.udp
}
