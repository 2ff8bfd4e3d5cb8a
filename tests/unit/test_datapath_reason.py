# SPDX-License-Identifier: Apache-2.0
"""reason.py's names are the enum of reason.pxd, in its order: a counter's index is its meaning."""

import re

from lbd.datapath.reason import NAMES, REASONS
from tests.unit import _engine


def test_names_are_the_enum() -> None:
    assert {name: i for i, name in enumerate(NAMES)} == _engine.REASON_VALUES
    assert len(NAMES) == _engine.REASON_TOTAL


def test_names_are_metric_labels_and_have_help() -> None:
    assert all(re.fullmatch(r"[a-z][a-z_]*", name) for name in NAMES)
    assert all(len(text) > 15 for _, text in REASONS)
