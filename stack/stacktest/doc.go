// Package stacktest is a small internet inside one test process: hosts with gVisor's whole network stack, and a router that
// stands for the kernel of the director's machine, with a device in it. It needs no root and no namespaces. It is for
// tests, and knows nothing of package stack, so that the two cannot be wrong together.
//
//	              .------- router -------.
//	client ------ | route, TTL, MTU, cut | ------ server1
//	client2 ----- |                      | ------ server2
//	  faults      '-- Inject -- Receive -'          faults
//	                       device
//
// # Frames
//
// Everything that moves is a frame, as a tun device has them: a virtio_net_hdr of 10 bytes and an IP packet. A [Host] with
// TSO leaves work to others as Linux does: it sends super-packets of up to 64 KiB and partial checksums. One without sends
// finished packets. A frame belongs to whoever it is handed to.
//
// # The router
//
// A [Router] does with frames what a kernel does that is wired as lvsd wires it: packets for a VIP go into the device, and
// so does all that servers send; what comes out of the device goes to the host that has the destination address. Each way
// costs a hop of the TTL, so the way through the device costs two. A packet that outlives its hops, or is too large for
// the link to a host and must not be fragmented, is answered from the router's own address. A super-packet is cut and its
// checksum completed before it goes to a host. A frame that the kernel would refuse from a tun device, or that would be
// routed into the device again, is a violation, and so is every packet with a wrong checksum or length that would reach a
// host: see [Router.Violations].
//
// # Faults
//
// Links lose, repeat and delay frames as [Faults] say. What happens to the n-th frame of a link and direction depends on
// the seed and n alone; which frame is the n-th depends on the goroutines.
//
// # What went by
//
// [Router.Events] tells what went by lately, and [Router.Diagram] draws it, for the log of a test that failed.
package stacktest
