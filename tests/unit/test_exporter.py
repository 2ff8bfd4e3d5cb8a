# SPDX-License-Identifier: Apache-2.0
"""The Prometheus exposition over real segments, and what parsers and promtool make of it."""

import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest, parser
from prometheus_client.openmetrics import parser as openmetrics

from lbd.config import Config, loads
from lbd.health.target import Status
from lbd.master.course import Course
from lbd.master.desired import RealServer, Service
from lbd.master.exporter import CHECK_BUCKETS, Exporter, totals
from lbd.master.exposition import SLICE, Exposition, label_text
from lbd.master.metric import COUNTER, METRICS
from lbd.master.runtime import PLAIN, Drain, Override
from lbd.master.series import CpuTime
from lbd.shm import _shm as shm

T = TypeVar("T")
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def config(services: int = 1, real_servers: int = 2, workers: int = 2, options: bool = False) -> Config:
    return loads(config_text(services, real_servers, workers, options))


def config_text(services: int = 1, real_servers: int = 2, workers: int = 2, options: bool = False) -> str:
    lines = [
        f"workers = {{ count = {workers} }}",
        "[tables]",
        "connections_ipv4 = 64",
        "connections_ipv6 = 64",
    ]
    lines += ["frames = 256", "services = 1024", "real_servers = 8192"]
    lines += [
        "[[interface]]",
        'name = "eth0"',
        "[[local_address]]",
        'address = "10.0.0.10"',
        "manage = false",
    ]
    lines += ["[[snat]]", 'name = "out"', 'source = ["10.9.0.0/16"]']
    lines += ["[[snat.pool]]", 'address = "198.51.100.1"', "manage = false"]
    lines += ["[[tunnel]]", 'name = "edge"', 'local = "192.0.2.1"', 'remote = "203.0.113.9"']
    for s in range(services):
        lines += ["[[service]]", f'name = "web{s}"', f'address = "192.0.2.{s // 250}:{s % 250 + 1}"']
        lines += ['persistence = "6m"'] * options
        for r in range(real_servers):
            lines += ["[[service.real_server]]", f'address = "10.1.{s // 250}.{s % 250}:{r + 1}"']
            lines += ["upper_threshold = 1"] * options
    return "\n".join(lines)


MOVING_TEXT = config_text(services=2, options=True).replace(
    'name = "web1"', 'name = "web1"\nsorry_server = "10.9.0.9:80"\nslow_start = "20s"'
)
MOVING_A, MOVING_B = ("web1", "10.1.0.1:1"), ("web1", "10.1.0.1:2")


def move(d: "Daemon") -> None:
    """One real server is drained, one begins slowly; at 1000 seconds."""
    d.overrides[MOVING_A] = Override(10, "drain", Drain(990.0, 1190.0, 2))
    d.runtime.ramps[MOVING_B] = 990.0


class Segment:
    """A real one, but for statistics that only a worker can write."""

    def __init__(self, real: shm.WorkerSegment) -> None:
        self._real = real
        self.services: dict[int, tuple[int, ...]] = {}
        self.dests: dict[int, tuple[int, ...]] = {}
        self.lips: list[tuple[int, ...]] = []
        self.counts: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def service_stats_all(self) -> list[tuple[int, ...]]:
        return [(n, *counts) for n, counts in self.services.items()]

    def dest_stats_all(self) -> list[tuple[int, ...]]:
        return [(n, *counts) for n, counts in self.dests.items()]

    def lip_stats_all(self) -> list[tuple[int, ...]]:
        return self.lips

    def tunnels(self) -> list[tuple[int, bytes, bytes, int, int, int]]:
        edge = bytes([192, 0, 2, 1]), bytes([203, 0, 113, 9])
        others = [(shm.TUNNEL_GRE, *edge, 90, 90, 90), (shm.TUNNEL_IPIP, edge[0], b"", 90, 90, 90)]
        return [(shm.TUNNEL_IPIP, *edge, 5, 700, 1), *others]

    def counters(self) -> dict[str, Any]:
        return {**self._real.counters(), **self.counts}


