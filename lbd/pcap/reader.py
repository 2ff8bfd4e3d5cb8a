# SPDX-License-Identifier: Apache-2.0
"""Any capture file: which kind it is, is told by its first four bytes."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lbd.pcap import classic, pcapng
from lbd.pcap.packet import Packet, PcapError, Source

PACKERS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zX": "xz",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
}


def read(file: BinaryIO, name: str = "<capture>") -> Iterator[Packet]:
    """Packets in the file's order; PcapError at the point from which on it can't be read."""
    source = Source(file, name)
    magic = source.take(4)
    if magic == pcapng.MAGIC:
        yield from pcapng.Reader(source).packets()
    elif magic in classic.MAGIC:
        yield from classic.read(source, magic)
    elif not magic:
        raise source.error(0, "the file is empty")
    else:
        for start, packer in PACKERS.items():
            if magic.startswith(start):
                raise source.error(0, f"the file is packed with {packer}: unpack it first")
        raise source.error(0, f"neither pcap nor pcapng begins with {magic.hex()}")


def read_file(path: str | os.PathLike[str]) -> Iterator[Packet]:
    """As `read`; "-" is standard input."""
    if os.fspath(path) == "-":
        yield from read(sys.stdin.buffer, "standard input")
        return
    try:
        with Path(path).open("rb") as file:
            yield from read(file, os.fspath(path))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        problem = error.strerror if isinstance(error, OSError) else str(error)
        raise PcapError(os.fspath(path), 0, f"can't be read: {problem}") from None
