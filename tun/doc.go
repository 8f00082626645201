// Package tun is the director's interface to the kernel: a tun device whose queues move frames, and the wiring of the
// network namespace that leads packets into it. It knows nothing of what is in a packet.
//
// # Frames
//
// A frame is a virtio_net_hdr of [HeaderLen] bytes and an IP packet, up to [MaxFrame] bytes. The header tells what the
// sender's kernel left undone: a transport checksum that is only begun, and a super-packet of up to 64 KiB that is not
// cut into segments yet. Who writes the frame back with the same header passes that work on to the network card behind
// the device, which is what makes bulk traffic cheap. Package tun never looks at the header. A device that was opened
// without offloads has it as well, and it is zero there.
//
// # Device
//
// [Open] has package water make the device, and then attaches descriptors of its own, because water cannot ask for the
// header; attach.go tells how, and how a device that a crash left behind is taken over. After that the device ends with
// the last descriptor, so that nothing is left of a process that was killed. A device that root made for an ordinary
// user is not ours to remove, and stays.
//
// What a device goes through, and what a queue makes of it:
//
//	the device is down      Read waits; Write counts refused frames (EIO); both go on when it is up again
//	the device is deleted   Read, also one that waits, and Write fail with ErrGone; Open makes a new one
//	a frame is no packet    Write counts it (EINVAL) and writes the next
//	one queue is closed     the kernel spreads its flows over the others
//	nobody reads            the kernel drops what does not fit into its queue of 500 packets (txqueuelen)
//
// # Queues
//
// A [Queue] is a loop's way to its share of the flows: Read lends it a batch of frames, it changes them in place, and
// Write sends them or others. The kernel puts a flow on the queue that last wrote a packet of it, or else on one by the
// flow's hash; so the two directions of a connection may come by different queues.
//
// There is one I/O mode for now, in poll.go: one system call a frame until there is nothing left, and then poll(2). Its
// costs are those of the kernel, 1 to 1.5 us for a small packet and about 10 us for one of 64 KiB (dataplane.md section
// 2). Two things are done about the rest. System calls that cannot block are raw, so that the Go scheduler does not take
// the processor away from the loop at each; and frames lie in a mapping of their own, so that a batch costs the garbage
// collector nothing. A batch ends after 64 frames or with the one that reaches 256 KiB: many small packets share the
// cost of a wake-up and of a look at the clock, while few large ones stay in the processor's cache and do not keep the
// first of them waiting.
//
// # Goroutines
//
// The device starts no goroutine. Read and Write of a queue are for one goroutine, that of the loop; Close, Stats and all
// methods of Device may be called by others. Close wakes the loop: first it says so in an eventfd on which Read sleeps
// as well, then it waits for the lock that Read and Write hold, and only then closes the descriptors, whose numbers
// somebody else may get. Frames that the loop has at that moment stay valid: their memory goes when nobody has the batch.
//
// # Wiring
//
// A [Wiring] has the kernel lead packets through the device, by netlink and sysctls alone, and takes all of it away
// again. For a device lvs0, the table 100 and real servers behind eth1 it makes, for IPv4 and IPv6:
//
//	VIP dev lvs0                    route, main table   packets for a VIP come to the director
//	unreachable VIP metric 4196     route, main table   with the director dead, a VIP has no host; it never follows a default route
//	default dev lvs0                route, table 100    the way back
//	iif eth1 lookup 100             rule                what real servers send takes it (see plan.leadBack for when it is narrower)
//	proxy VIP dev eth0              neighbour           eth0's subnet has the VIP, so hosts there ask for it
//	ip_forward, accept_local, ...   sysctls             see plan.forward4, forward6 and answer
//
// There is one way for a start, a reload, the start after a crash and the repair of what somebody took away: look at the
// namespace (facts), decide what should be there (plan, which asks nobody), compare with what is there and is ours, and
// change what differs (kernel.wire). Nothing is remembered between two looks but the old values of sysctls, so those
// that a killed process changed stay changed. Objects carry [RouteProtocol]; wiring_wire.go tells whose they are when
// several directors share a namespace.
//
// [Wiring.Watch] follows netlink events and looks again when one may matter. It runs in the goroutine of its caller and
// starts one more, which reads the events and ends with it. It also reports [Paths]: what the director
// must know of its surroundings to answer in place of its kernel, whose own errors would name addresses that a client
// never heard of, and to never write a packet that would come back. A change of services goes to the director first and
// to Apply second, so that the director knows a VIP before its packets come; Paths.Owned keeps it from handing on those
// for a VIP that it knows no longer.
//
// [Commands] prints the plan for people who wire by hand, and [SurveyNamespace] looks at a namespace for them.
package tun