@dataclass(eq=False)
class Daemon:
    config: Config
    segments: dict[int, Any]
    ports: list[Any] = field(default_factory=list)
    program: Any = None
    statuses: dict[tuple[str, str], Status] = field(default_factory=dict)
    overrides: dict[tuple[str, str], Override] = field(default_factory=dict)
    netlink_events: Counter[str] = field(default_factory=Counter)
    started: float = 1_700_000_000.5
    loaded: float = 1_700_000_001.0
    reloads: int = 3
    rejected: int = 1
    reload_error: str = ""
    ready: bool = True
    alive: set[int] = field(default_factory=lambda: {0})

    def __post_init__(self) -> None:
        self.program = SimpleNamespace(
            counters=lambda: {0: {"pass": 1, "redirect": 2, "drop": 3}, 9: {"pass": 1}}
        )
        self.health = SimpleNamespace(states=lambda: self.statuses)
        get = lambda *where: self.overrides.get(where, PLAIN)  # noqa: E731
        self.runtime = SimpleNamespace(get=get, items=lambda: self.overrides.items(), ramps={})
        self.course = Course(self.runtime, self.config, lambda: 1000.0)
        self.reconciler = SimpleNamespace(lips=SimpleNamespace(number=lambda address: 0), rule_number=lambda name: 63)
        self._placed: dict[str, Any] = {}
        self.place()
        self.exporter = Exporter(self)

    def place(self) -> None:
        """Numbers as the reconciler gives them, in order."""
        dest = 0
        for n, s in enumerate(self.config.service):
            key = (s.vip.packed, s.port, s.proto)
            dests = {}
            for real in s.real_server:
                dests[key, real.address.addr.packed, real.address.port] = dest
                dest += 1
            if s.sorry_server is not None:
                dests[key, s.sorry_server.addr.packed, s.sorry_server.port] = dest
                dest += 1
            reals = (RealServer(bytes(4), 80, 1, n in self.alive),)
            service = Service(s.name, bytes(4), 80, 6, "rr", reals)
            self._placed[s.name] = SimpleNamespace(number=n, dests=dests, service=service)

    def placed(self, service: Any) -> Any:
        return self._placed.get(service.name)

    def is_alive(self, worker: int) -> bool:
        return worker in self.alive


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    yield from daemons(config())


def daemons(wanted: Config) -> Iterator[Daemon]:
    sizes = {
        **wanted.sizes(),
        "arena": 1024,
        "cmd_ring": 64,
        "evt_ring": 64,
        "capture_ring": 4,
        "hand_ring": 64,
        "templates": 64,
        "frame_size": 2048,
        "chains": 0,
    }
    segments = {n: shm.WorkerSegment.create(sizes, n) for n in range(sizes["workers"])}
    d = Daemon(wanted, {n: Segment(s) for n, s in segments.items()})
    d.ports = [SimpleNamespace(worker=n, iface=0, nic="eth0", queue=n, zero_copy=n == 0) for n in segments]
    yield d
    for segment in segments.values():
        segment.close()


def fill(d: Daemon) -> None:
    """Something in everything that may be empty."""
    for n, segment in d.segments.items():
        segment.services = {0: (10, 20, 30, 40, 50, 6, 7)}
        segment.dests = {0: (1, 2, 3, 4, 5, 6, 7 + n)}
        segment.lips = [(0, 9, 2, 5)]
    d.statuses = {("web0", "10.1.0.0:1"): Status(), ("web0", "10.1.0.0:2"): Status()}
    d.statuses["web0", "10.1.0.0:2"].turn(False, time.monotonic() - 5, 1_700_000_002.0)
    d.netlink_events = Counter(route=4)
    d.exporter.checked("web0", 0.003)
    d.exporter.lagged(0.0002)
    d.exporter.requested("GET", "/v1/status", 200)


def scrape(d: Daemon) -> dict[str, float]:
    """By name with labels in order, as in the text."""
    _, page = d.exporter.render()
    found = {}
    for family in parser.text_string_to_metric_families(page.decode()):
        for s in family.samples:
            labels = ",".join(f'{k}="{v}"' for k, v in s.labels.items())
            key = f"{s.name}{{{labels}}}" if labels else s.name
            assert key not in found, f"{key} stands twice"
            found[key] = s.value
    return found


# -- values --------------------------------------------------------------------------------------------------


