#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The plots of README.md from what the benchmarks have written: `make bench-plot`.

    bench/out/veth.json    → docs/img/veth-pps.png   bars: forwarders by kind of traffic, lines: the range of the runs
    bench/out/engine.json  → docs/img/engine.png     ns per packet by number of flows, the floor and the goals beside

Nothing is measured here. A file that is not there is named, and its plot left as it is.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
OUT, IMAGES = ROOT / "bench/out", ROOT / "docs/img"
Object = dict[str, Any]

FORWARDERS = {  # in this order: colour, what it is called
    "lbd": ("#0b6e4f", "lbd, FULLNAT"),
    "AF_XDP": ("#8fbfa9", "bare AF_XDP forwarder"),
    "kernel": ("#2f5d8a", "kernel, routing"),
    "nftables": ("#c65d21", "nftables, DNAT + SNAT"),
    "kernel, inline": ("#9db8d2", "kernel, one core for all"),
    "nftables, inline": ("#ecb894", "nftables, one core for all"),
}
FAMILIES = {4: "#0b6e4f", 6: "#c65d21"}


def where(objects: list[Object]) -> str:
    """The machine, in a line."""
    machine = objects[-1].get("machine")
    return f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel'].split('-')[0]}" if machine else ""


def dress(axes: Axes, title: str, note: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=22)
    axes.text(0, 1.025, note, transform=axes.transAxes, fontsize=9, color="#555555")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)


def veth(objects: list[Object]) -> Figure | None:
    cases: dict[str, dict[str, tuple[float, float, float]]] = {}
    for o in objects:
        if o.get("unit") == "Mpps":
            of = cases.setdefault(o["case"], {})
            of["lbd"] = o["median"], o["min"], o["max"]
            of[o["peer"]] = o["peer_median"], o["peer_min"], o["peer_max"]
    if not cases:
        return None
    names = [name for name in FORWARDERS if any(name in of for of in cases.values())]
    figure, axes = plt.subplots(figsize=(10, 4.8), dpi=150)
    width = 0.86 / len(names)
    for n, name in enumerate(names):
        at = [c + (n - (len(names) - 1) / 2) * width for c, of in enumerate(cases.values()) if name in of]
        values = [of[name] for of in cases.values() if name in of]
        medians = [median for median, _, _ in values]
        ranges = [[median - low for median, low, _ in values], [high - median for median, _, high in values]]
        colour, label = FORWARDERS[name]
        axes.bar(at, medians, width * 0.92, color=colour, label=label)
        axes.errorbar(at, medians, ranges, fmt="none", ecolor="#222222", elinewidth=1, capsize=2)
        for x, (median, _, high) in zip(at, values, strict=True):
            axes.annotate(f"{median:.2f}", (x, high), (0, 2), textcoords="offset points", ha="center", fontsize=6.5)
    axes.set_xticks(range(len(cases)), [case.removeprefix("UDP, ").replace(", ", "\n", 1) for case in cases])
    axes.set_ylabel("million packets per second")
    dress(axes, "UDP through two veth pairs, one forwarding core", f"median and range of the runs; {where(objects)}")
    axes.legend(ncols=3, fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    figure.tight_layout()
    return figure


def known(objects: list[Object]) -> dict[tuple[int, str], list[Object]]:
    """Packets of established connections, both ways in bursts of 64: by family and protocol, ordered by flows."""
    series: dict[tuple[int, str], list[Object]] = {}
    for o in objects:
        params = o.get("params", {})
        if o["case"] == "established" and params["burst"] == 64 and params["way"] == "both ways":
            series.setdefault((params["ip"], params["proto"]), []).append(o)
    return {key: sorted(series[key], key=lambda o: o["params"]["flows"]) for key in sorted(series)}


def engine(objects: list[Object]) -> Figure | None:
    series = known(objects)
    if not series:
        return None
    figure, axes = plt.subplots(figsize=(9, 4.8), dpi=150)
    for n, ((family, protocol), rows) in enumerate(series.items()):
        # side by side, or their ranges would lie on each other
        flows, colour = [o["params"]["flows"] * 1.08**n for o in rows], FAMILIES[family]
        ranges = [[o["median"] - o["min"] for o in rows], [o["max"] - o["median"] for o in rows]]
        axes.errorbar(flows, [o["median"] for o in rows], ranges, fmt="-" if protocol == "tcp" else "--", color=colour, marker="o",
                      markersize=4, ecolor="#aaaaaa", elinewidth=0.8, label=f"{protocol.upper()}, IPv{family}")  # fmt: skip
    for (family, protocol), rows in series.items():
        colour, goals = FAMILIES[family], {o["params"]["flows"]: o["goal"] for o in rows if "goal" in o}
        if goals:
            axes.plot(list(goals), list(goals.values()), "v", markersize=9, mfc="none", color=colour,
                      label=f"goal, {protocol.upper()}, IPv{family}")  # fmt: skip
        if protocol == "tcp":
            axes.plot([o["params"]["flows"] for o in rows], [o["peer_median"] for o in rows], ":", color=colour, alpha=0.7,
                      label=f"floor: the bare table, IPv{family}")  # fmt: skip
    axes.set_xscale("log", base=2)
    ticks = sorted({o["params"]["flows"] for rows in series.values() for o in rows})
    axes.set_xticks(ticks, [f"{n // (1 << 20)} M" if n >= 1 << 20 else f"{n // 1024} k" for n in ticks])
    axes.minorticks_off()
    # a pass that was interrupted is an outlier far above: its line may leave the picture
    axes.set_ylim(0, 1.4 * max(o["median"] for rows in series.values() for o in rows))
    axes.set_xlabel("connections, visited in random order")
    axes.set_ylabel("ns per packet")
    note = f"a packet of an established connection; median and range of the passes; {where(objects)}"
    dress(axes, "The engine in memory, one core", note.removesuffix("; "))
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description="plots from bench/out into docs/img")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder of the images (docs/img)")
    args = parser.parse_args()
    drawn = 0
    for name, draw, image in (("veth", veth, "veth-pps.png"), ("engine", engine, "engine.png")):
        file = OUT / f"{name}.json"
        objects = json.loads(file.read_text()) if file.exists() else []
        figure = draw(objects) if isinstance(objects, list) else None
        if figure is None:
            print(f"{image}: left as it is, {file.relative_to(ROOT)} has nothing for it: run make bench-{name}")
            continue
        args.out.mkdir(parents=True, exist_ok=True)
        figure.savefig(args.out / image, metadata={"Software": None})
        print(f"drawn: {args.out / image}")
        drawn += 1
    return 0 if drawn else 1


if __name__ == "__main__":
    sys.exit(main())
