# SPDX-License-Identifier: Apache-2.0
"""lbd's metrics as a Prometheus server reads them, over TCP."""

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from lbd.testbed import Testbed

ADDRESS = "http://127.0.0.1:9911/metrics"  # the testbed's configuration


class Page:
    def __init__(self, text: str) -> None:
        self.text = text
        self.families = list(text_string_to_metric_families(text))

    def values(self, name: str, **labels: Any) -> list[float]:
        """Of all samples of this name whose labels include these."""
        wanted = labels.items()
        return [
            sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == name and wanted <= sample.labels.items()
        ]

    def value(self, name: str, **labels: Any) -> float:
        (found,) = self.values(name, **labels)
        return found

    def counters(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Every sample that may only grow."""
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families
            for sample in family.samples
            if family.type in ("counter", "histogram") and not sample.name.endswith("_created")
        }


def scrape(testbed: Testbed) -> Page:
    return Page(testbed.balancer.run(["curl", "-sS", "-m", "10", ADDRESS]))
