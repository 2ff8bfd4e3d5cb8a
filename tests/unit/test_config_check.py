"""`lbd check`: report, memory, the look at the host. And the reference and schema that the model makes."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lbd.config import Config, load, loads
from lbd.config.check import check, run_check, to_dict, to_text
from lbd.config.daemon import WORKER_MAX, Tables, Workers
from lbd.config.host import remarks
from lbd.config.interface import IFACE_MAX
from lbd.config.memory import Memory, memory, memory_text
from lbd.config.reference import reference
from lbd.config.schema import TABLES, schema

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "conf/lbd.toml"

BASE = """\
[[interface]]
name = "lo"
[[local_address]]
address = "10.0.0.10"
interface = "lo"
"""


def run(path: Path, as_json: bool = False) -> tuple[int, str]:
    out = io.StringIO()
    return run_check(str(path), as_json, out), out.getvalue()


def test_good_file(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(BASE + "[workers]\ncount = 2\n[timeouts]\ntcp_time_wait = 1\n")
    status, text = run(path)
    assert status == 0
    lines = text.splitlines()
    assert any(line.startswith(f"{path}:9: warning: timeouts.tcp_time_wait: ") for line in lines)
    assert f"{path}: ok: 1 interface, 1 local address, 0 services, 0 real servers, 2 workers" in lines
    assert any(
        line.split() == ["each", "worker", *memory_text(check(str(path)).memory.worker).split(), "×", "2"]
        for line in lines
    )  # type: ignore[union-attr]
    assert lines[-1].split()[0] == "total"


def test_bad_file(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(BASE + "[workers]\ncuont = 2\ncores = 1\n")
    status, text = run(path)
    assert status == 1
    first, second, last = text.splitlines()
    assert first == f"{path}:7: workers.cuont: unknown key; did you mean `count`?"
    assert second.startswith(f"{path}:8: workers.cores: must be an array")
    assert last == f"{path}: 2 problems"
    status, text = run(path, as_json=True)
    report = json.loads(text)
    assert status == 1 and report["ok"] is False and report["memory"] is None
    assert report["problems"][0] == {
        "file": str(path),
        "line": 7,
        "field": "workers.cuont",
        "message": "unknown key; did you mean `count`?",
        "severity": "error",
    }


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none"
    status, text = run(path)
    assert status == 1 and text.splitlines()[-1] == f"{path}: 1 problem"
    assert json.loads(run(path, as_json=True)[1])["problems"][0]["line"] is None


def test_json_of_a_good_file() -> None:
    report = check(str(EXAMPLE))
    plain = json.loads(json.dumps(to_dict(report)))
    assert plain["ok"] is True and plain["problems"] == []
    assert plain["memory"]["total"] == report.memory.total if report.memory else False
    assert to_text(report).count("memory:") == 1


def test_from_a_pipe() -> None:
    read, write = os.pipe()
    os.write(write, (BASE + "[timeouts]\ntcp_time_wait = 1\n").encode())
    os.close(write)
    try:
        status, text = run(Path(f"/dev/fd/{read}"))
        assert status == 0 and f"/dev/fd/{read}:7: warning: " in text
    finally:
        os.close(read)


# --- memory ---


def test_memory_is_what_the_layouts_need() -> None:
    import lbd._fastpath as fastpath

    from lbd.shm import _shm

    config = load(EXAMPLE)
    need, sizes = memory(config), config.sizes()
    segments = _shm.segment_bytes(sizes)
    assert (need.connections, need.tables, need.shared) == (
        fastpath.conn_bytes(sizes),
        segments["worker"],
        segments["host"],
    )
    assert need.area <= segments["area"] < need.area + 4096
    parts = need.connections + need.tables + need.frames + need.sockets + need.process
    assert need.total == 2 * parts + need.shared + need.templates + need.master
    assert need.sockets == 2 * 2048 * 48


def test_kept_templates_count_where_a_service_has_persistence() -> None:
    text = BASE + "[workers]\ncount = 2\n[tables]\npersistence_templates = 1024\n"
    plain = '[[service]]\nname = "web"\naddress = "192.0.2.10:80"\n'
    assert memory(loads(text + plain)).templates == 0
    need = memory(loads(text + plain + 'persistence = "6m"\n'))
    assert need.templates == 2 * 1024 * 192 and need.total == memory(loads(text + plain)).total + need.templates


@pytest.mark.parametrize(
    ("table", "workers"),
    [({}, 1), ({"services": 65535, "real_servers": 65535, "frames": 65536}, 4), ({}, 16)],
)
def test_documented_formula(table: dict[str, int], workers: int) -> None:
    """The figures in memory.py's head, within a few per cent."""
    text = f"[workers]\ncount = {workers}\n[tables]\n" + "".join(f"{k} = {v}\n" for k, v in table.items())
    config = loads(BASE + text)
    need, t = memory(config), config.tables
    assert need.connections == pytest.approx(125 * t.connections_ipv4 + 189 * t.connections_ipv6, rel=0.05)
    assert need.tables == pytest.approx(3.3 * 2**20 + 200 * t.services + 144 * t.real_servers, rel=0.05)
    assert need.frames == pytest.approx(2049 * t.frames, rel=0.01)
    pairs = workers * workers * 24 * t.frames
    shared = max(16 << 20, 4096 * t.services) + workers * 32 * t.persistence_templates + pairs
    assert need.shared == pytest.approx(shared, rel=0.1)


