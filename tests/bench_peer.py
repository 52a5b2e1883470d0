"""A server that stands for a peer: `python bench_peer.py PORT HOW`, standard library and numpy only.

It doubles an `.npy` array. HOW: `good`; `wrong` (triples it); `ends`; `silent` (never ready); `fails` (500 to
inference); `hangs_up` (after every answer, without saying so).
"""

import io
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

PORT, HOW = int(sys.argv[1]), sys.argv[2]


class Handler(BaseHTTPRequestHandler):
    """GET /ready, POST /infer, POST /unload."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the head and the body of an answer wait for each other

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        # A name that ends alike must not be taken for the length, which follows.
        self.send_header("Inference-Header-Content-Length", "99999")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """Whether it is ready."""
        self._answer(503 if HOW == "silent" else 200, b"ready")

    def do_POST(self) -> None:
        """Doubles the array."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/unload":
            self._answer(200, b"")
            return
        sink = io.BytesIO()
        np.save(sink, np.load(io.BytesIO(body)) * np.float32(3 if HOW == "wrong" else 2))
        self._answer(500 if HOW == "fails" else 200, sink.getvalue())
        self.close_connection = HOW == "hangs_up"

    def log_message(self, *_: object) -> None:
        """Says nothing."""


if HOW == "ends":
    print("no such backend", file=sys.stderr)
    sys.exit(3)
ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
