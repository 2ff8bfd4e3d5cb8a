# SPDX-License-Identifier: Apache-2.0
"""The Prometheus exposition: workers' statistics summed at scrape, and what the master itself counts.

Scope: reading. Counters are sums over workers, whose segments outlive them, so they go back only when the
host starts anew; a service's series end with the service. What is exported, is in metric.py; series that
are many are written by exposition.py; process metrics, histograms and the choice of the format are
prometheus-client's.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Sequence
from operator import add

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from lbd.config import Config
from lbd.config.service import RealServer
from lbd.health.target import Status
from lbd.master import series
from lbd.master.compose import in_force, state_in_force
from lbd.master.desired import DestKey
from lbd.master.exposition import Exposition, Labels, Templates
from lbd.master.metric import CHECK_BUCKETS, LAG_BUCKETS, METRICS
from lbd.master.runtime import Override
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


class Exporter:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._templates = Templates()
        self._layout = Layout(daemon.config)
        self._workers = series.Workers()
        self._build = (versions(), platform.python_version())
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._lag = self._histogram("lbd_event_loop_lag_seconds", LAG_BUCKETS)
        self._checks = self._histogram("lbd_health_check_duration_seconds", CHECK_BUCKETS)
        self._checked: set[str] = set()
        requests = METRICS["lbd_api_requests_total"]
        self._requests = Counter(requests.name, requests.help, requests.labels, registry=self._registry)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        metric = METRICS[name]
        return Histogram(name, metric.help, metric.labels, buckets=buckets, registry=self._registry)

    # -- what the daemon tells as it happens -----------------------------------------------------------------

    def checked(self, service: str, seconds: float) -> None:
        """A health check has ended."""
        self._checked.add(service)
        self._checks.labels(service).observe(seconds)

    def lagged(self, seconds: float) -> None:
        """The event loop was late by so much."""
        self._lag.observe(seconds)

    def requested(self, method: str, route: str, code: int) -> None:
        """The control socket has answered. `route`: the template, such as /v1/services/{name}."""
        self._requests.labels(method, route, str(code)).inc()

    # -- a scrape --------------------------------------------------------------------------------------------

    def render(self, accept: str = "") -> tuple[str, bytes]:
        """Content type and page, by the request's Accept."""
        encoder, content_type = choose_encoder(accept)
        if self._layout.config is not self._daemon.config:
            self._layout = Layout(self._daemon.config)
            for name in self._checked - {s.name for s in self._layout.config.service}:
                self._checks.remove(name)
                self._checked.discard(name)
        page = Exposition(self._templates, content_type.startswith("application/openmetrics-text"))
        self._master(page)
        self._services(page)
        self._real_servers(page)
        self._health(page)
        series.packets(page, self._daemon)
        series.connections(page, self._daemon)
        self._workers.write(page, self._daemon)
        series.queues(page, self._daemon)
        series.network(page, self._daemon)
        # prometheus-client's part is the last: OpenMetrics ends with "# EOF"
        return content_type, page.text().encode() + encoder(self._registry)

    def _master(self, page: Exposition) -> None:
        d = self._daemon
        known, python = self._build
        page.rows("lbd_build_info", [((known["lbd"], python, known["libxdp"], known["libbpf"]), 1)])
        page.one("lbd_start_time_seconds", d.started)
        page.one("lbd_ready", int(d.ready))
        page.one("lbd_config_last_reload_successful", int(not d.reload_error))
        page.one("lbd_config_last_reload_success_timestamp_seconds", d.loaded)
        page.rows("lbd_config_reloads_total", [(("ok",), d.reloads), (("rejected",), d.rejected)])
        page.rows("lbd_netlink_events_total", (((kind,), n) for kind, n in sorted(d.netlink_events.items())))

    # -- services and real servers ---------------------------------------------------------------------------

    def _services(self, page: Exposition) -> None:
        layout = self._layout
        total = totals(s.service_stats_all() for s in self._daemon.segments.values())
        numbers = [p.number if p else -1 for p in map(self._daemon.placed, layout.config.service)]
        page.family("lbd_service_info", layout.info, [1] * len(layout.info))
        self._traffic(page, "service", layout.services, [total.get(n, NOTHING) for n in numbers])

    def _real_servers(self, page: Exposition) -> None:
        d, layout = self._daemon, self._layout
        total = totals(s.dest_stats_all() for s in d.segments.values())
        rows: list[tuple[int, ...]] = []
        up: list[int] = []
        weights: list[int] = []
        counts: list[int] = []
        statuses = d.health.states()
        for service, keys in zip(layout.config.service, layout.keys, strict=True):
            placed = d.placed(service)
            dests = placed.dests if placed else {}
            count = dict.fromkeys(STATES, 0)
            for real, (name, key) in zip(service.real_server, keys, strict=True):
                rows.append(total.get(dests.get(key, -1), NOTHING))
                weight, state = state_of(
                    real, d.runtime.get(service.name, name), statuses.get((service.name, name))
                )
                weights.append(weight)
                up.append(int(state == "up"))
                count[state] += 1
            counts += count.values()
        self._traffic(page, "real_server", layout.real_servers, rows)
        page.family("lbd_real_server_up", layout.pairs, up)
        page.family("lbd_real_server_weight", layout.pairs, weights)
        page.family("lbd_service_real_servers", layout.states, counts)

    def _traffic(self, page: Exposition, what: str, labels: Labels, rows: list[tuple[int, ...]]) -> None:
        columns = list(zip(*rows, strict=True))[1:]
        for name, values in zip(TRAFFIC, columns, strict=False):
            page.family(f"lbd_{what}_{name}", labels, values)

    def _health(self, page: Exposition) -> None:
        """Of those that are checked."""
        now = time.monotonic()
        known: list[tuple[tuple[str, str], Status]] = list(self._daemon.health.states().items())
        each = [status for _, status in known]
        where = [key for key, _ in known]
        name = "lbd_real_server_transitions_total"
        labels = [(*key, to) for key in where for to in ("up", "down")]
        page.family(name, labels, [n for s in each for n in (s.transitions_up, s.transitions_down)])
        name = "lbd_real_server_last_transition_timestamp_seconds"
        page.family(name, where, [s.last_transition for s in each])
        name = "lbd_real_server_downtime_seconds_total"
        page.family(name, where, [s.downtime(now) for s in each])
        labels = [(*key, str(result)) for key, s in known for result in s.checks]
        page.family("lbd_health_checks_total", labels, [n for s in each for n in s.checks.values()])


