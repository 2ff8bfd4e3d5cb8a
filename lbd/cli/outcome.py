# SPDX-License-Identifier: Apache-2.0
"""How a command ends: its exit code, and the one line that says why."""

DONE, REFUSED, USAGE, UNREACHABLE, DEGRADED = range(5)

EXIT_CODES = (
    (DONE, "done"),
    (REFUSED, "refused; a configuration that is wrong, too"),
    (USAGE, "usage: no such command or option"),
    (UNREACHABLE, "the daemon can't be reached"),
    (DEGRADED, "degraded (`lbd status --check`)"),
)


class Failure(Exception):
    """Ends the command: what went wrong, and what to do about it."""

    def __init__(self, problem: str, remedy: str = "", code: int = REFUSED) -> None:
        super().__init__(problem, remedy, code)
        self.problem = problem
        self.remedy = remedy
        self.code = code

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}" if self.remedy else self.problem
