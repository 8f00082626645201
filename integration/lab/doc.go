// Package lab builds networks of hosts inside one process, to try a director on. A [Host] is a network namespace; a
// [Network] is a client, a director and servers made of hosts, with the virtual IP (VIP) assigned nowhere:
//
//	client1 ------------ director ------------ server1..N         VIP 10.96.0.10, fd00:96::10
//	   eth0            dc        dr            eth0
//	10.0.1.1/24    10.0.1.254   10.0.2.254     10.0.2.11/24 ..
//	fd00:1::1/64   fd00:1::fe   fd00:2::fe     fd00:2::11/64 ..
//
// Clients and servers have a default route via the director, so that they reach each other through it, and so that
// whatever takes packets for the VIP in the director gets both directions of a connection. Several clients or servers
// share a network by a bridge, which stands in a host of its own. [Options] has the variations:
//
//	PointToPoint                      director --dr1-- server1      each server has a link of its own; the director
//	                                     |------dr2-- server2      knows it by a /32 and a /128 route
//
//	ClientRouter      client1 ------- rc[router]rr ------- dc[director]dr ------- server1
//	                  10.0.1.1   10.0.1.254  10.0.3.1   10.0.3.254
//
//	ServerRouter      client1 ------- dc[director]dr ------- rc[router]rr ------- server1
//	                                      10.0.4.254    10.0.4.1  10.0.2.254   10.0.2.11
//
//	OneNetwork        client1   director   server1      10.0.1.1, 10.0.1.254, 10.0.1.11. The servers' only way to the
//	                     |____dc___|__________|         network is via the director, or replies would pass it by
//
// All is made with netlink by the process itself: no program is run, nothing is written to the file system, and nothing
// outlives the process, not even one that was killed.
//
// # Use
//
//	n, err := lab.New(lab.Options{Servers: 2})
//	if err != nil {
//		return err
//	}
//	defer n.Close()
//	for _, server := range n.Servers {
//		if _, err := server.ServeHTTP(":80"); err != nil {
//			return err
//		}
//	}
//	director := n.Director.Command(ctx, "lvsd", "run", "-c", "lvsd.toml")
//	if err := director.Start(); err != nil {
//		return err
//	}
//	...
//	response, err := n.Clients[0].HTTPClient().Get("http://" + n.VIP4.String())
//
// Tests use package labtest, which also takes the network down and shows its state when a test fails.
//
// # Threads
//
// A namespace belongs to a thread: the sockets a thread makes, the programs it starts and the /proc/sys/net it sees are
// those of the namespace the thread is in, while a Go goroutine may move from thread to thread. Host hides this.
// [Host.Do] runs a function on a thread that entered the namespace and that ends with the function, as Go ends a thread
// whose goroutine is still locked to it: a thread that was in another namespace never runs anything else. A socket stays
// in its namespace wherever it is used; so the net.Conn that [Host.Dial] returns needs no care. Goroutines that the
// function starts are not inside. Paths below /proc/self are about the process's first thread, which the lab leaves
// alone; /proc/thread-self/net is the right one inside Do.
//
// # Privileges
//
// Namespaces need CAP_SYS_ADMIN and CAP_NET_ADMIN: root, or an ordinary user inside a user namespace.
// [EnterUserNamespace] runs a program again inside one; [Check] says whether that is necessary.
package lab
