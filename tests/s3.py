"""A real S3 server on loopback, and one in front of it that can be away, ill or full."""

import http.client
import http.server
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import boto3

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}

Mood = Literal["well", "ill", "away", "full"]


@contextmanager
def moto() -> Iterator[str]:
    """A moto server in a process of its own; gives its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None
            assert time.monotonic() < end, "the S3 server does not start"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def make_bucket(url: str) -> str:
    """A new bucket; its name."""
    name = f"audio-{secrets.token_hex(4)}"
    boto3.client("s3", endpoint_url=url, **_for_boto3()).create_bucket(Bucket=name)
    return name


def _for_boto3() -> dict[str, str]:
    return {
        "aws_access_key_id": CREDENTIALS["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        "region_name": CREDENTIALS["AWS_DEFAULT_REGION"],
    }


class Moody(http.server.ThreadingHTTPServer):
    """Passes requests on to an S3 server, or answers itself: ill (503), full (507 to writes), away (hangs up).

    Attributes:
        mood: how it is.
        conditions: whether it heeds the conditions of writes.
        asked: method and path of every request that came.
        forgetful: answers to this many writes get lost after the server has carried them out.
    """

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = behind.removeprefix("http://")
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.mood: Mood = "well"
        self.conditions = True
        self.forgetful = 0
        self.asked: list[tuple[str, str]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing on stderr: clients are killed in the middle."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Moody

    def _answer(self) -> None:
        server = self.server
        body = self._body()
        server.asked.append((self.command, self.path))
        if server.mood == "away":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if server.mood == "ill":
            self._refuse(503, "ServiceUnavailable")
            return
        if server.mood == "full" and self.command == "PUT":
            self._refuse(507, "XMinioStorageFull")
            return
        conditions = ("if-match", "if-none-match")
        headers = {
            name: value for name, value in self.headers.items()
            if name.lower() not in ("transfer-encoding", "content-length", "connection")
            and (server.conditions or name.lower() not in conditions)
        }  # fmt: skip
        onward = http.client.HTTPConnection(server.behind, timeout=60)
        onward.request(self.command, self.path, body, headers)
        answer = onward.getresponse()
        content = answer.read()
        if self.command == "PUT" and server.forgetful:
            server.forgetful -= 1
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "server", "date"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer

    def _body(self) -> bytes:
        if self.headers.get("Expect") == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _refuse(self, status: int, code: str) -> None:
        content = f"<Error><Code>{code}</Code><Message>not now</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Nothing on stderr."""


@contextmanager
def moody(behind: str) -> Iterator[Moody]:
    """A `Moody` server, running."""
    server = Moody(behind)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def environment(url: str) -> dict[str, str]:
    """What a process needs to work with the server at `url`."""
    return {**os.environ, **CREDENTIALS, "AWS_ENDPOINT_URL": url}
