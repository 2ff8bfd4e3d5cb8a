"""For the programs inside the lab VM: services in every mode, both families, by TCP, UDP and SCTP, and what talks through them.

    client 192.0.2.100, 2001:db8:1::100 ── 192.0.2.1 [ lbd ] 10.77.0.1 ── server 10.77.0.11, fd77::11

Client and server are namespaces; the devices between are their program's. The real server answers clients of `dr` and the tunnels
itself, from VIPs on its lo, by way of the balancer's kernel; its kernel takes the tunnels apart. SNAT goes the other way: from the
server to a second address of the client's.
"""

import os
import selectors
import socket
import subprocess
import threading
from collections.abc import Iterable, Sequence

from tests.vm.guest import endpoint, inside, note, sh

CLIENT = {4: "192.0.2.100", 6: "2001:db8:1::100"}
LB_CLIENT = {4: "192.0.2.1", 6: "2001:db8:1::1"}
LB_SERVER = {4: "10.77.0.1", 6: "fd77::1"}
SERVER = {4: "10.77.0.11", 6: "fd77::11"}
LIP = {4: "10.77.0.2", 6: "fd77::2"}
NEAR = {4: "192.0.2.10", 6: "2001:db8:1::10"}  # added by lbd, as is
NEAR_PING = {"nat": {4: "192.0.2.12", 6: "2001:db8:1::12"}, "nat64": {6: "2001:db8:1::13"}}  # which are for pings alone
# on the real server's lo
FAR = {mode: {4: f"203.0.113.{n}", 6: f"2001:db8:51::{n}"} for n, mode in enumerate(("dr", "tunnel", "gre", "gue"), 1)}
REMOTE = {4: "192.0.2.101", 6: "2001:db8:1::101"}  # whom SNAT's hosts talk to, from POOL
POOL = {4: "192.0.2.50", 6: "2001:db8:1::50"}
GUE_PORT = 6080
TUNNEL = {"tunnel": "", "gre": 'tunnel = { type = "gre" }', "gue": f'tunnel = {{ type = "gue", port = {GUE_PORT} }}'}
MODES = ("fullnat", "nat", *FAR, "nat64", "snat")
PORTS = {mode: 7001 + n for n, mode in enumerate(MODES)}  # real servers' too: dr and tunnels don't change it
KINDS = {"tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP), "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
         "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP)}  # fmt: skip
SIZES = {"tcp": (1, 1000, 5000), "udp": (1, 1000), "sctp": (1, 1000, 5000)}
MODULES = ("ipip", "sit", "ip6_tunnel", "ip_gre", "ip6_gre", "fou", "fou6", "sctp")
CASES = [(mode, family, protocol) for mode in MODES for family in (4, 6) for protocol in KINDS
         if (mode, family) != ("nat64", 4) and (mode, protocol) != ("snat", "sctp")]  # fmt: skip
PINGED = [(mode, family, "icmp") for mode in ("fullnat", "nat", *FAR) for family in (4, 6)]  # services of ICMP, a VIP for each
PINGED.append(("nat64", 6, "icmp"))
PINGS = 3
Cases = Sequence[tuple[str, int, str]]  # mode, family, protocol


def word(mode: str) -> str:
    """What a service's `mode` says."""
    return "tunnel" if mode in TUNNEL else "fullnat" if mode == "nat64" else mode


def vip(mode: str, family: int) -> str:
    return FAR[mode][family] if mode in FAR else REMOTE[family] if mode == "snat" else NEAR[family]


def pinged(mode: str, family: int) -> str:
    return NEAR_PING[mode][family] if mode in NEAR_PING else vip(mode, family)


def real(mode: str, family: int) -> int:
    """The real server's family."""
    return 4 if mode == "nat64" else family


def seen_as(mode: str, family: int) -> str:
    """What the real server takes for the client."""
    return LIP[real(mode, family)] if mode in ("fullnat", "nat64") else POOL[family] if mode == "snat" else CLIENT[family]


def service(mode: str, family: int, protocol: str, address: str, server: str, front: str) -> str:
    return f"""
[[service]]
name = "{mode}-{protocol}{family}"
address = "{address}"
protocol = "{protocol}"
mode = "{word(mode)}"
interface = "{front}"
manage = {str(mode not in FAR).lower()}
{TUNNEL.get(mode, "")}
[[service.real_server]]
address = "{server}"
"""


def configuration(front: str, cases: Cases = CASES, pinged_ones: Cases = PINGED) -> str:
    """`front`: the interface that VIPs and SNAT's pool belong to."""
    text = ""
    for mode, family, protocol in cases:
        if mode != "snat":
            at, port = SERVER[real(mode, family)], PORTS[mode]
            text += service(mode, family, protocol, endpoint(vip(mode, family), port), endpoint(at, port), front)
    for mode, family, protocol in pinged_ones:
        text += service(mode, family, protocol, pinged(mode, family), SERVER[real(mode, family)], front)
    for family in outbound(cases):
        network = "10.77.0.0/24" if family == 4 else "fd77::/64"
        text += f"""
[[snat]]
name = "out{family}"
source = ["{network}"]
destination = ["{REMOTE[family]}"]
[[snat.pool]]
address = "{POOL[family]}"
interface = "{front}"
"""
    return text


def outbound(cases: Cases) -> list[int]:
    """Families of SNAT rules."""
    return sorted({family for mode, family, _ in cases if mode == "snat"})


def side(namespace: str, device: str, near: str) -> None:
    """Addresses of "client" or "server" on its device, and of the balancer on the one at the other end, `near`; both come up."""
    far_end, near_end = (CLIENT, LB_CLIENT) if namespace == "client" else (SERVER, LB_SERVER)
    for family, plen in ((4, 24), (6, 64)):
        nodad = "nodad" if family == 6 else ""
        sh(f"ip -n {namespace} addr add {far_end[family]}/{plen} dev {device} {nodad}")
        sh(f"ip addr add {near_end[family]}/{plen} dev {near} {nodad}")
    sh(f"ip -n {namespace} link set {device} up; ip link set {near} up")


def prepare(client: str, server: str) -> None:
    """Routes, far VIPs and the tunnels' ends, by the devices of these names in the namespaces."""
    for module in MODULES:
        sh(f"modprobe {module}")
    for family, plen in ((4, 32), (6, 128)):
        nodad = "nodad" if family == 6 else ""
        sh(f"ip -n server -{family} route replace default via {LB_SERVER[family]} dev {server}")
        sh(f"ip -n client addr add {REMOTE[family]}/{plen} dev {client} {nodad}")
        for each in FAR.values():
            sh(f"ip -n client -{family} route add {each[family]}/{plen} via {LB_CLIENT[family]} dev {client}")
            sh(f"ip -n server addr add {each[family]}/{plen} dev lo {nodad}")
    sh(f"ip -n server link add gre4 type gre local {SERVER[4]}; ip -n server link add gre6 type ip6gre local {SERVER[6]}")
    for end in ("tunl0", "ip6tnl0", "gre4", "gre6"):
        sh(f"ip -n server link set {end} up")
    sh(f"ip -n server fou add port {GUE_PORT} gue; ip -n server fou add port {GUE_PORT} gue -6")
    for ns in ("", "ip netns exec server ", "ip netns exec client "):
        # what comes out of a tunnel, and what a real server sends from a VIP, has no way back by the interface that it came by
        sh(f"{ns}sh -c 'for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done'")
    sh("ip netns exec server sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2")
    sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")


class Echo:
    """Answers with what it got, on sockets of a namespace, until the program ends; remembers who asked."""

    def __init__(self, namespace: str, points: Iterable[tuple[str, int, str]]) -> None:
        self.peers: dict[tuple[str, int, str], set[str]] = {}
        self._wait = selectors.DefaultSelector()
        with inside(namespace):
            for address, port, protocol in set(points):
                s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, *KINDS[protocol])
                s.bind((address, port))
                if protocol != "udp":
                    s.listen()
                self.peers[address, port, protocol] = set()
                self._wait.register(s, selectors.EVENT_READ, (address, port, protocol))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            for key, _ in self._wait.select():
                s, at = key.fileobj, key.data
                assert isinstance(s, socket.socket)
                if at is None:
                    self._stream(s)
                elif at[2] == "udp":
                    data, peer = s.recvfrom(65536)
                    self.peers[at].add(peer[0])
                    s.sendto(data, peer)
                else:
                    connection, peer = s.accept()
                    self.peers[at].add(peer[0])
                    self._wait.register(connection, selectors.EVENT_READ, None)

    def _stream(self, s: socket.socket) -> None:
        try:
            if data := s.recv(65536):
                s.sendall(data)
                return
        except OSError:
            pass
        self._wait.unregister(s)
        s.close()


