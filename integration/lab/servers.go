package lab

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
)

// A Service is a small server that runs in this process, inside a host's namespace.
type Service struct {
	host  *Host
	close func() // makes every goroutine of running return
	once  sync.Once

	running sync.WaitGroup
}

// Close stops the service, ends its connections and waits until nothing of it runs. Only the first call does anything.
func (s *Service) Close() {
	s.once.Do(func() {
		s.close()
		s.running.Wait()
		s.host.mu.Lock()
		defer s.host.mu.Unlock()
		delete(s.host.services, s)
	})
}

// keep makes the host stop a new service when it is closed.
func (h *Host) keep(s *Service) (*Service, error) {
	h.mu.Lock()
	closed := h.closed
	if !closed {
		h.services[s] = struct{}{}
	}
	h.mu.Unlock()
	if closed {
		s.Close()
		return nil, fmt.Errorf("host %s: %w", h.Name, ErrClosed)
	}
	return s, nil
}

// ServeHTTP serves [Handler] with the host's name on an address such as ":80".
func (h *Host) ServeHTTP(address string) (*Service, error) {
	l, err := h.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	s := &Service{host: h}
	server := &http.Server{
		Handler: Handler(h.Name),
		// A connection is new before Serve returns, and closed when its goroutine is done.
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				s.running.Add(1)
			case http.StateClosed:
				s.running.Done()
			}
		},
	}
	s.close = func() { server.Close() }
	s.running.Go(func() { _ = server.Serve(l) })
	return h.keep(s)
}

// Handler is a web server for tests and demonstrations:
//
//	GET  /           the server's name and the client's address, as in "server1 10.0.1.1:40000"
//	GET  /bytes/N    the first N bytes of [Pattern]
//	POST /echo       the request's body, and in the trailer Lab-Sha256 the SHA-256 of what arrived
//	POST /sha256     the SHA-256 of the request's body, in hexadecimal digits, and its length
//
// Every answer has the name and the client's address in the headers Lab-Server and Lab-Client, too.
func Handler(name string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s\n", name, r.RemoteAddr)
	})
	mux.HandleFunc("GET /bytes/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.PathValue("n"), 10, 64)
		if err != nil || n < 0 {
			http.Error(w, "the path is /bytes/ and how many", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		w.Header().Set("Content-Type", "application/octet-stream")
		_ = writePattern(w, n) // fails if the client went away
	})
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		const trailer = "Lab-Sha256"
		w.Header().Set("Trailer", trailer)
		w.Header().Set("Content-Type", "application/octet-stream")
		hash := sha256.New()
		if _, err := io.Copy(w, io.TeeReader(r.Body, hash)); err == nil {
			w.Header().Set(trailer, hex.EncodeToString(hash.Sum(nil)))
		}
	})
	mux.HandleFunc("POST /sha256", func(w http.ResponseWriter, r *http.Request) {
		hash := sha256.New()
		n, err := io.Copy(hash, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%x %d\n", hash.Sum(nil), n)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Lab-Server", name)
		w.Header().Set("Lab-Client", r.RemoteAddr)
		mux.ServeHTTP(w, r)
	})
}

// An Echo is what the echo services answer.
type Echo struct {
	Server string         // its name
	Client netip.AddrPort // the client's address as the server saw it
	Data   []byte         // what the client sent
}

func (e Echo) appendTo(b []byte) []byte {
	b = append(b, e.Server...)
	b = append(b, ' ')
	b = e.Client.AppendTo(b)
	b = append(b, ' ')
	return append(b, e.Data...)
}

// ParseEcho reads an answer of an echo service, "NAME CLIENT DATA". Data refers to b.
func ParseEcho(b []byte) (Echo, error) {
	f := bytes.SplitN(b, []byte(" "), 3)
	if len(f) != 3 {
		return Echo{}, fmt.Errorf("%.40q is not an echo: NAME CLIENT DATA", b)
	}
	client, err := netip.ParseAddrPort(string(f[1]))
	if err != nil {
		return Echo{}, fmt.Errorf("%.40q is not an echo: %w", b, err)
	}
	return Echo{Server: string(f[0]), Client: client, Data: f[2]}, nil
}

