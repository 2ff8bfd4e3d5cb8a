# SPDX-License-Identifier: Apache-2.0
"""What may run beside what: `make test` runs the tests in three goes (--go), the first two at the same time.

    left    network namespaces, the fuzzer, proofs, the source
    right   the lab VM, packets and all the rest
    alone   what is marked so: it measures, or takes both cores
"""

from pathlib import Path

import pytest

GOES = ("left", "right", "alone")
LEFT = ("netns", "fuzz", "proof", "source")


def go_of(item: pytest.Item, tests: Path) -> str:
    if item.get_closest_marker("alone"):
        return "alone"
    return "left" if item.path.relative_to(tests).parts[0] in LEFT else "right"


def select(config: pytest.Config, items: list[pytest.Item], tests: Path) -> None:
    """Leaves the tests of this go; without --go all of them."""
    if go := config.getoption("go"):
        parts: dict[bool, list[pytest.Item]] = {True: [], False: []}
        for item in items:
            parts[go_of(item, tests) == go].append(item)
        config.hook.pytest_deselected(items=parts[False])
        items[:] = parts[True]
