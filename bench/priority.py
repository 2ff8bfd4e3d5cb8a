# SPDX-License-Identifier: Apache-2.0
"""The share of the processor that measured processes get, so that a busy machine changes the figures less."""

import errno
import os
from pathlib import Path


def prefer(*pids: int, nice: int = -20) -> None:
    """87 times the share of ordinary processes at nice -20. Not a real-time priority: under one a spinning forwarder starves
    ksoftirqd, which TCP's receive path needs, and the connection stands still. NB: each session is an autogroup of its own
    (sched(7)), across which plain nice says nothing; a process that no session of its own holds is in the root group, whose share
    can't be set (EINVAL)."""
    for pid in pids:
        try:
            os.setpriority(os.PRIO_PROCESS, pid, nice)
            autogroup = Path(f"/proc/{pid}/autogroup")
            if autogroup.exists():
                autogroup.write_text(str(nice))
        except (ProcessLookupError, FileNotFoundError):  # it has ended meanwhile
            pass
        except OSError as why:
            if why.errno != errno.EINVAL:
                raise
