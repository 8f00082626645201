// Package stack reads and writes packets as bytes. It knows headers, checksums, offload and fragments; it knows nothing
// of services, servers or connections, and nothing of the device the bytes came from.
//
// # A packet's way
//
// A frame is what a tun device with IFF_VNET_HDR hands out: a virtio_net_hdr of 10 bytes and an IP packet behind it,
// up to 64 KiB when the sender's kernel left the work of segmentation to the receiver (a super-packet).
//
//  1. [Packet.Decode] reads the headers in place: offload header, IPv4 with options or IPv6 with its chain of extension
//     headers, then TCP, UDP, ICMP or ICMPv6. For an ICMP error it also reads the packet that is quoted inside. What it
//     learns are a few offsets, a [Kind] and a [Flow]. A frame that is not sound ends here, with a [Problem].
//  2. Somebody who knows connections decides. [Packet.SetSource] or [Packet.SetDestination] then rewrites an end of the
//     flow, and [Packet.RewriteErrorToServer] or [Packet.RewriteErrorToClient] an ICMP error with its quotation.
//  3. Or the packet is answered in the frame it came in: [Packet.ReplyEcho], [Packet.ReplyReset],
//     [Packet.ReplyUnreachable], [Packet.ReplyTimeExceeded], [Packet.ReplyTooBig]. A [Limiter] bounds such answers.
//  4. Later fragments carry no ports. [Fragments] remembers what was done with the first fragment of a datagram and
//     keeps the fragments that overtook it.
//
// # Checksums
//
// A frame's transport checksum is in one of three states, and a rewrite keeps it in that state:
//
//   - full: the checksum of RFC 1071 over pseudo-header, header and data. It is updated by the difference (RFC 1624).
//   - partial (VIRTIO_NET_HDR_F_NEEDS_CSUM): the field holds the folded sum of the pseudo-header, not complemented. The
//     device that sends the packet at last adds the rest. Only the addresses count; ports must not be added.
//   - absent: an IPv4 UDP datagram with checksum 0. IPVS gives it a checksum when it translates it (ipvs.md 5.10);
//     so do we, by turning it into a partial one. A fragment keeps its 0, for no fragment has all the data.
//
// The IPv4 header checksum is always full, also on super-packets.
//
// # Buffers
//
// A frame is borrowed: Packet keeps a reference until the next Decode and changes bytes in place, never the frame's
// length but for a reply. Nothing here allocates, with two exceptions, both off the path of an ordinary packet: a reply
// that does not fit the frame's capacity and a fragment that has to wait. A Packet and a Limiter belong to one
// goroutine; Fragments may be shared.
package stack
