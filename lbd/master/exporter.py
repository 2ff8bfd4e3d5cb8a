# SPDX-License-Identifier: Apache-2.0
"""The Prometheus exposition: workers' statistics summed at scrape, and what the master itself counts.

Scope: reading. Counters are sums over workers, whose segments outlive them, so they go back only when the
host starts anew; a service's series end with the service. What is exported, is in metric.py; series that
are many are written by exposition.py; process metrics, requests and the choice of the format
are prometheus-client's.

A page comes in parts, each a few milliseconds of work: whoever asks lets the loop turn between them, or asks for all
(`render`). Configuration and states are those of the moment in which their part began.
"""

from __future__ import annotations

import platform
import time
from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator, Sequence
from operator import add

from prometheus_client import CollectorRegistry, Counter, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from lbd.config import Config
from lbd.config.service import RealServer, Service
from lbd.health.check import Result
from lbd.health.target import Status
from lbd.master import series
from lbd.master.compose import in_force, state_in_force
from lbd.master.desired import DestKey
from lbd.master.desired import Service as Wanted
from lbd.master.exposition import Exposition, label_text
from lbd.master.metric import CHECK_BUCKETS, LAG_BUCKETS, METRICS, ONE, SERVICE
from lbd.master.runtime import Override, Where
from lbd.master.series import Daemon
from lbd.version import versions

STATES = ("up", "down", "drain", "maint")
NOTHING = (0,) * 8  # of a service or real server that no worker knows yet: number, then seven counts
TRAFFIC = (
    "connections_total",
    "incoming_packets_total",
    "outgoing_packets_total",
    "incoming_bytes_total",
    "outgoing_bytes_total",
    "active_connections",
    "inactive_connections",
)


ROWS = 2048  # services or real servers looked at in one part of a page
BUCKETS = tuple(map(float, CHECK_BUCKETS))
LAG_BOUNDS = tuple(map(float, LAG_BUCKETS))


