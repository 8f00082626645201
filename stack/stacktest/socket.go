package stacktest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	gicmp "gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// errnos are gVisor's errors, by their texts, as package net has them.
var errnos = map[string]syscall.Errno{
	(&tcpip.ErrConnectionRefused{}).String():  syscall.ECONNREFUSED,
	(&tcpip.ErrConnectionReset{}).String():    syscall.ECONNRESET,
	(&tcpip.ErrHostUnreachable{}).String():    syscall.EHOSTUNREACH,
	(&tcpip.ErrNetworkUnreachable{}).String(): syscall.ENETUNREACH,
	(&tcpip.ErrTimeout{}).String():            syscall.ETIMEDOUT,
}

// withErrno returns gonet's error with the errno in it.
func withErrno(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		if errno, ok := errnos[op.Err.Error()]; ok {
			op.Err = errno
		}
	}
	return err
}

type tcpConn struct{ *gonet.TCPConn }

func (c tcpConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	return n, withErrno(err)
}

func (c tcpConn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	return n, withErrno(err)
}

type tcpListener struct{ *gonet.TCPListener }

func (l tcpListener) Accept() (net.Conn, error) {
	c, err := l.TCPListener.Accept()
	if err != nil {
		return nil, withErrno(err)
	}
	return tcpConn{c.(*gonet.TCPConn)}, nil
}

// Close ends an Accept that waits, too.
func (l tcpListener) Close() error {
	l.Shutdown()
	return l.TCPListener.Close()
}

// Conn is a UDP socket. Other than gonet's it is told of ICMP errors while it waits to read. A datagram is sent in
// fragments if it is too long for one packet, and without DF.
type Conn struct {
	endpoint tcpip.Endpoint
	queue    *waiter.Queue
	deadline atomic.Pointer[time.Time]
}

var _ net.Conn = (*Conn)(nil)

// DialUDP returns a socket that is connected to an address. An address to send from may be given, or not.
func (h *Host) DialUDP(from, to netip.AddrPort) (*Conn, error) {
	c, err := h.udp(from, to.Addr())
	if err != nil {
		return nil, err
	}
	if err := c.endpoint.Connect(fullAddress(to)); err != nil {
		c.Close()
		return nil, fmt.Errorf("connect to udp %s: %s", to, err)
	}
	return c, nil
}

// ListenUDP returns a socket that is bound to one of the host's addresses.
func (h *Host) ListenUDP(at netip.AddrPort) (*Conn, error) { return h.udp(at, at.Addr()) }

func (h *Host) udp(from netip.AddrPort, like netip.Addr) (*Conn, error) {
	c := &Conn{queue: new(waiter.Queue)}
	var err tcpip.Error
	if c.endpoint, err = h.Stack.NewEndpoint(udp.ProtocolNumber, network(like), c.queue); err != nil {
		return nil, fmt.Errorf("make a UDP socket: %s", err)
	}
	if err := c.endpoint.SetSockOptInt(tcpip.MTUDiscoverOption, int(tcpip.PMTUDiscoveryDont)); err != nil {
		return nil, fmt.Errorf("set up a UDP socket: %s", err)
	}
	if from.IsValid() {
		if err := c.endpoint.Bind(fullAddress(from)); err != nil {
			c.Close()
			return nil, fmt.Errorf("bind udp %s: %s", from, err)
		}
	}
	return c, nil
}

// SetNoChecksum makes the socket send IPv4 datagrams without checksums.
func (c *Conn) SetNoChecksum() { c.endpoint.SocketOptions().SetNoChecksum(true) }

// ReadFrom reads a datagram, or returns the error that an ICMP message told, such as syscall.ECONNREFUSED.
func (c *Conn) ReadFrom(b []byte) (int, netip.AddrPort, error) {
	wait, cancel := context.Background(), func() {}
	if d := c.deadline.Load(); d != nil && !d.IsZero() {
		wait, cancel = context.WithDeadline(wait, *d)
	}
	defer cancel()
	n, from, err := read(wait, c.endpoint, c.queue, b)
	if errors.Is(err, context.DeadlineExceeded) {
		err = os.ErrDeadlineExceeded
	}
	return n, from, err
}

// Read is ReadFrom without the address.
func (c *Conn) Read(b []byte) (int, error) {
	n, _, err := c.ReadFrom(b)
	return n, err
}

// WriteTo sends a datagram.
func (c *Conn) WriteTo(b []byte, to netip.AddrPort) (int, error) {
	address := fullAddress(to)
	return c.write(b, tcpip.WriteOptions{To: &address})
}