def totals(workers: Iterable[Sequence[tuple[int, ...]]]) -> dict[int, tuple[int, ...]]:
    """Rows of (number, counts …) added up over workers, by number. The sum's first element means nothing."""
    total: dict[int, tuple[int, ...]] = {}
    for rows in workers:
        if not total:
            total = {row[0]: row for row in rows}
            continue
        for row in rows:
            known = total.get(row[0])
            total[row[0]] = row if known is None else tuple(map(add, known, row))
    return total


def state_of(real: RealServer, override: Override, status: Status | None) -> tuple[int, str]:
    """Weight in force, and up, down, drain or maint."""
    weight, up = in_force(real.weight, override, status is None or status.up)
    return weight, state_in_force(weight, up, override)


class Layout:
    """Labels that follow from the configuration alone."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.info: list[tuple[str, ...]] = []
        self.services: list[tuple[str, ...]] = []
        self.states: list[tuple[str, ...]] = []
        self.real_servers: list[tuple[str, ...]] = []
        self.pairs: list[tuple[str, ...]] = []
        self.keys: list[list[tuple[str, DestKey]]] = []  # by service: each real server's name and key
        for s in config.service:
            labels = (s.name, str(s.address), s.protocol)
            self.services.append(labels)
            self.info.append((*labels, s.mode, s.scheduler))
            self.states += [(s.name, state) for state in STATES]
            service = (s.vip.packed, s.port, s.proto)
            keys: list[tuple[str, DestKey]] = []
            for real in s.real_server:
                name = str(real.address)
                keys.append((name, (service, real.address.addr.packed, real.address.port)))
                self.real_servers.append((*labels, name))
                self.pairs.append((s.name, name))
            self.keys.append(keys)
