package balancer

import "github.com/lvsd/lvsd/stack"

// DropReason says why a packet went no further without an answer. The first ones are the problems of package stack.
type DropReason uint8

const (
	dropNoRoomInTable DropReason = iota + stack.NumProblems
	dropServerRemoved
	dropStrayReset
	dropUnwanted
	dropSpoofedSource
	dropRateLimited
	dropICMPUnrelated
	dropICMPChecksum
	dropICMPFragment
	dropFragmentHeld
	dropFragmentDuplicate
	dropFragmentOverlap
	dropFragmentNoRoom
	dropFragmentRefused

	numDropReasons = iota + stack.NumProblems
)

var dropNames = func() (names [numDropReasons]string) {
	for p := range stack.NumProblems {
		names[p] = stack.Problem(p).String()
	}
	names[dropNoRoomInTable] = "connection_table_full"
	names[dropServerRemoved] = "server_removed"
	names[dropStrayReset] = "stray_reset"
	names[dropUnwanted] = "unwanted"
	names[dropSpoofedSource] = "spoofed_source"
	names[dropRateLimited] = "rate_limited"
	names[dropICMPUnrelated] = "icmp_unrelated"
	names[dropICMPChecksum] = "icmp_bad_checksum"
	names[dropICMPFragment] = "icmp_fragment"
	names[dropFragmentHeld] = "fragment_orphan"
	names[dropFragmentDuplicate] = "fragment_duplicate"
	names[dropFragmentOverlap] = "fragment_overlap"
	names[dropFragmentNoRoom] = "fragment_no_room"
	names[dropFragmentRefused] = "fragment_refused"
	return names
}()

func (r DropReason) String() string { return dropNames[r] }

// action is what is to be done with a packet.
type action uint8

const (
	actDrop          action = iota // count it by reason
	actPass                        // it is none of ours: send it on as it came
	actToServer                    // a request: to the server
	actToClient                    // a reply: from the VIP
	actErrorToServer               // an ICMP error about a reply: to the server
	actErrorToClient               // an ICMP error about a request: to the client, from the VIP
	actEcho                        // answer the ping
	actReset                       // refuse as a host without that socket does
	actNoPort                      // ICMP port unreachable
	actNoProtocol                  // ICMP protocol unreachable
	actNoHost                      // ICMP host unreachable
	actTimeExceeded                // ICMP time exceeded
	actTooBig                      // ICMP fragmentation needed, packet too big

	numActions = iota
)

// answerNames are the actions that make a packet of the director's own, by their names in statistics.
var answerNames = map[action]string{
	actEcho:         "echo_reply",
	actReset:        "tcp_reset",
	actNoPort:       "port_unreachable",
	actNoProtocol:   "protocol_unreachable",
	actNoHost:       "host_unreachable",
	actTimeExceeded: "time_exceeded",
	actTooBig:       "packet_too_big",
}

// fate is a decision about a packet: what to do and with what. For a datagram in fragments it is the decision about the
// first fragment, and kept for the later ones.
type fate struct {
	action action
	reason DropReason // of actDrop
	port   uint16     // of the translations: the other port
	addr   stack.Addr // and the other address, the RIP to a server, the VIP to a client
	server *server    // of the translations: who the packet counts for
}

func dropped(r DropReason) fate { return fate{action: actDrop, reason: r} }