// ServeUDPEcho answers each datagram on an address such as ":7000" with an [Echo] of it. A datagram so large that the
// answer would exceed 65507 bytes gets none.
func (h *Host) ServeUDPEcho(address string) (*Service, error) {
	c, err := h.ListenPacket("udp", address)
	if err != nil {
		return nil, err
	}
	conn := c.(*net.UDPConn)
	s := &Service{host: h, close: func() { conn.Close() }}
	s.running.Go(func() {
		in, out := make([]byte, 65536), make([]byte, 0, 65536)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(in)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // an ICMP error to an earlier answer
			}
			client := netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			out = Echo{h.Name, client, in[:n]}.appendTo(out[:0])
			_, _ = conn.WriteToUDPAddrPort(out, from) // what is lost is the client's to notice
		}
	})
	return h.keep(s)
}

// ServeTCPEcho answers each line of at most 64 KiB on a connection to an address such as ":7000" with an [Echo] of it.
func (h *Host) ServeTCPEcho(address string) (*Service, error) {
	return h.serveTCP(address, func(c net.Conn) { echoLines(c, h.Name) })
}

// serveTCP calls serve for each connection, in a goroutine of its own, and closes the connection after it.
func (h *Host) serveTCP(address string, serve func(net.Conn)) (*Service, error) {
	l, err := h.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	conns := make(map[net.Conn]struct{}) // nil when closed
	s := &Service{host: h}
	s.close = func() {
		l.Close()
		mu.Lock()
		defer mu.Unlock()
		for c := range conns {
			c.Close()
		}
		conns = nil
	}
	s.running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			if conns == nil {
				mu.Unlock()
				c.Close()
				return
			}
			conns[c] = struct{}{}
			mu.Unlock()
			s.running.Go(func() {
				serve(c)
				c.Close()
				mu.Lock()
				defer mu.Unlock()
				delete(conns, c)
			})
		}
	})
	return h.keep(s)
}

// ServeDiscard reads all that comes on a connection to an address such as ":9000", and at its end answers the number of
// bytes as a line.
func (h *Host) ServeDiscard(address string) (*Service, error) {
	return h.serveTCP(address, func(c net.Conn) {
		if n, err := io.Copy(io.Discard, c); err == nil {
			fmt.Fprintln(c, n)
		}
	})
}

func echoLines(c net.Conn, name string) {
	client := netip.MustParseAddrPort(c.RemoteAddr().String())
	lines := bufio.NewScanner(c)
	lines.Buffer(nil, 64<<10)
	var out []byte
	for lines.Scan() {
		out = append(Echo{name, client, lines.Bytes()}.appendTo(out[:0]), '\n')
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}

// Pattern returns an endless stream of bytes, the same each time, in which a piece that is lost, repeated or out of its
// place shows. It is made of one random block again and again, whose length is a prime, to be cheap to make.
func Pattern() io.Reader { return new(pattern) }

// patternBlock is never changed.
var patternBlock = sync.OnceValue(func() []byte {
	b := make([]byte, 1<<20-3)
	_, _ = rand.NewChaCha8([32]byte{'l', 'v', 's', 'd'}).Read(b) // never fails
	return b
})

// A pattern is a place in the block.
type pattern int

func (p *pattern) Read(b []byte) (int, error) {
	block := patternBlock()
	n := copy(b, block[*p:])
	*p = (*p + pattern(n)) % pattern(len(block))
	return n, nil
}

// writePattern writes the first n bytes of the pattern, without copying them.
func writePattern(w io.Writer, n int64) error {
	for block := patternBlock(); n > 0; n -= int64(len(block)) {
		if _, err := w.Write(block[:min(n, int64(len(block)))]); err != nil {
			return err
		}
	}
	return nil
}
