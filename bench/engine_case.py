"""The cases of the engine benchmark that are packets in, packets out: established, new, many services; and what follows from them.

Each pass of the engine is followed by one of its floor. In every pass all packets have to leave, none may be counted as dropped,
and some of the frames are compared, to the last byte, with what reference.py makes of the frame that came; or there is no figure.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lbd._fastpath import conn_bytes

from bench._engine import Floor, address
from bench.figure import Figure
from bench.reference import SHIM_GRE, Path, ends, forwarded, shim_gue, translated, tunnelled, unchanged
from bench.scene import (
    BATCH,
    GUE_PORT,
    LOCAL,
    MAC_CLIENT,
    MAC_LB,
    MAC_ROUTER,
    PORTS,
    PROTO,
    RST,
    SERVER,
    SYN,
    SYNACK,
    Refused,
    Scene,
    server_mac,
)

WAYS = ("from clients", "from real servers", "both ways")
SAMPLE = 8  # frames compared in each pass
WARM = 3  # passes before the first that counts
FLOW_PORT = 49152  # GUE's source ports are from here on
K8, M1, M16 = 8192, 1 << 20, 1 << 24


@dataclass
class Context:
    """How to run; `step` is told about each pass."""

    passes: int = 41
    quick: bool = False
    step: Callable[[], None] = lambda: None


# --- right answers ----------------------------------------------------------------------------------------------------------------


def right_frame(scene: Scene, i: int, came: bytes, left: bytes) -> bytes:
    """As the i-th planned frame, of an established connection, has to leave. What only `left` can tell is taken from there: the
    identification of an IPv4 header that NAT64 makes, the source port of GUE, which tells flows apart."""
    back, source, sport, destination, dport = scene.bench.ends_of(i)
    if scene.mode == "dr":
        return unchanged(came, server_mac(destination), MAC_LB)
    path = Path(MAC_CLIENT if back else MAC_ROUTER, MAC_LB, source, sport, destination, dport)
    if scene.mode == "nat64":
        return translated(came, path, left[18:20])
    if not scene.one_way:
        return forwarded(came, path)
    shim = 4, b""
    if scene.mode == "gre":
        shim = SHIM_GRE
    elif scene.mode == "gue":
        shim = shim_gue(max(FLOW_PORT, ends(left)[1]), GUE_PORT, came[16] << 8 | came[17])
    return tunnelled(came, MAC_ROUTER, MAC_LB, address(LOCAL, 0, scene.af), destination, shim)


def check_known(scene: Scene, n: int) -> None:
    """Of established connections: the engine said in advance, when they were opened, where their packets would go."""
    for i in range(0, n, max(1, n // SAMPLE)):
        came, left = scene.bench.pair(i)
        right = right_frame(scene, i, came, left)
        if left != right:
            raise Refused(f"{scene.name}: packet {i} left as {left.hex()}, not as {right.hex()}")


def check_scheduled(scene: Scene, n: int, homes: dict[int, bytes]) -> None:
    """Of datagrams without connections (DR, by hash): to a real server's MAC, a flow's to the same one always (homes: which)."""
    macs = {server_mac(address(SERVER, d, scene.af)) for d in range(scene.servers)}
    for i in range(0, n, max(1, n // SAMPLE)):
        came, left = scene.bench.pair(i)
        mac = left[:6]
        if left != unchanged(came, mac, MAC_LB) or mac not in macs or homes.setdefault(scene.bench.flow_of(i), mac) != mac:
            raise Refused(f"{scene.name}: packet {i} left as {left.hex()}")


def check_new(scene: Scene, n: int, servers: set[bytes], locals_: set[bytes], homes: dict[bytes, bytes]) -> None:
    """Of new ones: to a real server of theirs, from a local address, each from another port. homes: clients' real servers, where
    they persist."""
    seen = set()
    for i in range(0, n, max(1, n // SAMPLE)):
        came, left = scene.bench.pair(i)
        source, sport, destination, dport = ends(left)
        if left != forwarded(came, Path(MAC_ROUTER, MAC_LB, source, sport, destination, dport)):
            raise Refused(f"{scene.name}: packet {i} left as {left.hex()}")
        if source not in locals_ or destination not in servers or dport != 80 or sport not in PORTS:
            raise Refused(f"{scene.name}: packet {i} left from {source.hex()}:{sport} to {destination.hex()}:{dport}")
        seen.add((source, sport, destination))
        if scene.persist and homes.setdefault(ends(came)[0], destination) != destination:
            raise Refused(f"{scene.name}: packet {i} left for {destination.hex()}, its client's others for another real server")
    if len(seen) != len(range(0, n, max(1, n // SAMPLE))):
        raise Refused(f"{scene.name}: two new connections share a local address and port")


def all_sent(scene: Scene, n: int) -> None:
    if scene.bench.sent() != n or scene.drops():
        raise Refused(f"{scene.name}: {scene.bench.sent()} of {n} packets were sent (dropped so far: {scene.drops()})")


# --- established ------------------------------------------------------------------------------------------------------------------


def known_pass(scene: Scene, way: int, burst: int = 64, whole: bool = False) -> float:
    """ns per packet of one pass over the scene's connections."""
    scene.bench.plan_known(BATCH, scene.flows, way)
    ns = scene.bench.go(burst, whole)
    all_sent(scene, BATCH)
    check_known(scene, BATCH)
    return float(ns) / BATCH