class Exporter:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._layout = Layout(Config())  # of the daemon's own with the first scrape
        self._workers = series.Workers()
        self._build = (versions(), platform.python_version())
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._lag = Durations(LAG_BOUNDS)
        self._checks: dict[str, Durations] = {}  # by service
        requests = METRICS["lbd_api_requests_total"]
        self._requests = Counter(requests.name, requests.help, requests.labels, registry=self._registry)

    # -- what the daemon tells as it happens -----------------------------------------------------------------

    def checked(self, service: str, seconds: float) -> None:
        """A health check has ended."""
        known = self._checks.get(service)
        if known is None:
            known = self._checks[service] = Durations(BUCKETS)
        known.add(seconds)

    def lagged(self, seconds: float) -> None:
        """The event loop was late by so much."""
        self._lag.add(seconds)

    def requested(self, method: str, route: str, code: int) -> None:
        """The control socket has answered. `route`: the template, such as /v1/services/{name}."""
        self._requests.labels(method, route, str(code)).inc()

    def forget(self) -> None:
        """There will be another configuration: what is kept of this one is in the way, as much again as itself."""
        self._layout = Layout(Config())

    # -- a scrape --------------------------------------------------------------------------------------------

    def render(self, accept: str = "") -> tuple[str, bytes]:
        """Content type and page, by the request's Accept."""
        content_type, parts = self.page(accept)
        return content_type, b"".join(parts)

    def page(self, accept: str = "") -> tuple[str, Iterator[bytes]]:
        """The same, the page in parts."""
        encoder, content_type = choose_encoder(accept)
        page = Exposition(content_type.startswith("application/openmetrics-text"))

        def parts() -> Iterator[bytes]:
            for text in self._parts(page):
                yield text.encode()
            # prometheus-client's part is the last: OpenMetrics ends with "# EOF"
            yield encoder(self._registry)

        return content_type, parts()

    def _parts(self, page: Exposition) -> Iterator[str]:
        layout = self._layout  # one for all parts: there may be a reload between them
        if layout.config is not self._daemon.config:
            self._layout = layout = yield from Layout.made(self._daemon.config)
            for name in self._checks.keys() - set(layout.names):
                del self._checks[name]
        self._master(page)
        yield page.take()
        yield from self._services(page, layout)
        yield from self._sorry_servers(page, layout)
        self._snat(page)
        yield page.take()
        yield from self._real_servers(page, layout)
        yield from self._health(page, layout)
        for write in (series.packets, series.tunnels, series.connections, self._workers.write, series.queues, series.network):
            write(page, self._daemon)
            yield page.take()

    def _master(self, page: Exposition) -> None:
        d = self._daemon
        known, python = self._build
        page.rows("lbd_build_info", [((known["lbd"], python, known["libxdp"], known["libbpf"]), 1)])
        page.one("lbd_start_time_seconds", d.started)
        page.one("lbd_ready", int(d.ready))
        page.one("lbd_config_last_reload_successful", int(not d.reload_error))
        page.one("lbd_config_last_reload_success_timestamp_seconds", d.loaded)
        page.rows("lbd_config_reloads_total", [(("ok",), d.reloads), (("rejected",), d.rejected)])
        page.histogram("lbd_event_loop_lag_seconds", [((), self._lag.counts, self._lag.total)], LAG_BUCKETS)
        page.rows("lbd_netlink_events_total", (((kind,), n) for kind, n in sorted(d.netlink_events.items())))

    # -- services and real servers ---------------------------------------------------------------------------

    def _services(self, page: Exposition, layout: Layout) -> Iterator[str]:
        total = yield from totals(s.service_stats_all() for s in self._daemon.segments.values())
        placed = map(self._daemon.placed, layout.config.service)
        rows = [total.get(p.number, NOTHING) if p else NOTHING for p in placed]
        yield from page.family("lbd_service_info", layout.info, [1] * len(layout.info))
        yield from self._traffic(page, "service", layout.services, rows)

    def _snat(self, page: Exposition) -> None:
        d = self._daemon
        page.rows("lbd_snat_info", [((r.name, r.protocol), 1) for r in d.config.snat])
        rows = []
        for rule in d.config.snat:
            number = d.reconciler.rule_number(rule.name)
            each = [segment.service_stats(number) for segment in d.segments.values()] if number is not None else []
            rows.append((rule.name, tuple(map(sum, zip(*each, strict=True))) or NOTHING))
        for place, name in enumerate(TRAFFIC, 1):
            page.rows(f"lbd_snat_{name}", [((rule,), row[place]) for rule, row in rows])

    def _real_servers(self, page: Exposition, layout: Layout) -> Iterator[str]:
        d = self._daemon
        total = yield from totals(s.dest_stats_all() for s in d.segments.values())
        rows: list[tuple[int, ...]] = []
        up: list[int] = []
        weights: list[int] = []
        effective: dict[Where, float] = {}
        shares = {where: d.course.standing(*where).share for where in d.course.moving()}
        counts: list[list[int]] = [[] for _ in STATES]
        statuses = d.health.states()
        for n, (service, keys) in enumerate(zip(layout.config.service, layout.keys, strict=True)):
            placed = d.placed(service)
            dests = placed.dests if placed else {}
            count = dict.fromkeys(STATES, 0)
            for real, (where, key) in zip(service.real_server, keys, strict=True):
                rows.append(total.get(dests.get(key, -1), NOTHING))
                weight, state = state_of(real, d.runtime.get(*where), statuses.get(where), shares.get(where))
                weights.append(weight)
                if where in shares:
                    effective[where] = weight * shares[where] / 100
                up.append(int(state == "up"))
                count[state] += 1
            for column, number in zip(counts, count.values(), strict=True):
                column.append(number)
            if (len(rows) + n) % ROWS <= len(keys):
                yield ""
        yield from self._traffic(page, "real_server", layout.real_servers, rows)
        pairs = list(layout.pairs.values())
        yield from page.family("lbd_real_server_up", pairs, up)
        yield from page.family("lbd_real_server_weight", pairs, weights)
        yield from self._course(page, layout, effective)
        yield from self._conditions(page, layout)
        yield from page.crossed("lbd_service_real_servers", layout.names_text, STATES, counts)

    def _course(self, page: Exposition, layout: Layout, effective: dict[Where, float]) -> Iterator[str]:
        """Of the few that are under way."""
        course = self._daemon.course
        now = course.clock()
        drains = {w: drain.deadline for w, _ in self._daemon.runtime.items() if w in layout.pairs and (drain := course.drain(w))}
        ramps = {w: ramp.left(now) for w in self._daemon.runtime.ramps if w in layout.pairs and (ramp := course.slow_start(w))}
        families = (("effective_weight", effective), ("drain_deadline_timestamp_seconds", drains), ("slow_start_seconds", ramps))
        for name, found in families:
            yield from page.family(f"lbd_real_server_{name}", [layout.pairs[w] for w in found], list(found.values()))

    def _sorry_servers(self, page: Exposition, layout: Layout) -> Iterator[str]:
        d = self._daemon
        services = [s for s in layout.config.service if s.sorry_server is not None]
        if not services:
            return
        rows, active = [], []
        for s in services:
            assert s.sorry_server is not None
            placed = d.placed(s)
            known = placed.service.real_servers if placed and isinstance(placed.service, Wanted) else ()
            active.append(int(not any(r.up and r.weight for r in known)))
            key = ((s.vip.packed, s.port, s.proto), s.sorry_server.addr.packed, s.sorry_server.port)
            number = placed.dests.get(key) if placed else None
            each = [segment.dest_stats(number) for segment in d.segments.values()] if number is not None else []
            rows.append(tuple(map(sum, zip(*each, strict=True))) or NOTHING)
        yield from page.family("lbd_service_sorry_server_in_use", [label_text(SERVICE, (s.name,)) for s in services], active)
        yield from self._traffic(page, "sorry_server", [layout.sorry[s.name] for s in services], rows)

    def _conditions(self, page: Exposition, layout: Layout) -> Iterator[str]:
        """Of services with persistence, and of real servers with a threshold: most have neither."""
        if not layout.conditions:
            return
        clients: dict[int, int] = {}
        overloaded: set[int] = set()
        for segment in self._daemon.segments.values():
            for number, templates, full in segment.dest_conditions():
                clients[number] = clients.get(number, 0) + templates
                if full:
                    overloaded.add(number)
        persistent: list[tuple[str, int]] = []
        limited: list[tuple[str, int]] = []
        for service, keys in layout.conditions:
            placed = self._daemon.placed(service)
            for real, (where, key) in zip(service.real_server, keys, strict=True) if placed else ():
                number = placed.dests.get(key, -1) if placed else -1
                if service.persistence is not None:
                    persistent.append((layout.pairs[where], clients.get(number, 0)))
                if real.upper_threshold:
                    limited.append((layout.pairs[where], int(number in overloaded)))
        for name, rows in (("persistent_clients", persistent), ("overloaded", limited)):
            yield from page.family(f"lbd_real_server_{name}", [text for text, _ in rows], [value for _, value in rows])

    def _traffic(self, page: Exposition, what: str, labels: list[str], rows: list[tuple[int, ...]]) -> Iterator[str]:
        for place, name in enumerate(TRAFFIC, 1):
            yield from page.family(f"lbd_{what}_{name}", labels, [row[place] for row in rows])

    def _health(self, page: Exposition, layout: Layout) -> Iterator[str]:
        """Of those that are checked."""
        now = time.monotonic()
        states = self._daemon.health.states()
        known, each = list(states), list(states.values())
        where: list[str] = []
        for first in range(0, len(known), ROWS):
            where += [layout.pairs.get(key) or label_text(ONE, key) for key in known[first : first + ROWS]]
            yield ""
        name = "lbd_real_server_transitions_total"
        columns = [[s.transitions_up for s in each], [s.transitions_down for s in each]]
        yield from page.crossed(name, where, ("up", "down"), columns)
        name = "lbd_real_server_last_transition_timestamp_seconds"
        yield from page.family(name, where, [s.last_transition for s in each])
        name = "lbd_real_server_downtime_seconds_total"
        yield from page.family(name, where, [s.downtime(now) for s in each])
        results = [str(result) for result in Result]
        columns = [[s.checks[result] for s in each] for result in Result]
        yield ""
        yield from page.crossed("lbd_health_checks_total", where, results, columns)
        durations = [((name,), d.counts, d.total) for name, d in self._checks.items()]
        yield from page.histograms("lbd_health_check_duration_seconds", durations, CHECK_BUCKETS)


