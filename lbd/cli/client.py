# SPDX-License-Identifier: Apache-2.0
"""Asking the daemon: HTTP and JSON over its unix socket (docs/api.md).

Scope: one request at a time, each on a connection of its own. Everything that goes wrong is a Failure.
"""

import http.client
import json
import os
import socket
from typing import Any
from urllib.parse import urlencode

from lbd.cli.outcome import REFUSED, UNREACHABLE, Failure

SOCKET = "/run/lbd/control.sock"
TIMEOUT = 120.0  # seconds; the slowest request is a reload of thousands of services
NOT_RUNNING = "is lbd running? systemctl status lbd"

Document = dict[str, Any]


def default_socket() -> str:
    return os.environ.get("LBD_SOCKET") or SOCKET


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("lbd", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Client:
    def __init__(self, path: str) -> None:
        self.path = path

    def get(self, path: str, **query: object) -> Document:
        return self.ask("GET", path, query)

    def ask(
        self, method: str, path: str, query: Document | None = None, body: Document | None = None
    ) -> Document:
        connection, response = self._open(method, path, query, body)
        try:
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from None
        finally:
            connection.close()
        return self._document(content)

    def stream(self, path: str, **query: object) -> http.client.HTTPResponse:
        """An endless answer; read1() gives what has come."""
        return self._open("GET", path, query, None, None)[1]

    def _open(
        self,
        method: str,
        path: str,
        query: Document | None,
        body: Document | None,
        timeout: float | None = TIMEOUT,
    ) -> tuple[UnixConnection, http.client.HTTPResponse]:
        connection = UnixConnection(self.path, timeout)
        target = f"{path}?{urlencode(query)}" if query else path
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            connection.request(method, target, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            if response.status < 400:
                return connection, response
            content = response.read()
        except PermissionError:
            connection.close()
            remedy = "run it as root, or as a member of the group in daemon.group"
            raise Failure(f"no permission to use {self.path}", remedy, REFUSED) from None
        except OSError as error:
            connection.close()
            problem = f"no daemon answers at {self.path}: {error.strerror or error}"
            raise Failure(problem, NOT_RUNNING, UNREACHABLE) from None
        except http.client.HTTPException as error:
            connection.close()
            raise self._broken(error) from None
        connection.close()
        raise self._refusal(response, content)

    def _refusal(self, response: http.client.HTTPResponse, content: bytes) -> Failure:
        try:
            problem = json.loads(content)
            lines = [str(p) for p in problem.get("problems", ())]
            detail = str(problem.get("detail") or problem.get("title") or response.reason)
            return Failure("\n".join([detail, *lines]), str(problem.get("remedy", "")))
        except (ValueError, AttributeError):
            return Failure(f"{self.path} answered {response.status} {response.reason}")

    def _broken(self, error: Exception) -> Failure:
        problem = f"{self.path} broke off: {error or type(error).__name__}"
        return Failure(problem, NOT_RUNNING, UNREACHABLE)

    def _document(self, content: bytes) -> Document:
        try:
            document = json.loads(content) if content else {}
            if isinstance(document, dict):
                return document
        except ValueError:
            pass
        raise Failure(f"{self.path} gave an answer that is not lbd's", "is another program's socket there?")
