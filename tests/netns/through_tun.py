# SPDX-License-Identifier: Apache-2.0
"""Packets through a program that reads and writes a TUN device: `python through_tun.py DEVICE` in its namespace.

Lines of hexadecimal come in, the first one is the marker: an IPv6 UDP packet that the program passes on. A line goes out
for each of the others, with what came for it, separated by commas. The marker is sent behind every packet, with its number
in the last four bytes: what arrives before it is the answer, and nothing has to be waited for.
"""

import socket
import struct
import sys

ETH_P_ALL = 3
OUTGOING = 4  # PACKET_OUTGOING


def send(sock: socket.socket, device: str, packet: bytes) -> None:
    sock.sendto(packet, (device, 0x0800 if packet[0] >> 4 == 4 else 0x86DD))


def main(device: str) -> None:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
    sock.bind((device, ETH_P_ALL))
    sock.settimeout(10)
    marker, *packets = (bytes.fromhex(line) for line in sys.stdin)
    for number, packet in enumerate(packets):
        end = marker[48:-4] + struct.pack("!I", number)
        send(sock, device, packet)
        send(sock, device, marker[:-4] + struct.pack("!I", number))
        answers: list[str] = []
        while True:
            data, (_, _, kind, *_) = sock.recvfrom(65536)
            if kind == OUTGOING:
                continue
            if data.endswith(end):
                break
            answers.append(data.hex())
        print(",".join(answers), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
