"""A server of whole files on this host that answers requests for ranges, and breaks connections on request."""

import http.server
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class FileServer:
    """Files by their path.

    Attributes:
        address: of the server.
        ranges: the `Range` of each request, empty for none.
        cuts: bytes after which the connection is cut, one for each of the next requests.
        status: answer of the next requests, instead of the file.
        takes_ranges: whether a request for a range gets it.
    """

    files: Mapping[str, bytes]
    address: str = ""
    ranges: list[str] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    takes_ranges: bool = True


@contextmanager
def file_server(files: Mapping[str, bytes]) -> Iterator[FileServer]:
    """Serves files."""
    state = FileServer(files)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            data = state.files.get(self.path.lstrip("/"))
            asked = self.headers.get("Range", "")
            state.ranges.append(asked)
            if state.status or data is None:
                self.send_error(state.status.pop(0) if state.status else 404)
                return
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", data.decode())
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.takes_ranges else 0
            if asked and first >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = data[first:]
            self.send_response(206 if asked and state.takes_ranges else 200)
            if asked and state.takes_ranges:
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if state.cuts:
                self.wfile.write(body[: state.cuts.pop(0)])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
            else:
                self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda request, client_address: None  # cut connections are wanted
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
