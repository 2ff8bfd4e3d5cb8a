# SPDX-License-Identifier: Apache-2.0
"""Killing a process at a chosen instruction of its main thread: ptrace(2), x86 and others that single-step.

A signal from outside mostly arrives where a worker spends its time, in a system call. Stepping spreads the last
instruction evenly over all that a worker does with a burst.
"""

import ctypes
import os
import signal
import time

SEIZE, INTERRUPT, SINGLESTEP = 0x4206, 0x4207, 9
WALL = 0x40000000  # wait for a thread that is no child, too
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def ptrace(request: int, pid: int) -> None:
    if libc.ptrace(request, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request}: {os.strerror(ctypes.get_errno())}")


def kill_after(pid: int, instructions: int, seconds: float = 0.3) -> int:
    """SIGKILL after so many instructions from now, or `seconds`. How many were stepped."""
    ptrace(SEIZE, pid)
    ptrace(INTERRUPT, pid)
    os.waitpid(pid, WALL)
    deadline = time.monotonic() + seconds
    done = 0
    while done < instructions and time.monotonic() < deadline:
        ptrace(SINGLESTEP, pid)
        os.waitpid(pid, WALL)
        done += 1
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, WALL)  # its parent hears of it only then
    return done