def known_figure(ctx: Context, scene: Scene, floor: Floor, way: int, burst: int = 64, whole: bool = False,
                 goal: float | None = None) -> Figure:  # fmt: skip
    own, bare = [], []
    for number in range(-WARM, ctx.passes):
        ns = known_pass(scene, way, burst, whole)
        floor.go(burst)  # has what the engine's pass drove out (page walks, mostly) back in the cache
        below = floor.go(burst) / BATCH
        if number >= 0:
            own.append(ns)
            bare.append(below)
        ctx.step()
    case = "established" + (", whole turn" if whole else "")
    params = {"proto": PROTO[scene.proto], "ip": scene.af, "flows": scene.flows, "way": WAYS[way], "burst": burst}
    return Figure(case, params, "ns", own, "bare table", bare, goal)


def established(ctx: Context, af: int, proto: int, flows: int, goal: float | None) -> Iterator[Figure]:
    scene = Scene(af, proto, flows).open()
    floor = Floor(flows, 1 if af == 4 else 2)
    for way in range(3):
        yield known_figure(ctx, scene, floor, way, goal=goal)
    if flows == M1:
        yield known_figure(ctx, scene, floor, 2, burst=32, goal=goal)
        yield known_figure(ctx, scene, floor, 2, whole=True)


def modes(ctx: Context, mode: str, flows: int, ways: tuple[int, ...], goal: float | None) -> Iterator[Figure]:
    """The other forwarding modes, TCP over IPv4; NAT64's clients have IPv6."""
    scene = Scene(6 if mode == "nat64" else 4, flows=flows, mode=mode).open()
    floor = Floor(flows, 1 if scene.af == 4 else 2)
    for way in ways:
        figure = known_figure(ctx, scene, floor, way, goal=goal)
        figure.params = {"mode": mode, **figure.params}
        yield figure


def scheduled(ctx: Context, flows: int, goal: float) -> Iterator[Figure]:
    """UDP, DR, every datagram scheduled by the hash of its client's address and port: no connections. The floor is that of a table
    of the least size, which the engine looks into in vain."""
    scene = Scene(4, 17, flows, scheduler="mh", mode="dr", one_packet=True).open()
    floor = Floor(1024, 1)
    homes: dict[int, bytes] = {}
    own, bare = [], []
    for number in range(-WARM, ctx.passes):
        scene.bench.plan_known(BATCH, flows, 0)
        ns = scene.bench.go() / BATCH
        floor.go()
        below = floor.go() / BATCH
        all_sent(scene, BATCH)
        check_scheduled(scene, BATCH, homes)
        if number >= 0:
            own.append(ns)
            bare.append(below)
        ctx.step()
    if scene.used():
        raise Refused(f"{scene.name}: {scene.used()} connections in the table")
    params = {"mode": "dr", "proto": "udp", "ip": 4, "flows": flows}
    yield Figure("one-packet scheduling, mh", params, "ns", own, "bare table", bare, goal)


def growth(figures: list[Figure]) -> Iterator[Figure]:
    """From what was measured: a packet of 16 M flows beside one of 8 k, and the same of the bare table."""
    same = {"proto": "tcp", "ip": 4, "way": WAYS[2], "burst": 64}
    found = {f.params["flows"]: f for f in figures if f.case == "established" and f.params.items() >= same.items()}
    if K8 in found and M16 in found:
        few, many = found[K8], found[M16]
        own = [m / few.median for m in many.runs]
        bare = [m / f for m, f in zip(many.peer_runs, few.peer_runs, strict=True)]
        params = {"proto": "tcp", "ip": 4, "flows": f"{K8} to {M16}", "way": WAYS[2]}
        yield Figure("growth of a packet's cost", params, "times", own, "bare table", bare, goal=2.0)


