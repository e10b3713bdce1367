"""A web server of this machine that resumes, cuts connections and changes its files as it is told."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Files:
    """content: path -> bytes. cuts: bytes to send before the connection is cut, one for each answer to come.
    failures: statuses to answer with first. resumes: whether ranges are honoured. misplaced: bytes that
    an answer to a range begins too late. requests: (path, Range) of each request."""

    def __init__(self, content: dict[str, bytes]) -> None:
        self.content = content
        self.cuts: list[int] = []
        self.failures: list[int] = []
        self.resumes, self.tagged = True, True
        self.misplaced = 0
        self.tag: str | None = None  # one for all files, as some servers have
        self.kind = "application/octet-stream"
        self.requests: list[tuple[str, str | None]] = []
        self.address = ""

    def url(self, path: str) -> str:
        """The address of a file."""
        return f"{self.address}/{path}"


def handler(files: Files) -> type[BaseHTTPRequestHandler]:
    """What answers the requests."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            path, asked = self.path.lstrip("/"), self.headers.get("Range")
            files.requests.append((path, asked))
            if files.failures:
                self.send_error(files.failures.pop(0))
                return
            if path not in files.content:
                self.send_error(404)
                return
            body = files.content[path]
            tag = files.tag or f'"{hash(body)}"'
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and files.resumes and self.headers.get("If-Range") == tag else 0
            if start and start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            start += files.misplaced if start else 0
            self.send_header("Content-Type", files.kind)
            self.send_header("Content-Length", str(len(body) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            if files.tagged:
                self.send_header("ETag", tag)
            self.end_headers()
            cut = files.cuts.pop(0) if files.cuts else len(body)
            self.wfile.write(body[start:][:cut])
            self.close_connection = True

    return Handler


@contextmanager
def serving(content: dict[str, bytes]) -> Iterator[Files]:
    """The server, while the block runs."""
    files = Files(content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(files))
    files.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