def talk(namespace: str, source: str, address: str, port: int, protocol: str, sizes: Iterable[int] = ()) -> str:
    """There and back, messages of these sizes or SIZES: "right", or what went wrong."""
    with inside(namespace):
        s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, *KINDS[protocol])
    with s:
        try:
            s.settimeout(30)
            s.bind((source, 0))
            s.connect((address, port))
            right = all(ask(s, os.urandom(size), protocol) for size in sizes or SIZES[protocol])
            return "right" if right else "something else came back"
        except OSError as e:
            return str(e)


def ask(s: socket.socket, data: bytes, protocol: str) -> bool:
    if protocol == "udp":
        return ask_again(s, data)
    s.sendall(data)
    came = b""
    while len(came) < len(data):
        more = s.recv(65536)
        if not more:
            raise OSError("closed")
        came += more
    return came == data


def ask_again(s: socket.socket, data: bytes) -> bool:
    """A datagram, again if nothing comes: the first ones may be lost while neighbours are found."""
    s.settimeout(2)
    for _ in range(10):
        s.send(data)
        try:
            if s.recv(65536) == data:
                return True
        except TimeoutError:
            pass
    return False


def key(mode: str, family: int, protocol: str) -> str:
    return f"{mode} {family} {protocol}"


def play(cases: Cases = CASES, pinged_ones: Cases = PINGED, sizes: Iterable[int] = ()) -> dict[str, list[str]]:
    """By mode, family and protocol: "right" and who the real server took for the client; of pings, how many were answered, and by a
    service how many the real server got. `sizes`: of messages."""
    there = [(SERVER[real(m, f)] if m not in FAR else FAR[m][f], PORTS[m], p) for m, f, p in cases if m != "snat"]
    remote = [(REMOTE[f], PORTS[m], p) for m, f, p in cases if m == "snat"]
    server, outside = Echo("server", there), Echo("client", remote)
    found = {}
    for mode, family, protocol in cases:
        if mode == "snat":
            said = talk("server", SERVER[family], REMOTE[family], PORTS[mode], protocol, sizes)
            peers = outside.peers[REMOTE[family], PORTS[mode], protocol]
        else:
            said = talk("client", CLIENT[family], vip(mode, family), PORTS[mode], protocol, sizes)
            at = FAR[mode][family] if mode in FAR else SERVER[real(mode, family)]
            peers = server.peers[at, PORTS[mode], protocol]
        found[key(mode, family, protocol)] = [said, *sorted(peers)]
        note(mode, family, protocol, said, *peers)
    for family in outbound(cases):
        found[key("snat", family, "icmp")] = ping("server", REMOTE[family])
    for mode, family, protocol in pinged_ones:
        before = asked(real(mode, family))
        said = ping("client", pinged(mode, family))
        found[key(mode, family, protocol)] = [*said, f"{asked(real(mode, family)) - before} came"]
        note(mode, family, *found[key(mode, family, protocol)])
    return found


def ping(namespace: str, address: str) -> list[str]:
    argv = ["ip", "netns", "exec", namespace, "ping", "-c", str(PINGS), "-i", "0.2", "-W", "10", address]
    said = subprocess.run(argv, capture_output=True, text=True).stdout
    return [line.split(", ")[1] for line in said.splitlines() if " received" in line]


def asked(family: int) -> int:
    """Echo requests that the real server's kernel got so far."""
    counter = "IcmpInEchos" if family == 4 else "Icmp6InEchos"
    return int(sh(f"ip netns exec server nstat -asz {counter}").split()[-2])


def expected(cases: Cases = CASES, pinged_ones: Cases = PINGED) -> dict[str, list[str]]:
    """What `play` finds when all is well."""
    talks = {key(*case): ["right", seen_as(*case[:2])] for case in cases}
    pings = {key(*case): [f"{PINGS} received", f"{PINGS} came"] for case in pinged_ones}
    return talks | pings | {key("snat", family, "icmp"): [f"{PINGS} received"] for family in outbound(cases)}
