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


@pytest.fixture
def make_testbed() -> Iterator[Callable[..., Testbed]]:
    """Testbed(**options) with a prefix of its own, taken down after the test. It is not up yet."""
    made: list[Testbed] = []

    def one(**options: Any) -> Testbed:
        made.append(make(**options))
        return made[-1]

    yield one
    for testbed in made:
        testbed.down()


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