def test_limits_are_those_of_the_layouts() -> None:
    from lbd.shm import _shm

    assert (WORKER_MAX, IFACE_MAX) == (_shm.WORKER_MAX, _shm.IFACE_MAX)
    assert set(Config().sizes()) == set(_shm.SIZE_NAMES)
    for end in ("le", "ge"):  # the largest and the smallest configuration can be laid out
        fields = Tables.model_fields.items()
        tables = {n: getattr(m, end) for n, f in fields for m in f.metadata if hasattr(m, end)}
        config = Config(tables=Tables(**tables), workers=Workers(count=WORKER_MAX if end == "le" else 1))
        assert memory(config).total > 0


@pytest.mark.parametrize(
    ("count", "text"), [(5, "5 B"), (2048, "2.0 KiB"), (1 << 20, "1.0 MiB"), (3 << 29, "1.5 GiB")]
)
def test_memory_text(count: int, text: str) -> None:
    assert memory_text(count) == text


# --- the host ---

SMALL = Memory(workers=2, connections=1, tables=1, frames=3 << 20, sockets=1, process=1, shared=1, master=1)


def said(text: str, root: Path, need: Memory = SMALL) -> dict[Any, str]:
    return dict(remarks(loads(BASE + text), need, root=root))


def test_interfaces_and_queues(tmp_path: Path) -> None:
    queues = tmp_path / "sys/class/net/lo/queues"
    for name in ("rx-0", "rx-1", "rx-2", "tx-0"):
        (queues / name).mkdir(parents=True)
    (queues.parent / "ifindex").write_text(f"{socket.if_nametoindex('lo')}\n")
    message = said("[workers]\ncount = 2\n", tmp_path)["interface", 0, "name"]
    assert "3 receive queues and 2 workers" in message and "ethtool -L lo combined 2" in message
    assert ("interface", 0, "name") not in said("[workers]\ncount = 3\n", tmp_path)
    (queues.parent / "ifindex").write_text("999999\n")  # the /sys of another network namespace
    assert ("interface", 0, "name") not in said("[workers]\ncount = 2\n", tmp_path)
    missing = said('[[interface]]\nname = "lbdt-none"\n', tmp_path)["interface", 1, "name"]
    assert 'no interface "lbdt-none"' in missing and "lo" in missing
    vip = '[[service]]\nname = "a"\naddress = "192.0.2.1:1"\ninterface = "lbdt-none"\n'
    assert "where the address is to be added" in said(vip, tmp_path)["service", 0, "interface"]
    assert ("service", 0, "interface") not in said(vip + "manage = false\n", tmp_path)


def test_cores_and_group(tmp_path: Path) -> None:
    last = max(os.sched_getaffinity(0))
    found = said(f'[workers]\ncores = [{last}, 8191]\n[daemon]\ngroup = "lbdt-none"\n', tmp_path)
    assert "core 8191 is not there" in found["workers", "cores", 1]
    assert ("workers", "cores", 0) not in found
    assert "groupadd --system lbdt-none" in found["daemon", "group"]
    assert "16 workers share" in said("[workers]\ncount = 16\n", tmp_path)[("workers",)]


