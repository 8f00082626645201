package conf

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"

	"github.com/lvsd/lvsd/balancer"
)

// keyHint says what somebody who wrote an unknown key into a section was probably looking for.
func keyHint(section, name string) string {
	known := keysOf(section)
	word := normal(name)
	if i := slices.Index(known, word); i >= 0 {
		return fmt.Sprintf("did you mean %q?", known[i])
	}
	advice, foreign := foreignKeys[word]
	for _, s := range sections {
		if !foreign && slices.Contains(s.keys, word) {
			return elsewhere(section, word, s.name)
		}
	}
	near, distance := nearest(name, known)
	if distance == 1 {
		return fmt.Sprintf("did you mean %q?", near)
	}
	if foreign {
		return advice
	}
	if section == "tunables" && slices.Contains(otherSysctls, word) {
		return "lvsd has no such knob; the sysctls of IPVS that it has are " + strings.Join(known, ", ")
	}
	if near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return fmt.Sprintf("%s knows %s", header(section), strings.Join(known, ", "))
}

// elsewhere says that a key found in one section is known in another.
func elsewhere(section, word, home string) string {
	switch {
	case home == "":
		return fmt.Sprintf("a table stands at the beginning of a line, as %s, and ends the table before it", header(word))
	case section == "service.server" && home == "service":
		return fmt.Sprintf("%s is a key of the service; put it above the service's first [[service.server]]", word)
	}
	return fmt.Sprintf("%s is a key of %s", word, header(home))
}

// header is how a section begins.
func header(section string) string {
	switch section {
	case "":
		return "the file"
	case "service", "service.server":
		return "[[" + section + "]]"
	}
	return "[" + section + "]"
}

func normal(word string) string { return strings.ReplaceAll(strings.ToLower(word), "-", "_") }

// nearest returns the known word that is nearest to a word, if one is near. The start of a known word is at a
// distance of 1.
func nearest(word string, known []string) (best string, distance int) {
	word = normal(word)
	if len(word) > 64 {
		return "", 0
	}
	distance = 1 + max(1, len(word)/3)
	for _, k := range known {
		d := levenshtein.ComputeDistance(word, k)
		if len(word) >= 3 && strings.HasPrefix(k, word) {
			d = min(d, 1)
		}
		if d < distance {
			best, distance = k, d
		}
	}
	return best, distance
}

// didYouMean is the end of a message about a value that is not one of the known words.
func didYouMean(word string, known []string) string {
	if best, _ := nearest(word, known); best != "" {
		return fmt.Sprintf("; did you mean %q?", best)
	}
	return ""
}

// ipvsSchedulers are the schedulers of Linux 6.12.
var ipvsSchedulers = []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh", "twos"}

// foreignSchedulers are what HAProxy, nginx and others call schedulers that IPVS has too.
var foreignSchedulers = map[string]string{
	"roundrobin": "wrr", "round_robin": "rr", "static_rr": "wrr", "weighted_round_robin": "wrr",
	"leastconn": "wlc", "least_conn": "wlc", "least_connection": "lc", "least_connections": "lc", "weighted_least_connection": "wlc",
	"source": "sh", "ip_hash": "sh", "source_hash": "sh", "maglev": "mh", "random": "twos", "first": "fo",
}

func schedulerHint(name string) string {
	var known []string
	for _, s := range ipvsSchedulers {
		if knownScheduler(s) {
			known = append(known, s)
		}
	}
	word := normal(name)
	if slices.Contains(known, word) {
		return fmt.Sprintf("; did you mean %q?", word)
	}
	if meant, ok := foreignSchedulers[word]; ok {
		if slices.Contains(known, meant) {
			return fmt.Sprintf("; did you mean %q?", meant)
		}
		word = meant
	}
	if slices.Contains(ipvsSchedulers, word) {
		return fmt.Sprintf("; this version of lvsd does not have %s of IPVS yet", word)
	}
	return didYouMean(word, known)
}

// knownScheduler asks the balancer in the only way in which it can be asked: with a spec that is right but for the
// scheduler.
func knownScheduler(name string) bool {
	spec := balancer.DefaultSpec()
	spec.Services = []balancer.ServiceSpec{{
		Protocol:  balancer.TCP,
		Address:   netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), 80),
		Scheduler: name,
	}}
	return spec.Validate() == nil
}

// otherSysctls are the sysctls of IPVS in Linux 6.12 (ipvs.md section 7). Those that lvsd has are known keys and
// never looked for here.
var otherSysctls = []string{
	"am_droprate", "amemthresh", "backup_only", "cache_bypass", "conn_reuse_mode", "conntrack", "debug_level", "drop_entry",
	"drop_packet", "est_cpulist", "est_nice", "expire_nodest_conn", "expire_quiescent_template", "ignore_tunneled",
	"lblc_expiration", "lblcr_expiration", "nat_icmp_send", "pmtu_disc", "run_estimation", "schedule_icmp", "secure_tcp",
	"sloppy_sctp", "sloppy_tcp", "snat_reroute", "sync_persist_mode", "sync_ports", "sync_qlen_max", "sync_refresh_period",
	"sync_retries", "sync_sock_size", "sync_threshold", "sync_version",
}

