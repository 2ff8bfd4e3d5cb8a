# SPDX-License-Identifier: Apache-2.0
"""What no single field of [[snat]] can tell; as in rule.py, which runs these, too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lbd.config.problem import Loc
from lbd.config.snat import Snat

if TYPE_CHECKING:
    from lbd.config.rule import Finding, Rule, View


def _rules(view: View) -> Iterator[tuple[Loc, Snat]]:
    return view.each(view.config.snat, "snat")


def _names(view: View) -> Iterator[Finding]:
    taken = {s.name: "a service" for s in view.config.service}
    for loc, rule in _rules(view):
        if rule.name in taken:
            yield (*loc, "name"), f"must be unique; {taken[rule.name]} has this name: choose another"
        taken.setdefault(rule.name, f"snat[{loc[-1]}]")


def _families(view: View) -> Iterator[Finding]:
    remedy = "write a rule for each family"
    for outer, rule in _rules(view):
        for key, ranges in (("source", rule.source), ("destination", rule.destination)):
            for loc, some in view.each(ranges, *outer, key):
                if some.af != rule.af:
                    yield loc, f"must be IPv{rule.af} as the rule's first source, not {some}; {remedy}"
        for loc, pool in view.each(rule.pool, *outer, "pool"):
            if pool.af != rule.af:
                yield (*loc, "address"), f"must be IPv{rule.af} as the rule's sources, not {pool.address}; {remedy}"


def _pools(view: View) -> Iterator[Finding]:
    lips = {lip.address for lip in view.config.local_address}
    user: dict[object, tuple[Loc, Snat]] = {}
    for outer, rule in _rules(view):
        if not rule.pool and view.whole(*outer, "pool"):
            yield outer, "needs an address to send from; add [[snat.pool]] with address and interface"
        seen: set[object] = set()
        for loc, pool in view.each(rule.pool, *outer, "pool"):
            if pool.address in seen:
                yield (*loc, "address"), f"{pool.address} stands twice in this pool: remove one"
            seen.add(pool.address)
            if pool.address in lips:
                taken = f"{pool.address} is a [[local_address]], which FULLNAT sends from"
                yield (*loc, "address"), f"{taken}: use another, or remove that"
            where, other = user.setdefault(pool.address, (outer, rule))
            if other.pool != rule.pool:
                same = f"snat[{where[-1]}] sends from {pool.address}, too"
                yield (*loc, "address"), f"{same}, but has another pool: write the whole pool alike in both, or part them"


RULES: tuple[Rule, ...] = (_names, _families, _pools)
