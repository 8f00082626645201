package lab

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
)

// Listen makes a listener inside the namespace, as [net.Listen] would. A listener on ":80" serves both families.
func (h *Host) Listen(network, address string) (l net.Listener, err error) {
	// Multipath TCP, Go's default for listeners, would be one more thing to think of in a packet trace.
	var conf net.ListenConfig
	conf.SetMultipathTCP(false)
	err = h.Do(func() error {
		l, err = conf.Listen(context.Background(), network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h.Name, err)
	}
	return l, nil
}

// ListenPacket makes a packet socket inside the namespace, as [net.ListenPacket] would.
func (h *Host) ListenPacket(network, address string) (c net.PacketConn, err error) {
	err = h.Do(func() error {
		c, err = net.ListenPacket(network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h.Name, err)
	}
	return c, nil
}

// Dial connects from inside the namespace, as [net.Dialer.DialContext] would. The address is one of digits: there is
// nobody in a lab to resolve a name.
func (h *Host) Dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("host %s: dial %s %s: %w", h.Name, network, address, err)
	}
	err = h.Do(func() error {
		c, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h.Name, err)
	}
	return c, nil
}

// HTTPClient returns a client that dials from inside the namespace, without any proxy. Each request makes a connection
// of its own, so that a director has something to choose a server for; for the opposite, clear DisableKeepAlives of its
// Transport, an *http.Transport, and call CloseIdleConnections in the end.
func (h *Host) HTTPClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: h.Dial, DisableKeepAlives: true, DisableCompression: true}}
}
