# SPDX-License-Identifier: Apache-2.0
"""What a process must be allowed to do: refused with a sentence where it is not."""

import pytest

from lbd.xdp import kernel

NEEDED = ("CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "CAP_PERFMON")
WHOLE = sum(1 << kernel.CAPABILITIES[name] for name in NEEDED)


@pytest.fixture
def holding(monkeypatch: pytest.MonkeyPatch):
    def hold(capabilities: int) -> tuple[str, ...]:
        monkeypatch.setattr(kernel, "effective_capabilities", lambda: capabilities)
        return tuple(p for p in kernel.probe().problems if "missing" in p)

    return hold


def test_these_and_no_more(holding) -> None:
    assert set(kernel.CAPABILITIES) == set(NEEDED) and holding(WHOLE) == ()


@pytest.mark.parametrize("name", NEEDED)
def test_one_is_missing(holding, name: str) -> None:
    [problem] = holding(WHOLE & ~(1 << kernel.CAPABILITIES[name]))
    assert problem.startswith(f"{name} missing: run lbd as root")


def test_old_kernels_name(holding) -> None:
    """CAP_SYS_ADMIN stands for those that were made of it."""
    network = 1 << kernel.CAPABILITIES["CAP_NET_ADMIN"] | 1 << kernel.CAPABILITIES["CAP_NET_RAW"]
    assert holding(network | 1 << kernel.CAP_SYS_ADMIN) == ()
    assert holding(network) == ("CAP_BPF, CAP_PERFMON missing: run lbd as root, or by its systemd unit",)
