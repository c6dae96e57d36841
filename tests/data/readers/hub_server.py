"""A Hub of data sets on this host: what `datasets` asks of it to stream the files of one data set."""

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

REVISION = "a" * 40


@contextmanager
def hub_server(files: Mapping[str, bytes]) -> Iterator[str]:
    """Serves a data set of any name with these files; gives the address for `HF_ENDPOINT`. A commit replaces `files`, if a dict."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(has_body=self.command == "GET")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._json(_posted(self.path, body, files, self.headers["Host"]), True)

        def _answer(self, has_body: bool) -> None:
            path, _, query = self.path.partition("?")
            if "/tree/" in path:
                folder = path.partition("/tree/")[2].partition("/")[2]
                self._json(_tree(files, folder, "recursive=true" in query.lower()), has_body)
            elif path.startswith("/api/datasets/"):
                self._json({"id": "user/set", "sha": REVISION, "siblings": [{"rfilename": name} for name in files]}, has_body)
            elif (name := path.partition("/resolve/")[2].partition("/")[2]) in files:
                self._file(files[name], has_body)
            else:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, has_body)

        def _json(self, value: object, has_body: bool) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, has_body)

        def _file(self, data: bytes, has_body: bool) -> None:
            head = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
            if (asked := self.headers.get("Range")) is None:
                self._send(200, data, head, has_body)
                return
            first, _, last = asked.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1 if last else None]
            place = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            self._send(206, part, {**head, "Content-Range": place}, has_body)

        def _send(self, code: int, body: bytes, head: Mapping[str, str], has_body: bool) -> None:
            self.send_response(code)
            for key, value in {**head, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if has_body:
                self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _tree(files: Mapping[str, bytes], folder: str, is_recursive: bool) -> list[dict[str, object]]:
    """The files below a folder, and its folders, as the Hub lists them."""
    prefix = f"{folder}/" if folder else ""
    below = {name: data for name, data in files.items() if name.startswith(prefix)}
    folders = {
        prefix + "/".join(name[len(prefix) :].split("/")[:depth]) for name in below for depth in range(1, name.count("/") + 1)
    }
    entries: list[dict[str, object]] = [
        {"type": "directory", "path": name, "size": 0, "oid": "b" * 40} for name in sorted(folders - set(files) - {prefix})
    ]
    entries += [
        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()} for name, data in below.items()
    ]
    return [entry for entry in entries if is_recursive or "/" not in str(entry["path"])[len(prefix) :]]


def _posted(path: str, body: bytes, files: Mapping[str, bytes], host: str) -> object:
    """Answers what `create_repo` and `upload_folder` ask."""
    if path == "/api/repos/create":
        return {"url": f"http://{host}/datasets/{json.loads(body)['organization']}/{json.loads(body)['name']}"}
    if path == "/api/validate-yaml":
        return {"errors": [], "warnings": []}
    if "/preupload/" in path:
        names = [file["path"] for file in json.loads(body)["files"]]
        return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
    if "/commit/" in path and isinstance(files, dict):
        lines = [json.loads(line) for line in body.splitlines()]
        found = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
        files.update({name: base64.b64decode(content) for name, content in found.items()})
        return {"commitUrl": f"http://{host}/datasets/me/set/commit/{REVISION}", "commitOid": REVISION, "pullRequestUrl": None}
    return None
