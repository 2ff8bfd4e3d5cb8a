"""[[snat]]: what is read, what is refused and with which remedy, what comes of it for workers."""

from ipaddress import ip_address, ip_interface, ip_network

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from lbd.config import Config, ConfigError, loads
from lbd.config.snat import AddressRange, read_range
from lbd.master.arena import Arena as Extents
from lbd.master.compose import Composer, disjoint
from lbd.master.desired import Desired
from lbd.master.offline import offline_commands
from lbd.master.reach import Reach
from lbd.master.reconcile import Reconciler, Records
from lbd.master.record import Address, Link, Route, Snapshot
from lbd.replay import Input, Replay
from lbd.shm import _shm as shm

GOOD = """\
[[interface]]
name = "eth0"
[[interface]]
name = "eth1"
[[local_address]]
address = "10.0.0.10"
interface = "eth1"
[[service]]
name = "web"
address = "192.0.2.10:80"
interface = "eth0"
[[service.real_server]]
address = "10.0.1.1:8080"
[[snat]]
name = "office"
source = ["10.1.0.0/16", "10.3.0.5-10.3.0.9", "10.4.0.1"]
in_interface = "eth1"
[[snat.pool]]
address = "198.51.100.1"
interface = "eth0"
"""
STATIC = """\
[[route]]
destination = "0.0.0.0/0"
gateway = "192.0.2.254"
interface = "eth0"
[[neighbor]]
interface = "eth0"
address = "192.0.2.254"
mac = "02:00:00:00:00:fe"
"""


