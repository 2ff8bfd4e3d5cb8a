# SPDX-License-Identifier: Apache-2.0
"""Testbeds for tests: namespaces `lbdt-PID-N`, real servers in them, and all of it gone afterwards."""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lbd.testbed import Testbed
from lbd.testbed.daemon import Daemon

TOOLS = ("ip", "tc", "ethtool", "sysctl", "nginx", "dnsmasq", "iperf3", "curl", "wrk", "dnsperf")
NUMBERS = itertools.count(1)


def make(**options: Any) -> Testbed:
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        pytest.skip(f"the testbed needs {', '.join(missing)} (make setup installs them)")
    return Testbed(f"lbdt-{os.getpid()}-{next(NUMBERS)}", **options)


def factory() -> Iterator[Callable[..., Testbed]]:
    """Testbed(**options) with a prefix of its own, taken down afterwards. It is not up yet."""
    made: list[Testbed] = []

    def one(**options: Any) -> Testbed:
        made.append(make(**options))
        return made[-1]

    yield one
    for testbed in made:
        testbed.down()


make_testbed = pytest.fixture(factory, name="make_testbed")
make_shared = pytest.fixture(factory, name="make_shared", scope="module")  # for all tests of a module


@pytest.fixture(scope="module")
def routed() -> Iterator[Testbed]:
    """A testbed that is up, without lbd: the balancer's kernel routes between client and servers."""
    with make(routing=True) as testbed:
        yield testbed


@pytest.fixture(scope="module")
def balanced() -> Iterator[tuple[Testbed, Daemon]]:
    """A testbed with lbd and two workers in it, its services web, dns and iperf up."""
    with make(workers=2) as testbed:
        yield testbed, testbed.lbd()