def test_counters_are_sums_over_workers(daemon: Daemon) -> None:
    fill(daemon)
    got = scrape(daemon)
    service = '{service="web0",vip="192.0.2.0:1",proto="tcp"}'
    real = '{service="web0",vip="192.0.2.0:1",proto="tcp",real_server="10.1.0.0:1"}'
    assert got[f"lbd_service_connections_total{service}"] == 20
    assert got[f"lbd_service_outgoing_bytes_total{service}"] == 100
    assert got[f"lbd_real_server_incoming_packets_total{real}"] == 4
    assert got[f"lbd_real_server_active_connections{real}"] == 12
    assert got[f"lbd_real_server_inactive_connections{real}"] == 15
    assert got["lbd_real_server_connections_total" + real.replace(':1"}', ':2"}')] == 0  # no worker knows it
    assert got['lbd_local_ports_in_use{local_address="10.0.0.10"}'] == 10
    assert got['lbd_local_ports_capacity{local_address="10.0.0.10"}'] == 32767 - 10240 + 1
    assert got['lbd_local_port_exhausted_total{local_address="10.0.0.10"}'] == 4
    assert [got[f'lbd_worker_local_ports_in_use{{worker="{n}",local_address="10.0.0.10"}}'] for n in (0, 1)] == [5, 5]
    assert got['lbd_worker_local_port_exhausted_total{worker="1",local_address="10.0.0.10"}'] == 2
    tunnel = [got[f'lbd_tunnel_{what}_total{{tunnel="edge"}}'] for what in ("packets", "bytes", "refused_packets")]
    assert tunnel == [10, 1400, 2], "of its own type, between its own addresses"
    assert got["lbd_start_time_seconds"] == daemon.started
    assert got['lbd_worker_up{worker="0"}'] == 1
    assert got['lbd_worker_up{worker="1"}'] == 0
    assert got['lbd_xsk_zero_copy{interface="eth0",queue="0"}'] == 1
    assert got['lbd_xdp_actions_total{interface="eth0",action="redirect"}'] == 2
    assert got['lbd_connection_table_capacity{worker="1",family="ipv6"}'] == 64
    assert got['lbd_config_reloads_total{result="rejected"}'] == 1


def test_states_weights_and_health(daemon: Daemon) -> None:
    fill(daemon)
    one = '{service="web0",real_server="10.1.0.0:1"}'
    two = '{service="web0",real_server="10.1.0.0:2"}'
    got = scrape(daemon)
    assert (got[f"lbd_real_server_up{one}"], got[f"lbd_real_server_up{two}"]) == (1, 0)
    assert got['lbd_service_real_servers{service="web0",state="down"}'] == 1
    assert got['lbd_real_server_transitions_total{service="web0",real_server="10.1.0.0:2",to="down"}'] == 1
    assert got[f"lbd_real_server_last_transition_timestamp_seconds{two}"] == 1_700_000_002
    assert 5 <= got[f"lbd_real_server_downtime_seconds_total{two}"] < 60
    daemon.overrides["web0", "10.1.0.0:1"] = Override(state="drain")
    got = scrape(daemon)
    assert (got[f"lbd_real_server_up{one}"], got[f"lbd_real_server_weight{one}"]) == (0, 0)
    daemon.overrides["web0", "10.1.0.0:1"] = Override(weight=7)
    got = scrape(daemon)
    assert (got[f"lbd_real_server_up{one}"], got[f"lbd_real_server_weight{one}"]) == (1, 7)


def test_histograms(daemon: Daemon) -> None:
    fill(daemon)
    daemon.segments[0].counts = {"burst_size": [1, 2, 0, 0, 0, 0, 0, 4], "handed_in": 11}
    got = scrape(daemon)
    assert got['lbd_worker_batch_packets_bucket{worker="0",le="2.0"}'] == 3
    assert got['lbd_worker_batch_packets_bucket{worker="0",le="64.0"}'] == 3
    assert got['lbd_worker_batch_packets_bucket{worker="0",le="+Inf"}'] == 7
    assert got['lbd_worker_batch_packets_count{worker="0"}'] == 7
    assert got['lbd_worker_batch_packets_sum{worker="0"}'] == 11
    checks = "lbd_health_check_duration_seconds_bucket"
    assert got[f'{checks}{{service="web0",le="0.005"}}'] == 1
    assert got[f'{checks}{{service="web0",le="0.0025"}}'] == 0
    assert got['lbd_health_check_duration_seconds_sum{service="web0"}'] == 0.003
    assert got['lbd_health_check_duration_seconds_count{service="web0"}'] == 1
    assert len([key for key in got if key.startswith(checks)]) == len(CHECK_BUCKETS) + 1


