# SPDX-License-Identifier: Apache-2.0
"""Addresses and wires of the testbed.

    client ─ eth0 ══════ eth0 ─ lb ─ eth1 ══════ lb ┐
                                                    ├ br0 (switch) ═ rs1..rsN ══ eth0 ─ rs1..rsN
    ══ is a veth pair; every box is a network namespace

Addresses come from the documentation and private ranges (RFC 5737, 3849, 1918, 4193) and exist in these
namespaces alone. The balancer's eth0 and eth1, and the ends that face them, have one queue per worker.

Which queue of lbd's end a packet arrives at: veth delivers to the queue of the same number as the sender's
transmit queue (drivers/net/veth.c veth_xmit), and the sender's kernel picks that by the socket's or the
flow's hash (net/core/dev.c skb_tx_hash). So one flow stays on one queue, few flows may all meet at one, and
the two directions of a flow arrive at queues that have nothing to do with each other.

NB: the servers' own links have a single queue, on purpose. veth does not clear skb->queue_mapping on the way;
a bridge (or router) behind it takes queue number n for "received on queue n-1" and reuses it, so with two
queues on both links everything from the servers met at queue 0 of the balancer. Number 0 alone means "not
recorded", and the hash decides.

What veth needs, each found by measuring:
- NAPI on the ends that face lbd (GRO on, so that received TCP segments are merged again: native XDP on lbd's
  end switches off its peer's segmentation offload, and lbd sends packets of the MTU's size at most).
- A queueing discipline. A veth ring holds 256 packets. Without a discipline (veth's default) what finds it
  full is dropped; with one the kernel (from 6.16 on) stops the queue instead, and an AF_XDP transmission is
  tried again.
- IPv6 without duplicate address detection, or addresses are unusable for the first second or two.
"""

import re
from dataclasses import dataclass
from functools import cached_property

from lbd.testbed.netns import NAMESPACES, Namespace

MTU = 1500
VIP4, VIP6 = "192.0.2.10", "2001:db8:1::10"
CLIENT_NET = ("192.0.2.0/24", "2001:db8:1::/64")
SERVER_NET = ("10.77.0.0/24", "fd77::/64")
LB_CLIENT = ("192.0.2.1", "2001:db8:1::1")
LB_SERVER = ("10.77.0.1", "fd77::1")


@dataclass(frozen=True)
class Host:
    """A station of the testbed with one interface, eth0."""

    ns: Namespace
    mac: str
    address4: str
    address6: str

    @property
    def name(self) -> str:
        return self.ns.name.rpartition("-")[2]