# --- new --------------------------------------------------------------------------------------------------------------------------


def scatter(scene: Scene, n: int) -> None:
    """Has the next n records that are free lie anywhere among themselves, as they do after a while of coming and going: opens n
    connections and takes them back in random order (TCP: a reset; UDP has none, its records stay in order)."""
    if scene.proto != 6:
        return
    scene.each(scene.flows, n, False, SYN)
    scene.each_scattered(scene.flows, n, RST)
    if scene.used() != scene.flows:
        raise Refused(f"{scene.name}: {scene.used()} connections, not {scene.flows}, after those of the preparation were reset")


def new(ctx: Context, af: int, proto: int, flows: int, scheduler: str, goal: float | None,
        clients: int = 0) -> Iterator[Figure]:  # fmt: skip
    """Into a table that holds `flows` already: every pass another batch of them, none of which is taken away. clients: of a service
    whose clients keep their real servers; all of them have one when the passes begin."""
    passes = WARM + ctx.passes
    scene = Scene(af, proto, flows, scheduler=scheduler, room=passes * BATCH, clients=clients, persist=clients > 0).open()
    floor = Floor(flows, 1 if af == 4 else 2)
    scatter(scene, passes * BATCH)
    servers = {address(SERVER, n, af) for n in range(scene.servers)}
    locals_ = {address(LOCAL, n, af) for n in range(scene.lips)}
    homes: dict[bytes, bytes] = {}
    own, bare = [], []
    for number in range(passes):
        scene.bench.plan_each(flows + number * BATCH, BATCH, False, SYN)
        ns = scene.bench.go() / BATCH
        floor.go(new=True)
        below = floor.go(new=True) / BATCH
        all_sent(scene, BATCH)
        check_new(scene, BATCH, servers, locals_, homes)
        if number >= WARM:
            own.append(ns)
            bare.append(below)
        ctx.step()
    made = flows + passes * BATCH
    if scene.used() != made or scene.bench.note(made) != made:
        raise Refused(f"{scene.name}: {scene.used()} connections in the table, not {made}")
    scene.each(flows, passes * BATCH, True, SYNACK)  # the answers find their way back
    check_known(scene, BATCH)
    name = "new connection (SYN)" if proto == 6 else f"new flow, {scheduler} (makes a connection)"
    params = {"proto": PROTO[proto], "ip": af, "into": flows}
    if clients:
        name, params = f"{name}, persistent", {**params, "clients": clients}
    yield Figure(name, params, "ns", own, "bare table, entering", bare, goal)


# --- services, memory -------------------------------------------------------------------------------------------------------------


def services(ctx: Context, many: int, flows: int) -> Iterator[Figure]:
    """The same number of flows over many services and over one, pass by pass."""
    one, all_of_them = Scene(flows=flows).open(), Scene(flows=flows, services=many).open()
    for way in range(3):
        own: list[float] = []
        single: list[float] = []
        for number in range(-WARM, ctx.passes):
            seen = known_pass(all_of_them, way), known_pass(one, way)
            if number >= 0:
                own.append(seen[0])
                single.append(seen[1])
            ctx.step()
        params = {"services": many, "servers": 10, "flows": flows, "way": WAYS[way]}
        yield Figure("established, many services", params, "ns", own, "one service", single, goal=1.1, judged="ratio")


def memory(ctx: Context) -> Iterator[Figure]:
    """Of a worker's connection file with place for 16 M of one family: records, index, head."""
    for af, goal in ((4, 128.0), (6, None)):
        sizes = {"conns4": M16 if af == 4 else 0, "conns6": M16 if af == 6 else 0}
        yield Figure("memory per connection", {"ip": af}, "bytes", [conn_bytes(sizes) / M16], goal=goal)


def huge_share() -> float:
    """Of this process's anonymous memory, what lies in huge pages: without them every table access is a page walk more."""
    kib = dict.fromkeys(("Anonymous", "AnonHugePages"), 0)
    with open(f"/proc/{os.getpid()}/smaps_rollup") as f:
        for line in f:
            name, _, value = line.partition(":")
            if name in kib:
                kib[name] = int(value.split()[0])
    return kib["AnonHugePages"] / max(1, kib["Anonymous"])
