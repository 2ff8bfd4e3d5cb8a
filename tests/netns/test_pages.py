"""What docs/lifecycle.md and docs/quic.md tell people to type and to configure, in one daemon: the commands do it, and datagrams of
QUIC go by the ids that the page's real servers have. (Pages with a set-up of their own: test_docs.py.)"""

import os
import select
import shlex
import socket
from collections.abc import Iterator

import pytest

from lbd.cli.main import main
from lbd.testbed.daemon import Daemon
from lbd.testbed.netns import Namespace
from tests.netns.space import inside
from tests.unit.test_pages import ROOT, blocks, commands

pytestmark = [pytest.mark.root, pytest.mark.netns]

LIFECYCLE, QUIC = (blocks(ROOT / "docs" / page) for page in ("lifecycle.md", "quic.md"))
HEAD = """
[daemon]
run_dir = "{run}"
[workers]
count = 1
[tables]
connections_ipv4 = 1024
connections_ipv6 = 1024
frames = 512
hugepages = "off"
[[interface]]
name = "eth0"
ring = 128
[[interface]]
name = "eth1"
ring = 128
[[local_address]]
address = "10.0.1.200"
interface = "eth1"
"""
WEB = """
[[service.real_server]]
address = "10.0.1.1:8080"
"""  # what the commands name, of the page's service
SERVERS = {"00c4605e": "10.0.1.1", "00c4605f": "10.0.1.2"}
AFTER = {"drain": ("drain", None), "undrain": ("up", 1), "down": ("maint", None), "up": ("up", 1), "weight": ("up", 5)}


def toml(page: list[tuple[str, str]]) -> str:
    return "".join(text for language, text in page if language == "toml")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Namespace]]:
    """Client and real servers are one namespace, beyond two links."""
    balancer, beyond = (Namespace(f"lbdt-{os.getpid()}-pages-{name}") for name in ("lb", "out"))
    work = tmp_path_factory.mktemp("pages")
    try:
        for ns in (balancer, beyond):
            ns.add()
        real = ["10.0.1.1", "10.0.1.2", "10.0.1.99"]
        for name, near, far in (("eth0", "192.0.2.1", ["192.0.2.100"]), ("eth1", "10.0.1.254", real)):
            balancer.ip(f"link add {name} type veth peer name {name} netns {beyond.name}")
            balancer.ip(f"addr add {near}/24 dev {name}", f"link set {name} up")
            beyond.ip(*(f"addr add {address}/24 dev {name}" for address in far), f"link set {name} up")
        (work / "lbd.toml").write_text(HEAD.format(run=work / "run") + toml(LIFECYCLE) + WEB + toml(QUIC))
        daemon = Daemon(balancer, work / "lbd.toml", work / "run", work / "lbd.log")
        daemon.wait_ready()
        yield daemon, beyond
        assert daemon.stop() == 0
    finally:
        for ns in (balancer, beyond):
            ns.remove()


def test_commands_of_lifecycle(lab: tuple[Daemon, Namespace], capsys: pytest.CaptureFixture[str]) -> None:
    daemon, _ = lab
    [typed] = [found for language, text in LIFECYCLE if language == "" and (found := commands(text))]
    assert len(typed) == 9
    for command in typed:
        assert main(["-s", str(daemon.control), *shlex.split(command)]) == 0, command + capsys.readouterr().err
        [row] = daemon.get("/v1/real-servers?service=web")["real_servers"][:1]
        state, weight = AFTER[command.split()[1]]
        assert row["state"] == state and weight in (None, row["weight"]), (command, row)


def test_ids_of_quic(lab: tuple[Daemon, Namespace]) -> None:
    """A short header's, from a client's port that lbd has not seen before."""
    _, beyond = lab
    with inside(beyond.path):
        servers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in SERVERS]
        clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(6)]
    for s, address in zip(servers, SERVERS.values(), strict=True):
        s.bind((address, 443))
    for n, client in enumerate(clients):
        client.bind(("192.0.2.100", 0))
        client.connect(("192.0.2.10", 443))
        wanted = list(SERVERS)[n % 2]
        datagram = bytes([0x40, 0x07]) + bytes.fromhex(wanted) + os.urandom(30)
        for _ in range(30):  # the first ones may be lost while neighbours are found
            client.send(datagram)
            if ready := select.select(servers, [], [], 0.2)[0]:
                break
        assert ready and ready[0].getsockname()[0] == SERVERS[wanted] and ready[0].recv(100) == datagram
    for s in (*servers, *clients):
        s.close()