class Durations:
    """A histogram: of one service's checks, or of the loop's turns, 20 a second."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


def totals(workers: Iterable[Sequence[tuple[int, ...]]]) -> Generator[str, None, dict[int, tuple[int, ...]]]:
    """Rows of (number, counts …) added up over workers, by number. The sum's first element means nothing.
    In parts, of no text."""
    total: dict[int, tuple[int, ...]] = {}
    for rows in workers:
        yield ""
        for n, row in enumerate(rows):
            known = total.get(row[0])
            total[row[0]] = row if known is None else tuple(map(add, known, row))
            if n % ROWS == ROWS - 1:
                yield ""
        yield ""
    return total


def state_of(real: RealServer, override: Override, status: Status | None, share: int | None) -> tuple[int, str]:
    """Weight in force, and up, down, drain or maint."""
    weight, up = in_force(real.weight, override, status is None or status.up, share)
    return weight, state_in_force(weight, up, override)


class Layout:
    """Texts of labels that follow from the configuration alone."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.names = [s.name for s in config.service]
        self.names_text = [label_text(SERVICE, (name,)) for name in self.names]
        self.info: list[str] = []
        self.services: list[str] = []
        self.real_servers: list[str] = []
        self.pairs: dict[Where, str] = {}
        self.sorry: dict[str, str] = {}  # by service that has one
        self.keys: list[list[tuple[Where, DestKey]]] = []  # by service: each real server's name and key
        self.conditions: list[tuple[Service, list[tuple[Where, DestKey]]]] = []  # those with persistence or a threshold

    @classmethod
    def made(cls, config: Config) -> Generator[str, None, Layout]:
        """In parts, of no text."""
        layout = cls(config)
        for n, s in enumerate(config.service):
            layout._add(s)
            if (len(layout.real_servers) + n) % ROWS <= len(s.real_server):
                yield ""
        return layout

    def _add(self, s: Service) -> None:
        labels = (s.name, str(s.address), s.protocol)
        text = label_text(METRICS["lbd_service_info"].labels, labels)
        self.services.append(text)
        self.info.append(label_text(METRICS["lbd_service_info"].labels, (*labels, s.mode, s.scheduler)))
        if s.sorry_server is not None:
            self.sorry[s.name] = f'{text},{label_text(("sorry_server",), (str(s.sorry_server),))}'
        service = (s.vip.packed, s.port, s.proto)
        keys: list[tuple[Where, DestKey]] = []
        for real in s.real_server:
            name = str(real.address)
            where = (s.name, name)
            last = label_text(("real_server",), (name,))
            keys.append((where, (service, real.address.addr.packed, real.address.port)))
            self.real_servers.append(f"{text},{last}")
            self.pairs[where] = f'{label_text(ONE, (s.name,))},{last}'
        self.keys.append(keys)
        if s.persistence is not None or s.limited:
            self.conditions.append((s, keys))
