# SPDX-License-Identifier: Apache-2.0
"""make bench-steer: what the XDP program costs a packet, in instructions (the lab VM) or nanoseconds (--here).

The shipped program by BPF_PROG_TEST_RUN, less what a program of two instructions takes in the same run: its own code, its map
lookups and bpf_redirect_map(), not the driver's end of the redirect. Needs no NIC; --here needs root. What this does not show:
caches (one packet of each case, over and over) and drivers (make bench-vm).
"""

import argparse
import ctypes
import ipaddress
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lbd.xdp._xsk import Program  # noqa: E402

AF_XDP, LOOPBACK, XDP_PASS, XDP_REDIRECT = 44, 1, 2, 4
BPF_PROG_TYPE_XDP = 6
REPEAT = {"instructions": 2000, "ns": 200_000}
ROUNDS = 7
CLIENT, VIP, LIP, SERVER = "198.51.100.7", "192.0.2.10", "10.0.0.10", "10.0.1.1"
CLIENT6, VIP6, LIP6, SERVER6 = "2001:db8:c::7", "2001:db8::10", "fd00::10", "fd00:1::1"
TAG = struct.pack("!HH", 0x8100, 7)


class RunOpts(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),  # of one, ns
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


# -- packets -------------------------------------------------------------------------------------------------------------


def packed(address: str) -> tuple[int, bytes]:
    parsed = ipaddress.ip_address(address)
    return parsed.version, parsed.packed


def frame(src: str, dst: str, port: int, *, tag: bytes = b"", options: int = 0, offset: int = 0) -> bytes:
    """UDP in 60 bytes or more."""
    af, to = packed(dst)
    udp = struct.pack("!HHHH", 4000, port, 26, 0) + bytes(18)
    macs = bytes.fromhex("020000000002020000000001") + tag
    if af == 6:
        return macs + struct.pack("!HIHBB", 0x86DD, 6 << 28, len(udp), 17, 64) + packed(src)[1] + to + udp
    words = 5 + options
    ip = struct.pack("!BBHHHBBH", 0x40 | words, 0, words * 4 + len(udp), 0, offset, 64, 17, 0) + packed(src)[1] + to
    return macs + struct.pack("!H", 0x0800) + ip + b"\1" * (4 * options) + udp


CASES = {
    "service, IPv4": (frame(CLIENT, VIP, 53), XDP_REDIRECT),
    "service, IPv4, VLAN": (frame(CLIENT, VIP, 53, tag=TAG), XDP_REDIRECT),
    "service, IPv4, a LIP's port": (frame(CLIENT, VIP, 30000), XDP_REDIRECT),
    "service, IPv4, IP options": (frame(CLIENT, VIP, 53, options=1), XDP_REDIRECT),
    "service, IPv4, later fragment": (frame(CLIENT, VIP, 53, offset=185), XDP_REDIRECT),
    "service, IPv6": (frame(CLIENT6, VIP6, 53), XDP_REDIRECT),
    "LIP, IPv4": (frame(SERVER, LIP, 20000), XDP_REDIRECT),
    "LIP, IPv6": (frame(SERVER6, LIP6, 20000), XDP_REDIRECT),
    "the kernel's, IPv4": (frame(CLIENT, VIP, 22), XDP_PASS),
    "the kernel's, IPv4, a LIP's port": (frame(CLIENT, SERVER, 20000), XDP_PASS),
    "the kernel's, IPv6": (frame(CLIENT6, VIP6, 22), XDP_PASS),
}


# -- runs ----------------------------------------------------------------------------------------------------------------


def loaded(sockets: list[socket.socket]) -> Program:
    """The program with 50 services and 5 LIPs, some of the cases', and a socket for what is redirected."""
    program = Program.load()
    program.set_iface(LOOPBACK, 0)
    sockets.append(socket.socket(AF_XDP, socket.SOCK_RAW, 0))
    program.set_socket(0, 0, sockets[-1].fileno())
    for address, port in ((VIP, 53), (VIP, 30000), (VIP6, 53), *((f"192.0.2.{n}", 80) for n in range(100, 147))):
        program.set_service(*packed(address), port, 17)
    for address in (LIP6, *(f"10.0.0.{n}" for n in range(10, 14))):
        program.set_lip(*packed(address), 10240, 65535)
    return program


def measure(repeat: int) -> dict[str, list[int]]:
    """By case, and "floor", the cost of each round: alternating."""
    libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
    sockets: list[socket.socket] = []
    program = loaded(sockets)
    instructions = (ctypes.c_uint64 * 2)(XDP_PASS << 32 | 0xB7, 0x95)  # r0 = XDP_PASS; exit
    bare = libbpf.bpf_prog_load(BPF_PROG_TYPE_XDP, b"floor", b"GPL", instructions, ctypes.c_size_t(2), None)

    def run(fd: int, sent: bytes, verdict: int) -> int:
        opts = RunOpts(sz=ctypes.sizeof(RunOpts), data_in=sent, data_size_in=len(sent), repeat=repeat)
        if fd < 0 or libbpf.bpf_prog_test_run_opts(fd, ctypes.byref(opts)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        if opts.retval != verdict:
            sys.exit(f"bench/steer: verdict {opts.retval} instead of {verdict}: no figure")
        return int(opts.duration)

    costs: dict[str, list[int]] = {name: [] for name in ("floor", *CASES)}
    for _ in range(ROUNDS):
        costs["floor"].append(run(bare, CASES["service, IPv4"][0], XDP_PASS))
        for name, (sent, verdict) in CASES.items():
            costs[name].append(run(program.fds["prog"], sent, verdict))
    return costs


def measure_in_vm() -> dict[str, list[int]]:
    if subprocess.run([ROOT / "tests/vm/vmlab-setup"]).returncode:
        sys.exit("bench/steer: no VM")
    argv = [ROOT / "tests/vm/vmlab", "--cpus", "1", "--icount", "0", "--mem", "1G", "--timeout", "300"]
    argv += ["--env", f"PYTHONPATH={ROOT}", "--", f"exec {sys.executable} {ROOT}/bench/steer.py --guest"]
    vm = subprocess.run(argv, capture_output=True, text=True)
    if vm.returncode:
        sys.exit(f"bench/steer: the VM's command ended with status {vm.returncode}:\n{vm.stderr}")
    return json.loads(vm.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--here", action="store_true", help="nanoseconds on this machine, as root, instead")
    parser.add_argument("--guest", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-o", type=Path, default=ROOT / "bench/out/steer.json", metavar="FILE")
    options = parser.parse_args()
    if options.guest:  # a nanosecond is an instruction there
        print(json.dumps(measure(REPEAT["instructions"])))
        return
    unit = "ns" if options.here else "instructions"
    costs = measure(REPEAT[unit]) if options.here else measure_in_vm()
    floor = statistics.median(costs.pop("floor"))
    print(f"{unit} per packet above a bare program's {floor:.0f}: median (range of {ROUNDS} rounds)")
    rows = []
    for name, each in costs.items():
        median, lo, hi = (cost - floor for cost in (statistics.median(each), min(each), max(each)))
        print(f"{name:34}{median:6.0f}  ({lo:.0f}-{hi:.0f})")
        rows.append({"case": name, "unit": unit, "median": median, "min": lo, "max": hi, "floor": floor})
    options.o.parent.mkdir(parents=True, exist_ok=True)
    options.o.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