def test_ports_pages_memory(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    (proc / "sys/net/ipv4").mkdir(parents=True)
    (proc / "sys/net/ipv4/ip_local_port_range").write_text("20000\t30000\n")
    (proc / "meminfo").write_text("MemAvailable: 1024 kB\nHugePages_Free:  2\nHugepagesize: 2048 kB\n")
    found = said('[tables]\nhugepages = "require"\n', tmp_path)
    assert "only 0 ports remain" in found["local_address", 0, "ports"]
    assert (
        "3 huge pages are needed and 2 are free; run `sysctl vm.nr_hugepages=3`"
        in found["tables", "hugepages"]
    )
    assert "6.0 MiB are needed and 1.0 MiB available" in found[("tables",)]
    (proc / "meminfo").write_text("MemAvailable: 10240 kB\nHugePages_Free:  3\nHugepagesize: 2048 kB\n")
    (proc / "sys/net/ipv4/ip_local_port_range").write_text("32768\t60999\n")
    found = said('[tables]\nhugepages = "require"\n', tmp_path)
    assert not {("local_address", 0, "ports"), ("tables", "hugepages"), ("tables",)} & set(found)


def test_a_host_that_tells_nothing(tmp_path: Path) -> None:
    assert said("[workers]\ncount = 1\n", tmp_path) == {}


# --- the reference and the schema ---


def test_reference_is_current() -> None:
    assert (ROOT / "docs/configuration.md").read_text() == reference(), (
        "run: python -m lbd.config > docs/configuration.md"
    )


def test_reference_is_complete() -> None:
    text = reference()
    for table in TABLES.values():
        for key in table.keys.values():
            assert key.field.description, f"{table.header} {key.name} has no description"
            if (*table.path, key.name) in TABLES:
                assert f"## `{TABLES[(*table.path, key.name)].header}`" in text
            else:
                assert f"| `{key.name}` | {key.type_text} |" in text
                assert key.example, f"{table.header} {key.name} has neither default nor example"


def test_every_choice_is_explained() -> None:
    """The reference tells what each value of a choice means, unless the word itself does."""
    plain = {"tcp", "udp", "http", "debug", "info", "warning", "error", "native", "generic"}
    for table in TABLES.values():
        for key in table.keys.values():
            for choice in set(key.choices) - plain:
                assert f"`{choice}`" in str(key.field.description), f"{table.header} {key.name} = {choice}"


def test_schema() -> None:
    document = schema()
    assert document["additionalProperties"] is False
    assert set(document["properties"]) == {path[0] for path in TABLES if path}
    for name, model in document["$defs"].items():
        assert model["additionalProperties"] is False, name
        for key, value in model["properties"].items():
            assert value.get("description"), f"{name}.{key}"
    weight = document["$defs"]["RealServer"]["properties"]["weight"]
    assert (weight["minimum"], weight["maximum"], weight["default"]) == (0, 65535, 1)
    assert document["$defs"]["Service"]["required"] == ["name", "address"]
    json.dumps(document)


@pytest.mark.parametrize(("arguments", "status"), [([], 0), (["schema"], 0), (["what"], 2)])
def test_module(arguments: list[str], status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lbd.config", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == status, done.stderr
    if arguments == ["schema"]:
        assert json.loads(done.stdout) == schema()
    elif not arguments:
        assert done.stdout == reference()


def test_run_dir_on_a_disk(tmp_path: Path) -> None:
    proc = tmp_path / "proc/self"
    proc.mkdir(parents=True)
    (proc / "mounts").write_text("/dev/a / ext4 rw 0 0\ntmpfs /run tmpfs rw 0 0\n/dev/b /run/disk xfs rw 0 0\n")
    assert ("daemon", "run_dir") not in said("", tmp_path)
    assert "lies on xfs" in said('[daemon]\nrun_dir = "/run/disk/lbd"\n', tmp_path)["daemon", "run_dir"]
    assert "lies on ext4" in said('[daemon]\nrun_dir = "/var/lbd"\n', tmp_path)["daemon", "run_dir"]
