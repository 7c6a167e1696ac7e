"""A web server on loopback that answers from a script: as it should, or as servers at times do."""

import hashlib
import http.server
import random
import re
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager

CONTENT = b"\x1f\x8b" + random.Random(0).randbytes(700_000)
NAME = "x.tar.gz"

Asked = namedtuple("Asked", "path range if_range")


class Server(http.server.ThreadingHTTPServer):
    """Answers from a script: a path has a list of answers, of which the last one stays."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = {}
        self.asked = []
        self.url = f"http://127.0.0.1:{self.server_port}/"

    def answers(self, path, *answers):
        self.script[f"/{path}"] = list(answers)
        return self.url + path

    def ranges(self, path=NAME):
        return [asked.range for asked in self.asked if asked.path == f"/{path}"]

    def handle_error(self, request, client_address):
        """Clients of these tests hang up in the middle."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(Asked(self.path, self.headers["Range"], self.headers["If-Range"]))
        answers = self.server.script.get(self.path.partition("?")[0], [status(404)])
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *arguments):
        """Nothing on stderr."""


def gives(
    content=CONTENT, tag='"1"', ranges=True, cut=None, length=None, kind="application/gzip", pause=0.0, modified=None
):
    """Give `content`, or the part that is asked for; `cut` bytes of it only, `pause` seconds before each 50 kB."""

    def answer(request):
        start, asked = 0, re.fullmatch(r"bytes=(\d+)-", request.headers["Range"] or "")
        if ranges and asked and request.headers["If-Range"] in (None, tag, modified):
            start = int(asked[1])
        if start >= len(content) and start:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(content)}")
            request.end_headers()
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        headers = {"ETag": tag, "Last-Modified": modified, "Content-Type": kind}
        headers["Content-Length"] = str((length or len(content)) - start) if length != 0 else None
        for name, value in headers.items():
            if value is not None:
                request.send_header(name, value)
        request.end_headers()
        body = content[start : len(content) if cut is None else start + cut]
        for place in range(0, len(body), 50_000):
            time.sleep(pause)
            request.wfile.write(body[place : place + 50_000])

    return answer


def status(code, body=b"", **headers):
    def answer(request):
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


def hangs(request):
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    time.sleep(2)


def sha256(content):
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()
