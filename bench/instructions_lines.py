"""What callgrind counted, by source line and by function: of the .pxd files, since Cython's C names them (#line).

An inlined function's instructions stand on its own lines, wherever it was inlined; those of a C block (compiler.pxd) on lines of
the generated file.
"""

import bisect
import functools
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Profile:
    """Self cost of a pass by (file, line)."""

    lines: Counter[tuple[str, int]]
    packets: int

    @property
    def per_packet(self) -> float:
        return sum(self.lines.values()) / self.packets


INSTRUCTIONS = ("Ir",)
WRONG_GUESSES = ("Bcm", "Bim")  # branches by conditions, and jumps to addresses, that its simulated predictor got wrong


def profile_read(path: Path, packets: int, events: tuple[str, ...] = INSTRUCTIONS) -> Profile:
    """Self costs, the sum of these events, of a callgrind.out file without compression; a call's cost is on a line of its own,
    which is passed over."""
    lines: Counter[tuple[str, int]] = Counter()
    file, call = "?", False
    columns = [0]
    for text in path.read_text().splitlines():
        if m := re.match(r"f[lie]=(.*)", text):
            file = m[1].removeprefix(f"{ROOT}/").removeprefix("./")
        elif text.startswith("calls="):
            call = True
        elif text.startswith("events: "):
            columns = [n for n, event in enumerate(text.split()[1:]) if event in events]
        elif m := re.match(r"(\d+)((?: \d+)+)$", text):
            if not call:
                counts = m[2].split()  # zeros at the end are left out
                lines[file, int(m[1])] += sum(int(counts[n]) for n in columns if n < len(counts))
            call = False
    return Profile(lines, packets)


def source_line(file: str, line: int) -> str:
    try:
        text = (ROOT / file).read_text().splitlines()
        return text[line - 1].strip() if 0 < line <= len(text) else ""
    except OSError:
        return ""


FUNCTION = re.compile(r"^(?:cdef|cpdef|def|static) [^=(]*?(\w+)\(")


@functools.cache
def functions(file: str) -> list[tuple[int, str]]:
    """(first line, name) of each function of a Cython file or header, in order."""
    try:
        text = (ROOT / file).read_text().splitlines()
    except OSError:
        return []
    return [(n, m[1]) for n, line in enumerate(text, 1) if (m := FUNCTION.match(line.lstrip() if line[:4] == "    " else line))]


def function_of(file: str, line: int) -> str:
    known = functions(file)
    at = bisect.bisect_right(known, (line, "\uffff")) - 1
    return known[at][1] if at >= 0 else Path(file).name


def functions_show(profile: Profile, top: int) -> None:
    costs: Counter[tuple[str, str]] = Counter()
    for (file, line), cost in profile.lines.items():
        costs[short(file), function_of(file, line)] += cost
    print(f"\n  {'by function (its own lines, wherever they are inlined)':<60}")
    for (file, name), cost in costs.most_common(top):
        print(f"  {cost / profile.packets:7.2f} {100 * cost / profile.packets / profile.per_packet:5.1f} %  {name:<24} {file}")


def short(file: str) -> str:
    return file.removeprefix("lbd/").removeprefix("build/cython/")


def lines_show(name: str, profile: Profile, top: int, unit: str) -> None:
    total = profile.per_packet
    print(f"\n{name}: {total:.2f} {unit} per packet")
    shown = 0.0
    for (file, line), cost in profile.lines.most_common(top):
        shown += cost / profile.packets
        where = f"{short(file)}:{line}"
        own = cost / profile.packets
        print(f"  {own:7.2f} {100 * own / total:5.1f} %  {where:<34} {source_line(file, line)[:100]}")
    print(f"  {total - shown:7.2f} {100 * (total - shown) / total:5.1f} %  elsewhere")
    functions_show(profile, top)
