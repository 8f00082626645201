// Package balancer is the director: virtual services, real servers, connections, and the way of a packet through them.
// It does no I/O and has no clock. It is a function of frames and the time now, and can be driven by a test, a fuzzer or
// a file of packets exactly as by a device.
//
// # Terms
//
// A virtual service is a protocol, an address (VIP) and a port that clients know. It has real servers, each an address
// (RIP) and port with a weight. A client (CIP) speaks to the VIP; the director picks a server by the service's scheduler
// and rewrites the destination of each request to the RIP and the source of each reply back to the VIP. The server sees
// the client's own address. A connection is the memory of that choice. This is IPVS's VS/NAT; what IPVS does in a case
// that is not told here is told in docs/differences.md, or the same is done here.
//
// # One packet's way
//
//	queue -> Serve -> Worker.Forward -> forward: Decode                         forward.go
//	                                    |- fragment: the first one's fate        forwardFragment
//	                                    '- decide: its fate                      decide
//	                                         known connection                    decideRequest, decideReply
//	                                         new: service, scheduler, connect    decideNew
//	                                         ICMP error: whose                   decideError
//	                                       carryOut: rewrite, answer or drop     carryout.go
//	queue <- Serve <- the frames to send
//
// decide changes the connection table and never the packet; carryOut changes the packet and never the table. Between
// them stands a fate: what to do, with which address and port, for which server. A drop is a fate with a reason, which
// is counted; it is not an error.
//
// A packet for an address of ours that nothing wants is answered as a host would, or dropped; it is never sent on, for
// the route that brought it would bring it again. A packet for any other address is none of ours and is sent on as it
// came: the reply path leads all traffic of the real servers through the device.
//
// # Connections
//
// The table is cut into 256 shards by the client's address and port, which are the same in requests and replies, so one
// lock covers all of a connection. Each direction has a word in the shard's index; whether a packet is looked up as
// request or as reply first is a guess by its destination. Records are fixed in size, without pointers, in one mapping;
// servers appear in them as numbers. A connection that has been idle for its timeout is gone for any packet that comes
// later, and Expire takes it out of the table.
//
// # Changes
//
// What is wanted is a [Spec]: plain values. [Director.Apply] compares it with what runs, and the list of [Change] it
// finds is the plan that is shown and the work that is done. Workers look at an immutable snapshot, which they take anew
// with each batch; whoever replaces it waits until all batches are over. After that a removed server can get no new
// connection. It stays known by its number until the last one is gone, and two minutes longer, in which it can come
// back as it was.
//
// # Locks and goroutines
//
// The package starts no goroutine. Serve, or Worker.Forward, runs in one of its caller's for each queue; Expire, Apply
// and Status may run in others.
//
//	Director.mu   Apply, Expire, Status, workers coming and going
//	Worker.mu     a batch; reading counters; waiting for the end of batches
//	shard         one look at the connection table
//	service.mu    picking a server; editing the list of servers
//
// They are taken in this order only. No two shards are locked at once, and no service while a shard is: a server is
// picked first and the connection made afterwards.
package balancer
