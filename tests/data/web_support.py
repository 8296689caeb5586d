"""A real web server for tests of the crawler: pages by path, a log of every request, and what goes wrong on purpose."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, dict[str, str], bytes]
Page = str | bytes | Answer | Callable[[BaseHTTPRequestHandler], Answer | str | None]


@dataclass
class Site:
    """Pages by path (query included), else by the longest prefix that ends with `*`; what is not there is a 404."""

    pages: dict[str, Page] = field(default_factory=dict)
    requests: list[tuple[float, str]] = field(default_factory=list)
    """(monotonic time, path) of each request."""
    headers: list[dict[str, str]] = field(default_factory=list)
    address: str = ""
    open_now: int = 0
    """Requests whose answers are not ready yet."""
    most_open: int = 0

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def paths(self) -> list[str]:
        """What was asked for, but for robots.txt and the guessed sitemap."""
        return [path for _, path in self.requests if path not in ("/robots.txt", "/sitemap.xml")]

    def find(self, path: str) -> Page:
        if path in self.pages:
            return self.pages[path]
        prefixes = [key for key in self.pages if key.endswith("*") and path.startswith(key[:-1])]
        return self.pages[max(prefixes, key=len)] if prefixes else (404, {}, b"not here")


@contextmanager
def served(pages: dict[str, Page], host: str = "127.0.0.1", port: int = 0) -> Iterator[Site]:
    """A site on a loopback address."""
    site = Site(pages)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with lock:
                site.requests.append((time.monotonic(), self.path))
                site.headers.append(dict(self.headers))
                site.open_now += 1
                site.most_open = max(site.most_open, site.open_now)
            try:
                answer = self.find_answer()
                if answer is None:
                    self.close_connection = True
                    return
                if isinstance(answer, str | bytes):
                    body = answer.encode() if isinstance(answer, str) else answer
                    answer = (200, {"Content-Type": "text/html; charset=utf-8"}, body)
                status, headers, body = answer
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                self.close_connection = True

        def find_answer(self) -> Answer | str | bytes | None:
            try:
                page = site.find(self.path)
                return page(self) if callable(page) else page
            finally:
                # Before the client has the answer, and may ask for the next page.
                with lock:
                    site.open_now -= 1

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    site.address = f"{host}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
