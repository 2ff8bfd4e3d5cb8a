# SPDX-License-Identifier: Apache-2.0
"""QUIC (aioquic) through lbd with two workers: downloads whose client changes its address half-way go on at the same server, by
each form of connection ids; without one they break."""

import json
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import pytest

from lbd.testbed import Testbed
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import wait_until
from lbd.testbed.testbed import config_text, endpoint
from tests.netns.metrics import scrape

pytestmark = [pytest.mark.root, pytest.mark.netns]
pytest.importorskip("aioquic")
END = str(Path(__file__).with_name("quic_end.py"))
PORTS = {"quic-lb": 4433, "katran": 4434, "dpvs": 4435, "": 4436}
TRANSFERS, SIZE = 12, 400_000


class Seen(NamedTuple):
    served: dict[str, int]  # transfers by real server
    failed: list[str]


def server_id(form: str, n: int) -> str:
    """Of real server n, in digits; what dpvs has is the end of its address."""
    return f"{n + 1:06x}" if form == "quic-lb" else f"{n + 1:08x}"


def prefix(form: str, n: int, address: bytes) -> str:
    """With which the ids that it issues begin."""
    if form == "quic-lb":
        return "4a" + server_id(form, n)  # configuration 2, length 10
    if form == "katran":
        return "c0" + server_id(form, n)
    if form == "dpvs":
        return "5a" + "3" + address[-2:].hex() + f"{PORTS[form]:04x}"  # two bytes of address, a port
    return ""


@pytest.fixture(scope="module")
def quic(make_shared: Callable[..., Testbed]) -> tuple[Testbed, Daemon]:
    testbed = make_shared(workers=2, clients=2).up()
    key, certificate = testbed.directory / "key.pem", testbed.directory / "cert.pem"
    subject = ["-subj", "/CN=lbd.test", "-days", "2", "-nodes", "-keyout", str(key), "-out", str(certificate)]
    testbed.run(testbed.client, ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", *subject])
    for n, server in enumerate(testbed.servers):
        for form, port in PORTS.items():
            for address in (server.host.address4, server.host.address6):
                begin = prefix(form, n, ip_address(address).packed)
                said = server.directory / f"quic-{port}-{':' in address}.out"
                argv = [sys.executable, END, "server", address, str(port), server.host.name, begin, str(certificate), str(key)]
                with open(said, "wb") as out:
                    testbed.popen(server.ns, argv, stdout=out)
                wait_until("the QUIC server is there", lambda said=said: said.read_text() == "ready\n", 20)  # type: ignore[misc]
    settings = testbed.settings(services=("web",))
    alike = {key: value for key, value in settings["service"][0].items() if key in ("interface", "manage")}
    settings["service"] = [service(testbed, form, family) | alike for form in PORTS for family in (4, 6)]
    return testbed, testbed.lbd(config_text(settings))


def service(testbed: Testbed, form: str, family: int) -> dict[str, object]:
    servers = [{"address": endpoint(s.host.address4 if family == 4 else s.host.address6, PORTS[form])} for s in testbed.servers]
    if form in ("quic-lb", "katran"):
        servers = [s | {"quic_id": server_id(form, n)} for n, s in enumerate(servers)]
    more = {"quic": form} | ({"quic_config": 2} if form == "quic-lb" else {}) if form else {}
    return {
        "name": f"quic-{form or 'none'}{family}", "address": endpoint(testbed.vip(family), PORTS[form]), "protocol": "udp",
        "scheduler": "rr", "real_server": servers, **more,
    }  # fmt: skip


def download(testbed: Testbed, form: str, family: int, count: int = TRANSFERS, patience: float = 8.0) -> Seen:
    addresses = testbed.topology.client_addresses4 if family == 4 else testbed.topology.client_addresses6
    transfers = [testbed.vip(family), str(PORTS[form]), str(count), str(SIZE), *addresses[:2], str(patience)]
    argv = [sys.executable, END, "client", *transfers]
    return Seen(**json.loads(testbed.run(testbed.client, argv, timeout=150)))


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("form", ["quic-lb", "katran", "dpvs"])
def test_a_client_that_moves(quic: tuple[Testbed, Daemon], form: str, family: int) -> None:
    testbed, daemon = quic
    before = by_id(testbed)
    seen = download(testbed, form, family)
    assert seen.failed == []
    assert sum(seen.served.values()) == TRANSFERS and len(seen.served) > 1  # each worker takes turns of its own
    # each moved once, and was found by its id then
    assert by_id(testbed) - before == TRANSFERS
    row = next(s for s in daemon.get("/v1/services")["services"] if s["name"] == f"quic-{form}{family}")
    assert row["connections"] == 2 * TRANSFERS


def test_without_ids_it_breaks(quic: tuple[Testbed, Daemon]) -> None:
    """Round robin gives the moved client to the next server, which does not know it: what the ids are for."""
    testbed, _ = quic
    assert download(testbed, "", 4, 2, patience=3.0).failed


def by_id(testbed: Testbed) -> int:
    return int(scrape(testbed).value("lbd_quic_packets_total", result="by_id"))
