# SPDX-License-Identifier: Apache-2.0
"""Two ends of QUIC by aioquic: a server whose connection ids begin as it is told, a client that changes its address half-way.

    quic_end.py server ADDRESS PORT NAME PREFIX CERTIFICATE KEY    PREFIX: hexadecimal digits of every id that it issues
    quic_end.py client ADDRESS PORT COUNT SIZE FIRST SECOND SECONDS
                       COUNT transfers of SIZE bytes each, begun from address FIRST and gone on with from SECOND; each step of one
                       has SECONDS; prints one JSON object
"""

import asyncio
import hashlib
import json
import random
import secrets
import ssl
import sys
import types

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.quic import connection
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, QuicEvent, StreamDataReceived

CID_LENGTH = 11  # no other random value of aioquic has this length
CHUNK = 1 << 14


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


class Server(QuicConnectionProtocol):
    name = ""

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived) and event.end_stream:
            seed, size = map(int, event.data.split())
            self._quic.send_stream_data(event.stream_id, self.name.encode() + b"\n" + content(seed, size), end_stream=True)
            self.transmit()


async def run_server(address: str, port: str, name: str, prefix: str, certificate: str, key: str) -> None:
    def urandom(size: int) -> bytes:
        if size != CID_LENGTH:
            return secrets.token_bytes(size)
        return bytes.fromhex((prefix + secrets.token_hex(CID_LENGTH))[: 2 * CID_LENGTH])

    connection.os = types.SimpleNamespace(urandom=urandom)  # where aioquic takes its ids from
    Server.name = name
    configuration = QuicConfiguration(is_client=False, connection_id_length=CID_LENGTH)
    configuration.load_cert_chain(certificate, key)
    await serve(address, int(port), configuration=configuration, create_protocol=Server)
    print("ready", flush=True)
    await asyncio.Event().wait()


class Client(QuicConnectionProtocol):
    def __init__(self, *args: object, **more: object) -> None:
        super().__init__(*args, **more)  # type: ignore[arg-type]
        self.got = bytearray()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.some = asyncio.Event()

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            self.got += event.data
            if len(self.got) > CHUNK:
                self.some.set()
            if event.end_stream and not self.done.done():
                self.done.set_result(None)
        elif isinstance(event, ConnectionTerminated) and not self.done.done():
            self.done.set_exception(ConnectionError(event.reason_phrase or "terminated"))


async def transfer(address: str, port: int, seed: int, size: int, first: str, second: str, patience: float) -> str:
    """Who served it; fails unless every byte came, and after the move."""
    loop = asyncio.get_running_loop()
    configuration = QuicConfiguration(is_client=True, verify_mode=ssl.CERT_NONE, max_stream_data=4 * CHUNK)
    client = Client(connection.QuicConnection(configuration=configuration))
    old, _ = await loop.create_datagram_endpoint(lambda: client, local_addr=(first, 0))
    client.connect((address, port, 0, 0) if ":" in address else (address, port))  # as answers name it
    await asyncio.wait_for(client.wait_connected(), patience)
    stream = client._quic.get_next_available_stream_id()
    client._quic.send_stream_data(stream, b"%d %d" % (seed, size), end_stream=True)
    client.transmit()
    await asyncio.wait_for(client.some.wait(), patience)
    moved_at = len(client.got)
    assert not client.done.done(), "nothing left to move for"
    await loop.create_datagram_endpoint(lambda: client, local_addr=(second, 0))  # the protocol sends by its newest socket
    old.close()
    client.change_connection_id()
    client._quic.send_ping(0)
    client.transmit()
    await asyncio.wait_for(client.done, patience)
    name, _, data = bytes(client.got).partition(b"\n")
    assert hashlib.sha256(data).digest() == hashlib.sha256(content(seed, size)).digest()
    assert moved_at < size // 2
    client.close()
    client._transport.close()  # type: ignore[attr-defined]
    return name.decode()


async def run_client(address: str, port: str, count: str, size: str, first: str, second: str, patience: str) -> None:
    served: dict[str, int] = {}
    failed: list[str] = []
    for seed in range(int(count)):
        try:
            name = await transfer(address, int(port), seed, int(size), first, second, float(patience))
            served[name] = served.get(name, 0) + 1
        except (ConnectionError, TimeoutError) as e:
            failed.append(type(e).__name__)
    print(json.dumps({"served": served, "failed": failed}))


if __name__ == "__main__":
    asyncio.run({"server": run_server, "client": run_client}[sys.argv[1]](*sys.argv[2:]))
