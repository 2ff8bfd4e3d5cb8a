# SPDX-License-Identifier: Apache-2.0
"""The daemon's way to say no at start: one line, what is wrong and what to do."""

from __future__ import annotations


class Refusal(Exception):
    """`str()` is the line. `lbd run` prints it and exits with 1."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}: {self.remedy}" if self.remedy else self.problem
