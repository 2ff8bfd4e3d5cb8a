"""Two engines that do the same: one with the fast lane, one without. Whatever a test sends goes through both, and what comes of it
must be the same in every respect: verdicts, bytes, connections, statistics, counters.
"""

from typing import Any

from lbd._fastpath import Engine, Result

ALIKE = ("apply", "set_table", "set_rss", "set_owner", "expire", "ending", "recover", "conns", "used", "counters",
         "service_stats", "dest_stats", "lip_stats", "tunnel_stats", "templates", "templates_kept", "templates_return")  # fmt: skip


def told(r: Result) -> tuple[object, ...]:
    return r.verdict, r.reason, r.svc, r.dest, r.out, (r.owner, r.hand) if r.verdict == "handover" else None


class Twin:
    """As Engine."""

    def __init__(self, sizes: dict[str, int], worker: int = 0, **more: Any) -> None:
        self.fast = Engine(sizes, worker, **more)
        self.general = Engine(sizes, worker, fast=False, **more)

    def __getattr__(self, name: str) -> Any:
        if name not in ALIKE:
            raise AttributeError(name)

        def both(*args: Any, **more: Any) -> Any:
            a, b = getattr(self.fast, name)(*args, **more), getattr(self.general, name)(*args, **more)
            assert a == b, f"{name}: the fast lane says {a}, the general way {b}"
            return a

        return both

    def join(self, others: dict[int, "Twin"]) -> None:
        """The fast ones are a host, and the general ones another."""
        self.fast.join({n: t.fast for n, t in others.items()})
        self.general.join({n: t.general for n, t in others.items()})

    def take_in(self, gone: "Twin") -> tuple[int, int]:
        moved: tuple[int, int] = self.fast.take_in(gone.fast)
        assert self.general.take_in(gone.general) == moved
        return moved

    def carry_templates(self, gone: "Twin") -> None:
        self.fast.carry_templates(gone.fast)
        self.general.carry_templates(gone.general)

    def mark(self, others: list["Twin"]) -> None:
        self.fast.mark([t.fast for t in others])
        self.general.mark([t.general for t in others])

    def process(self, frames: list[tuple[bytes, int]], now_ns: int, **more: Any) -> list[Result]:
        results: list[Result] = self.fast.process(frames, now_ns, **more)
        for (frame, iface), a, b in zip(frames, results, self.general.process(frames, now_ns, **more), strict=True):
            assert told(a) == told(b), f"frame {frame.hex()} on {iface}: the fast lane {a}, the general way {b}"
        assert self.fast.counters() == self.general.counters()
        return results

    def released(self, now_ns: int) -> list[tuple[int, bytes, int, Result]]:
        a, b = self.fast.released(now_ns), self.general.released(now_ns)
        assert [(*x[:3], told(x[3])) for x in a] == [(*x[:3], told(x[3])) for x in b]
        return a
