# SPDX-License-Identifier: Apache-2.0
"""Capture files: pcapng and classic pcap, read and written. Nothing else of lbd is known here."""

from lbd.pcap.classic import Writer as ClassicWriter
from lbd.pcap.packet import ETHERNET, Interface, Packet, PcapError, Truncated
from lbd.pcap.pcapng import Writer
from lbd.pcap.reader import read, read_file

__all__ = [
    "ETHERNET",
    "ClassicWriter",
    "Interface",
    "Packet",
    "PcapError",
    "Truncated",
    "Writer",
    "read",
    "read_file",
]
