"""A web server of one folder, which answers to ranges, and slowly where it is asked to."""

import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PIECE = 64 << 10


class FileServer:
    def __init__(self, folder: Path):
        self.folder = folder
        # Seconds between pieces, and from which byte on each request got its answer.
        self.pace = 0.0
        self.asked: list[tuple[str, int]] = []
        files = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                files.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{name}"

    def answer(self, request) -> None:
        file = self.folder / os.path.basename(request.path.partition("?")[0])
        if not file.is_file():
            request.send_error(404)
            return
        size = file.stat().st_size
        tag = f'"{file.stat().st_mtime_ns}-{size}"'
        start = 0
        wanted = request.headers.get("Range", "")
        if wanted.startswith("bytes=") and request.headers.get("If-Range", tag) == tag:
            start = int(wanted[len("bytes=") :].split("-")[0])
        self.asked.append((file.name, start))
        if start >= size > 0:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{size}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206 if start else 200)
        request.send_header("ETag", tag)
        request.send_header("Content-Length", str(size - start))
        if start:
            request.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        request.end_headers()
        try:
            with file.open("rb") as content:
                content.seek(start)
                while piece := content.read(PIECE):
                    request.wfile.write(piece)
                    time.sleep(self.pace)
        except (BrokenPipeError, ConnectionResetError):
            request.close_connection = True

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