def test_series_end_with_their_service(daemon: Daemon) -> None:
    fill(daemon)
    assert any("web0" in key for key in scrape(daemon))
    daemon.config = config(services=0)
    daemon.statuses = {}
    assert not [key for key in scrape(daemon) if "web0" in key]


def test_a_reload_between_two_parts_of_a_page(daemon: Daemon) -> None:
    """What was kept of the configuration is dropped before there is another one; the page goes on with it."""
    fill(daemon)
    whole = {key for key in scrape(daemon) if "web0" in key}
    text = ""
    for part in daemon.exporter.page()[1]:
        text += part.decode()
        daemon.exporter.forget()
    assert {line.rpartition(" ")[0] for line in text.splitlines() if "web0" in line and line[0] != "#"} == whole
    assert not daemon.exporter._layout.names


def test_conditions(daemon: Daemon) -> None:
    """Clients by persistence are summed over workers; overloaded is who is it for one of them. Only where there can be any."""
    assert not [key for key in scrape(daemon) if "persistent_clients" in key or "overloaded" in key]
    daemon.config = config(options=True)
    for n, rows in enumerate(([(0, 2, False), (1, 1, True)], [(0, 3, False), (7, 1, True)])):
        daemon.segments[n].dest_conditions = lambda rows=rows: rows
    got = scrape(daemon)
    where = 'service="web0",real_server="10.1.0.0:{}"'
    assert [got[f"lbd_real_server_persistent_clients{{{where.format(r)}}}"] for r in (1, 2)] == [5, 1]
    assert [got[f"lbd_real_server_overloaded{{{where.format(r)}}}"] for r in (1, 2)] == [0, 1]


def test_process_time_goes_on_over_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {1: 5.0, 2: 1.0}
    monkeypatch.setattr("lbd.master.series.cpu_seconds", lambda pid: used.get(pid, 0.0))
    cpu = CpuTime()
    assert cpu.of(1) == 5
    used.pop(1)  # killed: its time is not told any more
    assert cpu.of(1) == 5
    assert cpu.of(2) == 6
    used[2] = 2.0
    assert cpu.of(2) == 7


def ended(parts: Generator[str, None, T]) -> T:
    while True:
        try:
            assert next(parts) == ""
        except StopIteration as stop:
            result: T = stop.value
            return result


@given(st.lists(st.dictionaries(st.integers(0, 9), st.tuples(*[st.integers(0, 1 << 60)] * 7)), max_size=4))
def test_totals(workers: list[dict[int, tuple[int, ...]]]) -> None:
    got = ended(totals([(n, *counts) for n, counts in worker.items()] for worker in workers))
    for n in range(10):
        rows = [worker[n] for worker in workers if n in worker]
        assert (n in got) == bool(rows)
        if rows:
            assert got[n][1:] == tuple(map(sum, zip(*rows, strict=True)))


# -- format --------------------------------------------------------------------------------------------------


def test_every_metric_is_in_the_table_and_the_table_in_the_page() -> None:
    made = daemons(loads(MOVING_TEXT))
    daemon = next(made)
    fill(daemon)
    move(daemon)
    _, page = daemon.exporter.render()
    families = {f.name: f for f in parser.text_string_to_metric_families(page.decode())}
    suffix = {COUNTER: "_total"}
    exported = {n + suffix.get(f.type, ""): f for n, f in families.items() if n.startswith("lbd_")}
    assert set(exported) == set(METRICS)
    for name, family in exported.items():
        metric = METRICS[name]
        assert (family.type, family.documentation) == (metric.kind, metric.help), name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels), sample
    assert "process_cpu_seconds" in families
    assert next(made, None) is None


def test_openmetrics(daemon: Daemon) -> None:
    fill(daemon)
    content_type, page = daemon.exporter.render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    strict = {f.name: f for f in openmetrics.text_string_to_metric_families(page.decode())}
    assert strict["lbd_service_connections"].type == "counter"
    assert strict["lbd_worker_batch_packets"].type == "histogram"
    content_type, page = daemon.exporter.render()
    assert content_type.startswith("text/plain; version=0.0.4")
    assert b"# EOF" not in page


