"""A web server on this machine that behaves as badly as real ones."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = bytes(range(256)) * 4000  # a megabyte: several chunks


class Server(ThreadingHTTPServer):
    """Serves ``content``; the n-th request is treated as the n-th of ``acts`` says, later ones well."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.acts, self.asked, self.released = CONTENT, True, [], [], threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}/test.json"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_):
        pass

    def do_GET(self):
        served, body = self.server, self.server.content
        act = served.acts.pop(0) if served.acts else "well"
        asked = self.headers.get("Range")
        served.asked.append(asked)
        if isinstance(act, int) and act >= 400:
            self.send_error(act)
            return
        begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and served.ranges else 0
        if begin and begin >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        if begin:
            shift = 7 if act == "shifted" else 0
            self.send_header("Content-Range", f"bytes {begin + shift}-{len(body) - 1}/{len(body)}")
        if act != "unannounced":
            self.send_header("Content-Length", str(len(body) - begin))
        self.end_headers()
        if act in ("stall", "silent"):
            self.wfile.write(body[begin : begin + 1000] if act == "stall" else b"")
            self.wfile.flush()
            served.released.wait(10)
        elif act == "trickle":
            while not served.released.wait(0.02) and begin < len(body):
                self.wfile.write(body[begin : begin + 10])
                begin += 10
        elif isinstance(act, tuple):  # cut after so many bytes
            self.wfile.write(body[begin : begin + act[0]])
        else:
            self.wfile.write(body[begin:])


@contextmanager
def bad_server() -> Iterator[Server]:
    """A running server, stopped at the end."""
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.released.set()
        running.shutdown()