class Topology:
    """The namespaces and what connects them; no processes."""

    def __init__(
        self,
        prefix: str,
        queues: int = 2,
        servers: int = 3,
        lips: int = 4,
        clients: int = 1,
        client_mtu: int = MTU,
        server_mtu: int = MTU,
        routing: bool = False,
    ) -> None:
        """`clients`: addresses of the client; `client_mtu`, `server_mtu`: of the balancer's links on that
        side; `routing`: the balancer's kernel routes between both sides, to compare with."""
        assert 1 <= servers <= 90 and 1 <= clients <= 100 and 1 <= lips <= 50
        self.prefix, self.queues, self.routing = prefix, queues, routing
        self.client_mtu, self.server_mtu = client_mtu, server_mtu
        self.client_addresses4 = [f"192.0.2.{100 + n}" for n in range(clients)]
        self.client_addresses6 = [f"2001:db8:1::{100 + n}" for n in range(clients)]
        self.client = Host(
            Namespace(f"{prefix}-client"),
            "02:1b:d0:01:00:64",
            self.client_addresses4[0],
            self.client_addresses6[0],
        )
        self.lb = Namespace(f"{prefix}-lb")
        self.switch = Namespace(f"{prefix}-switch")
        self.servers = [
            Host(
                Namespace(f"{prefix}-rs{n}"),
                f"02:1b:d0:02:00:{10 + n:02x}",
                f"10.77.0.{10 + n}",
                f"fd77::{10 + n}",
            )
            for n in range(1, servers + 1)
        ]
        self.lips4 = [f"10.77.0.{200 + n}" for n in range(1, lips + 1)]
        self.lips6 = [f"fd77::{200 + n}" for n in range(1, lips + 1)]
        self.lb_macs = {"eth0": "02:1b:d0:01:00:01", "eth1": "02:1b:d0:02:00:01"}

    @cached_property
    def namespaces(self) -> list[Namespace]:
        return [self.lb, self.client.ns, *(s.ns for s in self.servers), self.switch]

    def up(self) -> None:
        queues, client_mtu, server_mtu = self.queues, self.client_mtu, self.server_mtu
        for ns in self.namespaces:
            ns.add()
            ns.sysctl(
                net__ipv6__conf__all__disable_ipv6=int(ns is self.switch),
                net__ipv6__conf__default__disable_ipv6=int(ns is self.switch),
                net__ipv6__conf__default__accept_dad=0,
                net__ipv6__conf__default__router_solicitations=0,
                net__ipv4__ip_local_port_range="10000 65535",  # 20,000 connections from one address, and more
            )
        self._wire(
            self.lb, "eth0", self.lb_macs["eth0"], self.client.ns, "eth0", self.client.mac, client_mtu, queues
        )
        self._wire(self.lb, "eth1", self.lb_macs["eth1"], self.switch, "lb", None, server_mtu, queues)
        for server in self.servers:
            self._wire(self.switch, server.name, None, server.ns, "eth0", server.mac, server_mtu, 1)
        self.switch.ip(
            "link add br0 type bridge stp_state 0 mcast_snooping 0",
            *(f"link set {port} master br0" for port in ("lb", *(s.name for s in self.servers))),
            "link set br0 up",
        )
        self._address(self.lb, "eth0", f"{LB_CLIENT[0]}/24", f"{LB_CLIENT[1]}/64")
        self._address(self.lb, "eth1", f"{LB_SERVER[0]}/24", f"{LB_SERVER[1]}/64")
        for four, six in zip(self.client_addresses4, self.client_addresses6, strict=True):
            self._address(self.client.ns, "eth0", f"{four}/24", f"{six}/64")
        for server in self.servers:
            self._address(server.ns, "eth0", f"{server.address4}/24", f"{server.address6}/64")
        self._routes(self.client.ns, client_mtu, CLIENT_NET, SERVER_NET, LB_CLIENT)
        for server in self.servers:
            self._routes(server.ns, server_mtu, SERVER_NET, CLIENT_NET, LB_SERVER)
        if self.routing:
            self.lb.sysctl(net__ipv4__ip_forward=1, net__ipv6__conf__all__forwarding=1)

    def _wire(
        self,
        a: Namespace,
        a_name: str,
        a_mac: str | None,
        b: Namespace,
        b_name: str,
        b_mac: str | None,
        mtu: int,
        queues: int,
    ) -> None:
        def end(name: str, mac: str | None) -> str:
            address = f"address {mac}" if mac else ""
            return f"{name} {address} mtu {mtu} txqueuelen 10000 numrxqueues {queues} numtxqueues {queues}"

        a.ip(f"link add {end(a_name, a_mac)} type veth peer name {end(b_name, b_mac)} netns {b.name}")
        for ns, name in ((a, a_name), (b, b_name)):
            ns.run(["ethtool", "-K", name, "gro", "on"])
            ns.ip(f"link set {name} up")
            self._discipline(ns, name, queues)

    @staticmethod
    def _discipline(ns: Namespace, device: str, queues: int) -> None:
        def tc(*words: str) -> None:
            ns.run(["tc", "qdisc", "add", "dev", device, *words, "limit", "20000"])

        if queues == 1:
            tc("root", "pfifo")
        else:
            ns.run(["tc", "qdisc", "add", "dev", device, "root", "handle", "1:", "mq"])
            for queue in range(1, queues + 1):
                tc("parent", f"1:{queue:x}", "pfifo")

    @staticmethod
    def _address(ns: Namespace, device: str, *addresses: str) -> None:
        ns.ip(*(f"address add {a} dev {device}{' nodad' if ':' in a else ''}" for a in addresses))

    def _routes(
        self, ns: Namespace, mtu: int, own: tuple[str, str], far: tuple[str, str], gateway: tuple[str, str]
    ) -> None:
        """To its own networks and, if the balancer routes, to those beyond it.

        Behind a small MTU, hosts announce a large MSS all the same, as if the small hop were further away:
        otherwise TCP would never send what does not fit, and path MTU discovery would not be needed."""
        advmss4, advmss6 = (f" advmss {MTU - 40}", f" advmss {MTU - 60}") if mtu < MTU else ("", "")
        if mtu < MTU:
            ns.ip(
                f"route replace {own[0]} dev eth0{advmss4}",
                f"route add {own[1]} dev eth0 metric 100{advmss6}",
            )
        if self.routing:
            ns.ip(
                f"route add {far[0]} via {gateway[0]}{advmss4}",
                f"route add {far[1]} via {gateway[1]}{advmss6}",
            )

    def down(self) -> None:
        """Remove every namespace of this prefix, whoever made them and however many servers there were."""
        failed: list[Exception] = []
        roles = re.compile(re.escape(self.prefix) + "-(lb|client|switch|rs[0-9]+)")
        names = sorted(path.name for path in NAMESPACES.glob("*") if roles.fullmatch(path.name))
        for name in sorted(names, key=lambda name: not name.endswith("-lb")):  # who forwards goes first
            try:
                Namespace(name).remove()
            except Exception as e:  # go on: as much as possible goes away
                failed.append(e)
        if failed:
            raise failed[0]
