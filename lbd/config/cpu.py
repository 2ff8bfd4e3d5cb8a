# SPDX-License-Identifier: Apache-2.0
"""Where this host's CPUs and NICs are: NUMA nodes and physical cores, from sysfs; and what that says against `workers.cores`.

Scope: looks only. A host that tells nothing of nodes has one; what can't be found out is passed over. A placement that is not the
best makes workers slower, not wrong, so all of this is said and nothing is refused.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path("/")
CPUS = "sys/devices/system/cpu"
NODES = "sys/devices/system/node"

Nics = Iterable[tuple[str, int]]  # name, ifindex


def cpu_list(text: str) -> frozenset[int]:
    """As the kernel writes them: 0-3,8."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)


def cpu_text(cpus: Iterable[int]) -> str:
    """The same, backwards."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def siblings(core: int, root: Path = ROOT) -> frozenset[int]:
    """The CPUs of its physical core, itself included."""
    try:
        return cpu_list((root / CPUS / f"cpu{core}/topology/thread_siblings_list").read_text()) | {core}
    except (OSError, ValueError):
        return frozenset({core})


def nodes(root: Path = ROOT) -> dict[int, frozenset[int]]:
    """NUMA nodes that have CPUs, and these."""
    found = {}
    try:
        for entry in (root / NODES).iterdir():
            if re.fullmatch(r"node\d+", entry.name) and (cpus := cpu_list((entry / "cpulist").read_text())):
                found[int(entry.name[4:])] = cpus
    except (OSError, ValueError):
        return {}
    return dict(sorted(found.items()))


def core_node(core: int, root: Path = ROOT) -> int | None:
    return next((node for node, cpus in nodes(root).items() if core in cpus), None)


def nic_node(name: str, ifindex: int, root: Path = ROOT) -> int | None:
    """NB: /sys shows the network namespace that it was mounted in, where the name may be another device's."""
    device = root / "sys/class/net" / name
    try:
        if int((device / "ifindex").read_text()) != ifindex:
            return None
        place = Path(os.path.realpath(device / "device", strict=True))
    except (OSError, ValueError):
        return None  # a virtual device is nowhere
    for above in (place, *place.parents):  # virtio's own device says nothing, the PCI device above it does
        try:
            node = int((above / "numa_node").read_text())
        except (OSError, ValueError):
            continue
        return node if node >= 0 else None
    return None


def worker_nodes(cores: Sequence[int], workers: int, nics: Nics, root: Path = ROOT) -> list[int | None]:
    """Where the memory of each worker belongs: on its core's node; on the first NIC's that tells one, if it is not pinned."""
    if len(nodes(root)) < 2:
        return [None] * workers
    near = next((node for name, ifindex in nics if (node := nic_node(name, ifindex, root)) is not None), None)
    return [core_node(cores[n], root) if n < len(cores) else near for n in range(workers)]


def far(cores: Sequence[int], nics: Nics, root: Path = ROOT) -> list[str]:
    """Of NICs whose packets have to cross to another node."""
    known = nodes(root)
    if len(known) < 2:
        return []
    of = {core: node for node, cpus in known.items() for core in cpus}
    found = []
    for name, ifindex in nics:
        node = nic_node(name, ifindex, root)
        if node not in known:
            continue
        away = [n for n, core in enumerate(cores) if of.get(core, node) != node]
        near = f"cores of node {node}: {cpu_text(known[node])}"
        if not cores:
            found.append(f"{name} is on NUMA node {node}, and workers run on any of {len(known)} nodes; name cores, {near}")
        elif away:
            where = ", ".join(f"{n} (core {cores[n]}, node {of[cores[n]]})" for n in away)
            found.append(f"{name} is on NUMA node {node}, other than {plural(away, 'worker')} {where}; {near}")
    return found


def shared(cores: Sequence[int], root: Path = ROOT) -> dict[int, str]:
    """Workers, by number, that have another one on their physical core: it is as fast as one of them then."""
    found: dict[int, str] = {}
    first: Mapping[int, int] = {}
    for n, core in enumerate(cores):
        together = siblings(core, root)
        other = next((first[cpu] for cpu in sorted(together) if cpu in first), None)
        if other is not None:
            found[n] = f"core {core} is the same physical core as {cores[other]} of worker {other}; give each worker one of its own"
        first = {**first, core: n}
    return found


def plural(many: Sequence[object], word: str) -> str:
    return word if len(many) == 1 else f"{word}s"


def remarks(cores: Sequence[int], nics: Nics, root: Path = ROOT) -> list[str]:
    """All of it, for people."""
    return [*(f"worker {n}: {text}" for n, text in shared(cores, root).items()), *far(cores, nics, root)]
