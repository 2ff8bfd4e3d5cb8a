# SPDX-License-Identifier: Apache-2.0
"""The Prometheus text of families with many series, quickly, and in slices.

prometheus-client takes 0.7 s for 40,000 series, in the master's loop. Here the text of a series' labels is made once and
kept (by the caller, for as long as they stay the same); a scrape adds name and value, 0.3 us a series. Families come as
slices, between which the loop may do something else.

Text format 0.0.4 and OpenMetrics 1.0 differ in a counter's name at its head alone.
"""

from collections.abc import Iterable, Iterator, Sequence

from lbd.master.metric import COUNTER, METRICS, Metric

Value = int | float
HistogramRow = tuple[tuple[object, ...], Sequence[int], Value]
ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
SLICE = 4096  # lines


class Exposition:
    """One page under way."""

    def __init__(self, openmetrics: bool) -> None:
        self._openmetrics = openmetrics
        self._parts: list[str] = []

    # -- many series: slices -----------------------------------------------------------------------------------

    def family(self, name: str, labels: Sequence[str], values: Sequence[Value]) -> Iterator[str]:
        """A series for each of `labels`, texts by `label_text`."""
        if labels:
            yield self._head(METRICS[name])
        for first in range(0, len(labels), SLICE):
            some = slice(first, first + SLICE)
            yield "".join([f"{name}{{{text}}} {value}\n" for text, value in zip(labels[some], values[some], strict=True)])

    def crossed(
        self, name: str, labels: Sequence[str], last: Sequence[str], columns: Sequence[Sequence[Value]]
    ) -> Iterator[str]:
        """For each of `labels` several series, of which the family's last label has each value of `last`; and for each value
        a column."""
        if labels:
            yield self._head(METRICS[name])
        tails = [f",{pair(METRICS[name].labels[-1], value)}}} " for value in last]
        step = max(1, SLICE // len(last))
        for first in range(0, len(labels), step):
            some = slice(first, first + step)
            yield "".join(
                [
                    f"{name}{{{text}{tail}{value}\n"
                    for text, row in zip(labels[some], zip(*(column[some] for column in columns), strict=True), strict=True)
                    for tail, value in zip(tails, row, strict=True)
                ]
            )

    # -- few series ----------------------------------------------------------------------------------------------

    def rows(self, name: str, rows: Iterable[tuple[tuple[object, ...], Value]]) -> None:
        """A few series that come and go; label values of any type."""
        metric = METRICS[name]
        lines = [f"{name}{braces(metric.labels, labels)} {value}\n" for labels, value in rows]
        if lines:
            self._parts += [self._head(metric), *lines]

    def one(self, name: str, value: Value) -> None:
        self.rows(name, [((), value)])

    def histogram(self, name: str, rows: Iterable[HistogramRow], bounds: Sequence[Value]) -> None:
        """Each row: labels, counts by bucket (one more than bounds: the rest), sum."""
        lines = list(self.histograms(name, list(rows), bounds))
        self._parts += lines

    def histograms(self, name: str, rows: Sequence[HistogramRow], bounds: Sequence[Value]) -> Iterator[str]:
        """The same in slices."""
        metric = METRICS[name]
        tails = [f'le="{bound}"}} ' for bound in (*(float(b) for b in bounds), "+Inf")]
        if rows:
            yield self._head(metric)
        step = max(1, SLICE // (len(tails) + 2))
        for first in range(0, len(rows), step):
            lines: list[str] = []
            for values, counts, total in rows[first : first + step]:
                text = label_text(metric.labels, values)
                start = f"{name}_bucket{{{text}," if text else f"{name}_bucket{{"
                seen = 0
                for tail, count in zip(tails, counts, strict=True):
                    seen += count
                    lines.append(f"{start}{tail}{seen}\n")
                end = f"{{{text}}}" if text else ""
                lines.append(f"{name}_sum{end} {total}\n{name}_count{end} {seen}\n")
            yield "".join(lines)

    def take(self) -> str:
        """What `rows`, `one` and `histogram` have written since the last time."""
        text = "".join(self._parts)
        self._parts.clear()
        return text

    def _head(self, metric: Metric) -> str:
        name = metric.name
        if self._openmetrics and metric.kind == COUNTER:
            name = name.removesuffix("_total")
        text = metric.help.replace("\\", r"\\").replace("\n", r"\n")
        return f"# HELP {name} {text}\n# TYPE {name} {metric.kind}\n"


def label_text(keys: Iterable[str], values: Iterable[object]) -> str:
    """Such as `service="web",real_server="10.0.1.1:80"`; keys may be more than values, as for `crossed`."""
    return ",".join([pair(key, value) for key, value in zip(keys, values, strict=False)])


def braces(keys: Sequence[str], values: Sequence[object]) -> str:
    return f"{{{label_text(keys, values)}}}" if keys else ""


def pair(key: str, value: object) -> str:
    return f'{key}="{str(value).translate(ESCAPED)}"'
