"""What a test may need of the host. A marked test is skipped, with a sentence, where that is missing.

    root    root, or what amounts to it
    netns   network namespaces (implies root)
    vm      the lab virtual machine, see tests/vm/README.md
    slow    nothing: a warning to the reader
"""

import functools
import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings
from scapy.layers.l2 import conf

from tests.matrix import Matrix
from tests.order import GOES, select

# or every daemon loads the host's certificate authorities as it imports aiohttp, a tenth of its start; no test speaks TLS with them
os.environ.setdefault("SSL_CERT_FILE", os.devnull)

# a slow or shared machine is no error
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--go", choices=GOES, help="only the tests of this go of `make test` (tests/order.py)")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Matrix(config.rootpath / "build/modes.md", config), "lbd-matrix")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    select(config, items, Path(__file__).parent)


@functools.cache
def lacks_root() -> str | None:
    return None if os.geteuid() == 0 else "needs root"


@functools.cache
def lacks_netns() -> str | None:
    if lacks_root():
        return lacks_root()
    if not shutil.which("ip"):
        return "needs the ip command (Debian package iproute2)"
    # In an unprivileged container even root may be refused.
    command = ["unshare", "--net", "ip", "link", "set", "lo", "up"]
    tried = subprocess.run(command, capture_output=True, text=True)
    return None if tried.returncode == 0 else f"network namespaces are refused here: {tried.stderr.strip()}"


@functools.cache
def lacks_vm() -> str | None:
    home = Path(os.environ.get("VMLAB_DIR") or "~/.cache/vmlab").expanduser()
    return None if (home / "kernel/vmlinuz").exists() else "the lab VM is not set up (make vm)"


LACKS = {"root": lacks_root, "netns": lacks_netns, "vm": lacks_vm}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark, lacks in LACKS.items():
        if item.get_closest_marker(mark) and (reason := lacks()):
            pytest.skip(reason)


def refuse(_: object, l3: object) -> NoReturn:
    raise AssertionError(f"Ether() without dst: scapy would send ARP to find that of {l3!r}")


@pytest.fixture(autouse=True, scope="session")
def no_neighbour_search() -> None:
    """Frames are built without asking anyone: scapy would look for a missing MAC address on the machine's own network, for two
    seconds each."""
    conf.neighbor.resolvers.update(dict.fromkeys(conf.neighbor.resolvers, refuse))