// Write sends a datagram to the address that the socket is connected to.
func (c *Conn) Write(b []byte) (int, error) { return c.write(b, tcpip.WriteOptions{}) }

func (c *Conn) write(b []byte, o tcpip.WriteOptions) (int, error) {
	n, err := c.endpoint.Write(bytes.NewReader(b), o)
	if err != nil {
		return int(n), fmt.Errorf("write to udp: %w", errnoOf(err))
	}
	return int(n), nil
}

// Close closes the socket and ends a Read that waits.
func (c *Conn) Close() error {
	c.endpoint.Close()
	return nil
}

func (c *Conn) LocalAddr() net.Addr {
	a, _ := c.endpoint.GetLocalAddress()
	return net.UDPAddrFromAddrPort(addrPort(a))
}

func (c *Conn) RemoteAddr() net.Addr {
	a, _ := c.endpoint.GetRemoteAddress()
	return net.UDPAddrFromAddrPort(addrPort(a))
}

// SetReadDeadline is for the next Read, not for one that waits already.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.deadline.Store(&t)
	return nil
}

// SetDeadline is SetReadDeadline: writing never waits.
func (c *Conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetWriteDeadline does nothing: writing never waits.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }

// read waits for a datagram or an error.
func read(ctx context.Context, endpoint tcpip.Endpoint, queue *waiter.Queue, b []byte) (int, netip.AddrPort, error) {
	entry, notify := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
	queue.EventRegister(&entry)
	defer queue.EventUnregister(&entry)
	for {
		w := tcpip.SliceWriter(b)
		result, err := endpoint.Read(&w, tcpip.ReadOptions{NeedRemoteAddr: true})
		switch err.(type) {
		case nil:
			return result.Count, addrPort(result.RemoteAddr), nil
		case *tcpip.ErrWouldBlock:
		case *tcpip.ErrClosedForReceive, *tcpip.ErrInvalidEndpointState:
			return 0, netip.AddrPort{}, io.EOF
		default:
			return 0, netip.AddrPort{}, fmt.Errorf("read: %w", errnoOf(err))
		}
		select {
		case <-notify:
		case <-ctx.Done():
			return 0, netip.AddrPort{}, ctx.Err()
		}
	}
}

func errnoOf(err tcpip.Error) error {
	if errno, ok := errnos[err.String()]; ok {
		return errno
	}
	return errors.New(err.String())
}

// Ping sends an echo request with size bytes of data, in fragments if need be, and waits for the reply, which must bring
// them back.
func (h *Host) Ping(ctx context.Context, to netip.Addr, size int) error {
	queue := new(waiter.Queue)
	protocol, request := gicmp.ProtocolNumber4, byte(header.ICMPv4Echo)
	if to.Is6() {
		protocol, request = gicmp.ProtocolNumber6, byte(header.ICMPv6EchoRequest)
	}
	endpoint, err := h.Stack.NewEndpoint(protocol, network(to), queue)
	if err != nil {
		return fmt.Errorf("make a ping socket: %s", err)
	}
	defer endpoint.Close()
	if err := endpoint.SetSockOptInt(tcpip.MTUDiscoverOption, int(tcpip.PMTUDiscoveryDont)); err != nil {
		return fmt.Errorf("set up a ping socket: %s", err)
	}
	if err := endpoint.Connect(fullAddress(netip.AddrPortFrom(to, 0))); err != nil {
		return fmt.Errorf("ping %s: %s", to, err)
	}
	const headerLen = 8
	message := make([]byte, headerLen+size)
	message[0] = request
	binary.BigEndian.PutUint16(message[6:], uint16(rand.Uint32()))
	for i := range message[headerLen:] {
		message[headerLen+i] = byte(rand.Uint32())
	}
	if _, err := endpoint.Write(bytes.NewReader(message), tcpip.WriteOptions{}); err != nil {
		return fmt.Errorf("ping %s: %w", to, errnoOf(err))
	}
	reply := make([]byte, maxPacket)
	n, from, readErr := read(ctx, endpoint, queue, reply)
	switch {
	case readErr != nil:
		return fmt.Errorf("ping %s: %w", to, readErr)
	case from.Addr() != to:
		return fmt.Errorf("ping %s: a reply from %s", to, from.Addr())
	case n != len(message) || !bytes.Equal(reply[6:n], message[6:]):
		return fmt.Errorf("ping %s: the reply has %d bytes that differ from the request's %d", to, n, len(message))
	}
	return nil
}
