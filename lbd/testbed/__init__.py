# SPDX-License-Identifier: Apache-2.0
"""A network of namespaces with real servers and real clients, to run lbd in: for `lbd demo`, tests and
benchmarks."""

from lbd.testbed.netns import Namespace, TestbedError
from lbd.testbed.testbed import Testbed

__all__ = ["Namespace", "Testbed", "TestbedError"]