def test_promtool_finds_nothing(daemon: Daemon) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool (Debian package prometheus)")
    fill(daemon)
    _, page = daemon.exporter.render()
    done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    assert not done.stdout + done.stderr


@given(st.text(max_size=20), st.text(max_size=20))
def test_label_values_are_escaped(a: str, b: str) -> None:
    page = Exposition(False)
    text = "".join(page.family("lbd_real_server_up", [label_text(("service", "real_server"), (a, b))], [1]))
    page.rows("lbd_xdp_actions_total", [((b, a), 2)])
    page.histogram("lbd_worker_batch_packets", [((a,), [1, 2], 9)], [1])
    text += page.take()
    text += "".join(page.crossed("lbd_service_real_servers", [label_text(("service",), (a,))], [b], [[3]]))
    families = list(parser.text_string_to_metric_families(text))
    assert families[0].samples[0].labels == {"service": a, "real_server": b}
    assert families[1].samples[0].labels == {"interface": b, "action": a}
    assert families[2].samples[0].labels == {"worker": a, "le": "1.0"}
    assert families[3].samples[0].labels == {"service": a, "state": b}


# -- speed ---------------------------------------------------------------------------------------------------


def seconds(render: Callable[[], object]) -> float:
    """Of processor time; the least of seven, since others work on this machine too."""
    took = []
    for _ in range(7):
        start = time.process_time()
        render()
        took.append(time.process_time() - start)
    return min(took)


@pytest.mark.alone
def test_forty_thousand_series_take_a_tenth_of_what_the_library_needs() -> None:
    """Some 30 ms beside 900: the loop serves nobody else meanwhile."""
    registry = CollectorRegistry()
    gauge = Gauge("lbd_real_server_weight", "of as many series, with labels as long", ("service", "real_server"), registry=registry)
    for n in range(4000):
        gauge.labels(f"service-{n // 10}", f"10.0.{n // 250}.{n % 250}:8080").set(n)
    library = seconds(partial(generate_latest, registry)) / 4000
    for d in daemons(config(500, 10)):
        for segment in d.segments.values():
            segment.services = dict.fromkeys(range(500), (1 << 40, 2, 3, 4, 5, 6, 7))
            segment.dests = dict.fromkeys(range(5000), (1 << 40, 2, 3, 4, 5, 6, 7))
        _, page = d.exporter.render()  # the first one makes the labels' texts
        series = sum(not line.startswith(b"#") for line in page.splitlines())
        assert series > 40_000
        assert seconds(d.exporter.render) / series < library / 10


def test_the_loop_gets_its_turn_between_parts() -> None:
    """However many series: what a part holds, and so how long the loop stands, is bounded."""
    for d in daemons(config(500, 10)):
        for segment in d.segments.values():
            segment.dests = dict.fromkeys(range(5000), (1 << 40, 2, 3, 4, 5, 6, 7))
        d.statuses = {(s.name, str(r.address)): Status() for s in d.config.service for r in s.real_server}
        for s in d.config.service:
            d.exporter.checked(s.name, 0.003)
        lines = [part.count(b"\n") for part in d.exporter.page()[1]]
        assert max(lines) <= SLICE + 100 < sum(lines) / 10, sorted(lines)[-5:]


def test_drains_slow_starts_and_sorry_servers() -> None:
    for d in daemons(loads(MOVING_TEXT)):
        move(d)
        page = d.exporter.render()[1].decode()
        pair = {w: f'{{service="{w[0]}",real_server="{w[1]}"}}' for w in (MOVING_A, MOVING_B)}
        for line in (
            f"lbd_real_server_effective_weight{pair[MOVING_A]} 5.0",
            f"lbd_real_server_effective_weight{pair[MOVING_B]} 0.55",
            f"lbd_real_server_drain_deadline_timestamp_seconds{pair[MOVING_A]} 1190.0",
            f"lbd_real_server_slow_start_seconds{pair[MOVING_B]} 9.0",
            'lbd_service_sorry_server_in_use{service="web1"} 1',
            'lbd_sorry_server_connections_total{service="web1",vip="192.0.2.0:2",proto="tcp",sorry_server="10.9.0.9:80"} 0',
        ):
            assert line + "\n" in page, line
        assert page.count("lbd_real_server_drain_deadline_timestamp_seconds{") == 1
        assert page.count("lbd_real_server_effective_weight{") == 2 and page.count("sorry_server_in_use{") == 1
