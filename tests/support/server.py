"""A server of ranges over HTTP on this machine, that can be slow and can go wrong.

``serve(folder)`` runs it on threads of this process. Run as a program, it serves until its
input ends, for measurements: ``python server.py FOLDER LATENCY MBPS`` prints its port.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from xref.storage.spared_garbage import enter_transport

MOST_REQUESTS = 50_000


@dataclass
class Answer:
    """What is sent for one range; faults change it."""

    status: int
    headers: dict[str, str]
    body: bytes
    closing: threading.Event = field(default_factory=threading.Event)
    """Set when the server closes: an answer that is late waits no longer."""


@dataclass
class RangeServer:
    """The files of a folder, and what was asked for.

    ``fault(n, method, answer)`` may change the answer to request number n, wait, or raise
    ConnectionError to hang up.
    """

    folder: Path
    latency: float = 0.0
    mbps: float = 0.0
    tag: bool = True
    fault: Callable[[int, str, Answer], None] | None = None
    requests: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0
    port: int = 0
    closing: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _busy: threading.Condition = field(default_factory=threading.Condition)
    _answering: int = 0

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"

    def answer(self, method: str, name: str, asked: str | None) -> Answer:
        path = self.folder / os.path.basename(name.partition("?")[0])
        try:
            content, status = path.read_bytes() if self.tag else None, path.stat()
        except FileNotFoundError:
            return Answer(404, {"Content-Length": "0"}, b"")
        size = status.st_size
        headers = {"Accept-Ranges": "bytes"}
        if content is not None:
            headers["ETag"] = f'"{hashlib.md5(content).hexdigest()}"'
        first, last, code = 0, size - 1, 200
        if asked:
            a, b = asked.removeprefix("bytes=").split("-")
            first, last, code = int(a), min(int(b), size - 1) if b else size - 1, 206
            if first >= size:
                return Answer(416, {"Content-Range": f"bytes */{size}"}, b"")
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        headers["Content-Length"] = str(last - first + 1)
        if method == "HEAD":
            return Answer(code, headers, b"")
        if content is not None:
            return Answer(code, headers, content[first : last + 1])
        with open(path, "rb") as file:
            file.seek(first)
            return Answer(code, headers, file.read(last - first + 1))

    def respond(self, handler: BaseHTTPRequestHandler, method: str) -> None:
        with self._busy:
            self._answering += 1
        try:
            self._respond(handler, method)
        finally:
            with self._busy:
                self._answering -= 1
                self._busy.notify_all()

    def finish(self) -> None:
        """Wait until nothing is being answered."""
        with self._busy:
            self._busy.wait_for(lambda: not self._answering, 10)

    def _respond(self, handler: BaseHTTPRequestHandler, method: str) -> None:
        asked = handler.headers.get("Range")
        with self._lock:
            number = len(self.requests)
            self.requests.append((method, asked or ""))
        if number > MOST_REQUESTS:
            handler.send_error(503)
            return
        answer = self.answer(method, handler.path, asked)
        answer.closing = self.closing
        time.sleep(self.latency + (len(answer.body) / self.mbps / 1e6 if self.mbps else 0))
        if self.fault is not None:
            self.fault(number, method, answer)
        handler.send_response(answer.status)
        for key, value in answer.headers.items():
            handler.send_header(key, value)
        if answer.status in (404, 416, 500, 503) and "Content-Length" not in answer.headers:
            handler.send_header("Content-Length", str(len(answer.body)))
        handler.end_headers()
        if method == "GET":
            handler.wfile.write(answer.body)
            with self._lock:
                self.sent += len(answer.body)


def make_server(served: RangeServer) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            """Print nothing."""

        def do_HEAD(self) -> None:
            self._respond("HEAD")

        def do_GET(self) -> None:
            if self.path == "/stats":
                body = json.dumps([len(served.requests), served.sent]).encode()
                served.requests, served.sent = [], 0
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return
            self._respond("GET")

        def _respond(self, method: str) -> None:
            try:
                served.respond(self, method)
            except ConnectionError:
                self.close_connection = True

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        # Who waits for these threads may hold HDF5's lock.
        def serve_forever(self, poll_interval: float = 0.5) -> None:
            enter_transport()
            super().serve_forever(poll_interval)

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            enter_transport()
            super().process_request_thread(request, client_address)

        def handle_error(self, request: Any, address: Any) -> None:
            """Say nothing of clients that hang up."""

    server = Server(("127.0.0.1", 0), Handler)
    served.port = server.server_port
    return server


@contextmanager
def serve(folder: Path, **options: Any) -> Iterator[RangeServer]:
    served = RangeServer(folder, **options)
    server = make_server(served)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.closing.set()
        server.shutdown()
        served.finish()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    folder, latency, mbps = sys.argv[1:]
    program = RangeServer(Path(folder), float(latency), float(mbps), tag=False)
    listening = make_server(program)
    sys.stdout.write(f"{program.port}\n")
    sys.stdout.flush()
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    sys.stdin.read()  # ends with the parent
    os._exit(0)
