"""systemd takes our units as they are."""

import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).parents[2] / "systemd").glob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda p: p.name)
def test_verify(unit: Path, tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze (Debian package systemd)")
    # The command need not be installed for this: any that exists will do.
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/usr/bin/lbd", "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    # a warning, such as an unknown key, leaves the exit status 0
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
