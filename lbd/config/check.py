# SPDX-License-Identifier: Apache-2.0
"""`lbd check FILE`: everything that is wrong or odd, and the memory it will take. Touches nothing."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from lbd.config.host import buffer_mtus, interface_mtus, remarks
from lbd.config.memory import Memory, memory, memory_text
from lbd.config.model import Config
from lbd.config.position import LineIndex
from lbd.config.problem import ConfigError, Problem, field_text
from lbd.config.source import loads, read


@dataclass(frozen=True)
class Report:
    file: str
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    config: Config | None  # None: the file can't be used
    memory: Memory | None
    frame_size: int = 0  # bytes of a packet buffer

    @property
    def ok(self) -> bool:
        return self.config is not None


def check(path: str, root: Path = Path("/")) -> Report:
    try:
        text = read(path)
        config = loads(text, path)
    except ConfigError as e:
        return Report(path, e.problems, e.warnings, None, None)
    mtus = interface_mtus(config)
    buffers = buffer_mtus(config, mtus, root)
    need = memory(config, buffers)
    lines = LineIndex(text)
    here = [
        Problem(path, lines.line(loc), field_text(loc), message, "warning")
        for loc, message in remarks(config, need, mtus, root)
    ]
    said = {p.field for p in config.warnings}
    new = [p for p in here if p.field not in said]
    warnings = sorted([*config.warnings, *new], key=lambda p: p.line or 0)
    return Report(path, (), tuple(warnings), config, need, config.sizes(buffers)["frame_size"])


def run_check(path: str, as_json: bool, out: TextIO) -> int:
    """The command: 0 if the file can be used, 1 if not."""
    report = check(path)
    text = json.dumps(to_dict(report), indent=2, ensure_ascii=False) if as_json else to_text(report)
    print(text, file=out)
    return 0 if report.ok else 1


def to_text(report: Report) -> str:
    lines = [str(p) for p in (*report.problems, *report.warnings)]
    if report.config is None or report.memory is None:
        count = len(report.problems)
        return "\n".join([*lines, f"{report.file}: {count} problem{'s' * (count != 1)}"])
    config, need = report.config, report.memory
    real_servers = sum(len(s.real_server) for s in config.service)
    counts = (
        (len(config.interface), "interface"),
        (len(config.local_address), "local address"),
        (len(config.service), "service"),
        *(((len(config.snat), "SNAT rule"),) if config.snat else ()),
        (real_servers, "real server"),
        (config.workers.number, "worker"),
    )
    lines.append(f"{report.file}: ok: " + ", ".join(_count(n, word) for n, word in counts))
    tables = config.tables
    rows = (
        (
            "  connections",
            need.connections,
            f"{tables.connections_ipv4} IPv4, {tables.connections_ipv6} IPv6",
        ),
        ("  tables", need.tables, f"{tables.services} services, {tables.real_servers} real servers, rings"),
        ("  frames", need.frames, f"{tables.frames} of {report.frame_size >> 10} KiB"),
        ("  sockets", need.sockets, f"rings of {_count(len(config.interface), 'interface')}"),
        ("  process", need.process, "estimate"),
        ("each worker", need.worker, f"× {need.workers}"),
        ("shared", need.shared, "scheduling tables, rings between workers"),
        *([("templates", need.templates, "at most, while persistence is written down")] if need.templates else []),
        ("master", need.master, "estimate"),
        ("total", need.total, ""),
    )
    lines += [
        "memory:",
        *(f"  {name:14}{memory_text(size):>10}  {note}".rstrip() for name, size, note in rows),
    ]
    return "\n".join(lines)


def _count(number: int, word: str) -> str:
    plural = f"{word}es" if word.endswith("s") else f"{word}s"
    return f"{number} {word if number == 1 else plural}"


def to_dict(report: Report) -> dict[str, Any]:
    need = report.memory
    return {
        "file": report.file,
        "ok": report.ok,
        "problems": [asdict(p) for p in report.problems],
        "warnings": [asdict(p) for p in report.warnings],
        "memory": {**asdict(need), "worker": need.worker, "total": need.total} if need else None,
    }
