"""A gateway that says who it takes a request to be from, for want of anything better. Run inside a booted machine.

python gateway_behind.py PORT HEADER
"""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HEADER = sys.argv[2]


class Handler(BaseHTTPRequestHandler):
    """Answers with the value of the identity header."""

    def do_GET(self) -> None:
        """Answer any path."""
        body = self.headers.get(HEADER, "nobody").encode()
        self.send_response(200 if body != b"nobody" else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