def refused(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loads(text, "x.toml")
    return [f"{p.field}: {p.message}" for p in caught.value.problems]


def rule(**keys: str) -> str:
    lines = {"name": '"second"', "source": '["10.9.0.0/16"]', **keys}
    return "[[snat]]\n" + "".join(f"{k} = {v}\n" for k, v in lines.items()) + "[[snat.pool]]\n"


POOL = 'address = "198.51.100.9"\ninterface = "eth0"\n'
BROKEN = {
    "no pool": ('[[snat]]\nname = "a"\nsource = ["10.9.0.0/16"]\n', "snat[1]", "add [[snat.pool]]"),
    "no source": ('[[snat]]\nname = "a"\n[[snat.pool]]\n' + POOL, "snat[1].source", "is missing; add"),
    "empty source": (rule(source="[]") + POOL, "snat[1].source", "1 to"),
    "a service's name": (rule(name='"web"') + POOL, "snat[1].name", "choose another"),
    "a rule's name": (rule(name='"office"') + POOL, "snat[1].name", "choose another"),
    "bits beyond the prefix": (rule(source='["10.9.0.1/16"]') + POOL, "snat[1].source[0]", 'write "10.9.0.0/16"'),
    "a range upside down": (rule(source='["10.9.0.9-10.9.0.1"]') + POOL, "snat[1].source[0]", 'write "10.9.0.1-10.9.0.9"'),
    "a range of two families": (rule(source='["10.9.0.9-fd00::1"]') + POOL, "snat[1].source[0]", "one family"),
    "no address": (rule(source='["office"]') + POOL, "snat[1].source[0]", "write the address itself"),
    "a number": (rule(source="[10]") + POOL, "snat[1].source[0]", "write it in quotes"),
    "sources of two families": (rule(source='["10.9.0.0/16", "fd00::/8"]') + POOL, "snat[1].source[1]", "a rule for each family"),
    "destination of another family": (rule(destination='["fd00::/8"]') + POOL, "snat[1].destination[0]", "a rule for each family"),
    "pool of another family": (rule() + 'address = "2001:db8::1"\ninterface = "eth0"\n', "snat[1].pool[0].address", "must be IPv4"),
    "a VIP": (rule() + 'address = "192.0.2.10"\ninterface = "eth0"\n', "snat[1].pool[0].address", "use another address"),
    "a local address": (rule() + 'address = "10.0.0.10"\ninterface = "eth0"\n', "snat[1].pool[0].address", "FULLNAT sends from"),
    "another pool with the same": (rule() + 'address = "198.51.100.1"\ninterface = "eth1"\n', "snat[1].pool[0].address", "alike"),
    "twice": (rule() + POOL + "[[snat.pool]]\n" + POOL, "snat[1].pool[1].address", "stands twice"),
    "nowhere to add it": (rule() + 'address = "198.51.100.9"\n', "snat[1].pool[0]", "manage = false"),
    "unknown interface": (rule(in_interface='"eth7"') + POOL, "snat[1].in_interface", "must be an interface of lbd (eth0, eth1)"),
    "unknown way out": (rule(out_interface='"eth7"') + POOL, "snat[1].out_interface", "add it as an [[interface]]"),
    "protocol": (rule(protocol='"sctp"') + POOL, "snat[1].protocol", '"all", "tcp", "udp", "icmp"'),
    "unknown key": (rule(sources='["10.0.0.0/8"]') + POOL, "snat[1].sources", "did you mean `source`?"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_refused(name: str) -> None:
    text, field, words = BROKEN[name]
    found = refused(GOOD + text)
    assert any(f.startswith(field + ":") and words in f for f in found), found


def test_good_ones() -> None:
    config = loads(GOOD + rule(protocol='"icmp"', destination='["0.0.0.0/0"]') + POOL)
    assert [r.name for r in config.snat] == ["office", "second"]
    assert [str(a.address) for a in config.own_addresses()] == ["10.0.0.10", "198.51.100.1", "198.51.100.9"]
    again = Config.model_validate(config.to_plain())
    assert again == config


def test_rules_may_share_a_pool() -> None:
    loads(GOOD + rule(protocol='"udp"') + 'address = "198.51.100.1"\ninterface = "eth0"\n')


@pytest.mark.parametrize("text", ["10.0.0.0/8", "10.0.0.5-10.0.0.9", "10.0.0.5", "fd00::/8", "fd00::1-fd00::9"])
def test_ranges_read_back(text: str) -> None:
    assert str(read_range(text)) == text and read_range(str(read_range(text))) == read_range(text)


def test_ranges_are_joined() -> None:
    many = [read_range(t) for t in ("10.0.2.0/24", "10.0.0.0/23", "10.0.0.7", "10.1.0.5-10.1.0.9", "10.1.0.11")]
    assert [(str(ip_address(a)), str(ip_address(b))) for a, b in disjoint(many)] == [
        ("10.0.0.0", "10.0.2.255"), ("10.1.0.5", "10.1.0.9"), ("10.1.0.11", "10.1.0.11")
    ]  # fmt: skip
    assert isinstance(many[0], AddressRange)


def links() -> tuple[Link, ...]:
    return tuple(Link(n + 2, f"eth{n}", bytes([2, 0, 0, 0, 0, n]), 1500, True, "", None, None) for n in range(2))


def snapshot(routes: tuple[Route, ...] = (), addresses: tuple[Address, ...] = ()) -> Snapshot:
    return Snapshot(links(), addresses, routes, (), (), ())


def test_gateways_are_kept_resolved() -> None:
    """Those of routes to what rules are for: all without destinations, else those that overlap."""
    def route(prefix: str, gateway: str | None, ifindex: int = 2) -> Route:
        via = ip_address(gateway) if gateway else None
        return Route(ip_network(prefix), via, ifindex, 0)

    routes = (route("0.0.0.0/0", "192.0.2.254"), route("203.0.113.0/24", "192.0.2.253"), route("10.0.0.0/8", None, 3),
              route("172.16.0.0/12", "9.9.9.9", 77))  # fmt: skip
    reach = Reach(loads(GOOD), snapshot(routes))
    assert reach.gateways() == {(2, ip_address("192.0.2.254")), (2, ip_address("192.0.2.253"))}
    narrow = loads(GOOD.replace('in_interface = "eth1"', 'destination = ["198.18.0.0/15"]'))
    assert Reach(narrow, snapshot(routes)).gateways() == {(2, ip_address("192.0.2.254"))}
    assert Reach(loads(GOOD[: GOOD.index("[[snat]]")]), snapshot(routes)).gateways() == set()


def test_what_is_the_hosts_own() -> None:
    held = (Address(2, ip_interface("192.0.2.1/24"), 0), Address(9, ip_interface("172.16.5.5/16"), 0),
            Address(3, ip_interface("2001:db8::1/64"), 0), Address(2, ip_interface("192.0.2.7/32"), 0))  # fmt: skip
    own = {str(ip_address(a)) for a in Reach(loads(GOOD), snapshot((), held)).own_addresses()}
    assert own == {"192.0.2.10", "10.0.0.10", "198.51.100.1", "192.0.2.1", "192.0.2.255", "172.16.5.5", "172.16.255.255",
                   "2001:db8::1", "2001:db8::", "192.0.2.7"}  # fmt: skip
    assert Reach(loads(GOOD[: GOOD.index("[[snat]]")]), snapshot((), held)).own_addresses() == frozenset()


def desired(text: str) -> Desired:
    composer = Composer(loads(text))
    composer.look(Reach(composer.config, snapshot()))
    return composer.desired


class Arena(dict[int, int]):
    def write(self, at: int, slots: list[int]) -> None:
        self.update(enumerate(slots, at))


def reconciler(written: Arena) -> Reconciler:
    return Reconciler(64, 64, 16, Extents(4096, written.write))


def ops(commands: list[bytes]) -> list[int]:
    return [shm.command_head(c)[0] for c in commands]


def test_commands() -> None:
    """A rule is a service's number, a dest, its pool's local addresses, and a table that is replaced as a whole."""
    written = Arena()
    r = reconciler(written)
    batch = r.update(desired(GOOD))
    assert ops(batch).count(shm.CMD_SNAT_SET) == 1 and ops(batch).count(shm.CMD_LIP_SET) == 2
    number = r.rule_number("office")
    assert number is not None and r.names()[0][number] == "office"
    [placed] = [p for p in r.placed.values() if p.number == number]
    table = [written[placed.table_at + n] for n in range(len(placed.table))]
    [dest] = placed.dests.values()
    assert table[0] == dest and table[1] == r.lips.number(ip_address("198.51.100.1").packed)
    assert table[2:] == [int(ip_address(a)) for a in
                         ("10.1.0.0", "10.1.255.255", "10.3.0.5", "10.3.0.9", "10.4.0.1", "10.4.0.1")]  # fmt: skip
    assert r.update(desired(GOOD)) == []
    wider = GOOD.replace('"10.4.0.1"', '"10.4.0.0/24"')
    batch = r.update(desired(wider))
    assert ops(batch) == [shm.CMD_SNAT_SET, shm.CMD_NOP] and r.rule_number("office") == number
    batch = r.update(desired(GOOD[: GOOD.index("[[snat]]")]))
    assert ops(batch) == [shm.CMD_SVC_DEL, shm.CMD_DEST_DEL, shm.CMD_LIP_DEL, shm.CMD_NOP]


def test_a_new_master_finds_the_rules_numbers_again() -> None:
    """As a worker's records tell them."""
    first = reconciler(Arena())
    first.update(desired(GOOD))
    number = first.rule_number("office")
    [placed] = [p for p in first.placed.values() if p.number == number]
    found = Records(
        services={p.number: p.service.key for p in first.placed.values()},
        dests={n: key for p in first.placed.values() for key, n in p.dests.items()},
        lips={n: key for key, n in first.lips.items()},
        extents=[(placed.table_at, len(placed.table))],
        generation=first.generation,
    )
    second = reconciler(Arena())
    second.adopt([found])
    second.update(desired(GOOD))
    assert second.rule_number("office") == number


def test_replay_knows_rules() -> None:
    """The same engine, offline; packets named by their rule."""
    replay = Replay(loads(GOOD + STATIC))
    packet = IP(src="10.1.2.3", dst="203.0.113.9") / UDP(sport=1, dport=2)
    frame = bytes(Ether(dst="02:00:00:00:00:02", src="02:00:00:00:07:07") / packet)
    [outcome] = replay.run([Input(0, 0, 1, frame, False)])
    assert (outcome.verdict, outcome.service, outcome.real_server) == ("forward", "office", None)
    [(iface, out)] = outcome.out
    assert iface == 0 and Ether(out)[IP].src == "198.51.100.1"
    [other] = Replay(loads(GOOD + STATIC)).run([Input(0, 0, 0, frame, False)])
    assert other.verdict == "kernel", "in_interface is eth1"
    assert offline_commands(loads(GOOD))[0]
