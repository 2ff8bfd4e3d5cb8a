"""What may run beside what. `make test` runs the tests in two goes: first all that may share the machine, two at a time, then, one
by one, those marked `alone`.

In the first go a directory whose tests load the machine or its kernel is one group: its tests run one after the other, in one of
the two processes. The longest groups begin first, so that what is left for the end is small.
"""

from pathlib import Path

import pytest

GROUPS = ("netns", "vm", "fuzz")  # the longest first


class Order:
    """A pytest plugin, for runs by pytest-xdist with --dist loadgroup."""

    def __init__(self, tests: Path) -> None:
        self.tests = tests

    def group(self, item: pytest.Item) -> str | None:
        part = item.path.relative_to(self.tests).parts[0]
        return part if part in GROUPS else None

    @pytest.hookimpl(tryfirst=True)  # before xdist, which reads the marks
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        rank = {name: n for n, name in enumerate(GROUPS)}
        items.sort(key=lambda item: rank.get(self.group(item) or "", len(rank)))
        for item in items:
            if name := self.group(item):
                item.add_marker(pytest.mark.xdist_group(name))