// foreignKeys are the words of keepalived, ldirectord, ipvsadm, HAProxy, nginx and their like, and what to write
// instead. A word that is a known key in the section where it was found is not looked for here.
var foreignKeys = byWord()

var advices = []struct{ advice, words string }{
	{`a virtual service is headed [[service]] and has address = "VIP:port"`,
		"virtual_server virtual_service virtual virtual_server_group vs vserver services frontend frontends " +
			"listen listener upstream"},
	{`a real server is headed [[service.server]], below its [[service]], and has address = "RIP:port"`,
		"real_server real_servers real rs servers server backend backends destination dest destinations " +
			"member members pool upstreams default_server"},
	{`the key is scheduler, of [[service]], such as scheduler = "wlc"`,
		"lb_algo lvs_sched algorithm lb_algorithm balance lb_policy policy method strategy sched"},
	{`lvsd always translates addresses (NAT, masquerading); leave the key out`,
		"lb_kind lvs_method forward forwarding forwarding_method packet_forwarding_method gate masq ipip nat"},
	{`the port is a part of the address: address = "10.0.0.1:80"`,
		"port vport virtualport virtual_port rport"},
	{`the key is address, such as address = "10.0.0.1:80"`,
		"ip host vip rip virtual_ip real_ip bind addr ip_address"},
	{`the key is protocol, of [[service]]: protocol = "tcp" or "udp"`,
		"proto ip_protocol mode"},
	{`the name of the tun device is tun, of [director]`,
		"interface device dev ifname tun_name tun_device"},
	{`the number of workers is queues, of [director]`,
		"worker workers threads nbthread worker_processes cpus cpu"},
	{`the path of the admin socket is socket, of [director]`,
		"admin admin_socket api control sock listen_socket socket_path stats_socket"},
	{`the bound of the connection table is connections, of [director]`,
		"maxconn max_conn max_conns max_connections conn_tab_bits conn_tab_size connection_limit"},
	{`the number of the routing table is table, of [director]`,
		"rt_table routing_table route_table"},
	{`idle times are tcp, tcpfin and udp, of [timeouts]`,
		"timeout idle_timeout client_timeout server_timeout set"},
	{`the idle time of established TCP connections is tcp, of [timeouts]`,
		"timeout_established tcp_timeout timeout_tcp established"},
	{`the idle time after a FIN is tcpfin, of [timeouts]`,
		"timeout_fin tcp_fin_timeout timeout_tcpfin fin tcpfin_timeout fin_wait timeout_finwait tcp_fin"},
	{`the idle time of UDP is udp, of [timeouts]`,
		"timeout_udp udp_timeout"},
	{`IPVS's sysctls are keys of [tunables] by their last word, such as expire_nodest_conn = 1`,
		"sysctl sysctls net"},
	{`settings of the director itself are in [director]`,
		"global global_defs globals defaults main general settings lvsd"},
	{`lvsd does not speak VRRP; a VIP is whatever address a [[service]] has`,
		"vrrp_instance vrrp_script vrrp_sync_group virtual_router_id virtual_ipaddress track_script"},
	{`this version of lvsd has no health checks`,
		"delay_loop delay_before_retry connect_timeout retry warmup tcp_check http_get ssl_get misc_check " +
			"dns_check udp_check ping_check notify_up notify_down alpha omega check checks checktype " +
			"checkinterval checkcount checktimeout healthcheck health_check health inter rise fall"},
	{`this version of lvsd has no persistence`,
		"persistence_timeout persistence_granularity persistence persistent sticky stick stick_table " +
			"session_affinity"},
	{`this version of lvsd has no sorry server and no quorum; weight = 0 quiesces a server`,
		"quorum quorum_up quorum_down hysteresis sorry_server sorry_server_inhibit fallback backup " +
			"inhibit_on_failure quiescent"},
	{`this version of lvsd has no connection thresholds`,
		"uthreshold lthreshold u_threshold l_threshold upper_threshold lower_threshold"},
	{`this version of lvsd has no one-packet scheduling`,
		"ops one_packet one_packet_scheduling"},
	{`lvsd has no firewall marks; a service is an address and a port`,
		"fwmark virtual_server_fwmark fwm mark"},
	{`services and servers have no names; write a comment behind #`,
		"name id description comment label alias"},
	{`to quiesce a server write weight = 0; to take it out put # before its lines`,
		"enabled enable disabled down state active"},
	{`a configuration is one file`,
		"include includes import"},
	{`that is not set in this file`,
		"log log_level logging loglevel debug verbose user group pidfile pid daemon daemonize"},
}

// byWord finds the advice by each of its words.
func byWord() map[string]string {
	found := make(map[string]string)
	for _, a := range advices {
		for _, word := range strings.Fields(a.words) {
			found[word] = a.advice
		}
	}
	return found
}
