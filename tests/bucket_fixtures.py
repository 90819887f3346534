"""A bucket on this machine that speaks S3 and the JSON API of Google Cloud Storage, as far as fsspec's clients ask.

It lists at most three objects a page, keeps account of what it was asked, and breaks where a test wants it to.
"""

from __future__ import annotations

import dataclasses
import email
import email.policy
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 3  # objects
NAME = "shelf"


@dataclasses.dataclass
class Object:
    content: bytes
    generation: int


@dataclasses.dataclass
class Bucket:
    """What lies in it, what it was asked, and how it misbehaves."""

    scheme: str
    objects: dict[str, Object] = dataclasses.field(default_factory=dict)
    asked: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # (get, put, info or list; key)
    cut: set[str] = dataclasses.field(default_factory=set)  # keys of which only half of the body comes
    closed: bool = False  # nobody may read
    read_only: bool = False
    before_body: Callable[[str], None] = lambda key: None
    port: int = 0
    _count: int = 0

    def put(self, key: str, content: bytes) -> None:
        self._count += 1
        self.objects[key] = Object(content, 1000 + self._count)

    def put_folder(self, folder: Path, prefix: str) -> str:
        """Every file of a folder, below `prefix`; returns the URL of that."""
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            self.put(f"{prefix}/{file.relative_to(folder).as_posix()}", file.read_bytes())
        return self.url(prefix)

    def url(self, key: str) -> str:
        return f"{self.scheme}://{NAME}/{key}"

    def fetched(self) -> list[str]:
        """Keys whose bytes were asked for, sorted; the account starts anew."""
        keys = sorted(key for kind, key in self.asked if kind == "get")
        self.asked.clear()
        return keys

    def environment(self) -> dict[str, str]:
        """Variables by which fsspec's clients find it, and no other credentials."""
        here = f"http://127.0.0.1:{self.port}"
        return {
            "NO_PROXY": "127.0.0.1",
            "AWS_ENDPOINT_URL": here,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "STORAGE_EMULATOR_HOST": here,
            "FSSPEC_GS": '{"token": "anon"}',
        }


@contextmanager
def serving(bucket: Bucket) -> Iterator[Bucket]:
    """Serves the bucket at a port of its own."""
    server = _Server(("127.0.0.1", 0), _handler(bucket))
    bucket.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone away is what some tests are about."""


def _handler(bucket: Bucket) -> type[BaseHTTPRequestHandler]:
    api = _S3 if bucket.scheme == "s3" else _Google
    return type("Handler", (api,), {"bucket": bucket})


class _Api(BaseHTTPRequestHandler):
    bucket: Bucket
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"content_length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_object(self, key: str, **headers: str) -> None:
        self.bucket.asked.append(("get", key))
        content = self.bucket.objects[key].content
        self.bucket.before_body(key)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start:
            headers["content_range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        sent = body[: len(body) // 2] if key in self.bucket.cut else body
        self.answer(206 if start else 200, sent, content_length=str(len(body)), **headers)
        self.close_connection = self.close_connection or len(sent) < len(body)

    def page(self, query: dict[str, str], token: str) -> tuple[list[str], list[str], str | None]:
        """Keys, common prefixes and where the next page begins."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        self.bucket.asked.append(("list", prefix))
        keys, prefixes = [], []
        for key in sorted(self.bucket.objects):
            if not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.append(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                keys.append(key)
        start = int(query.get(token) or 0)
        more = str(start + PAGE) if start + PAGE < len(keys) else None
        return keys[start : start + PAGE], sorted(set(prefixes)) if start == 0 else [], more

    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))


class _S3(_Api):
    def do_GET(self) -> None:
        name, _, key = unquote(urlsplit(self.path).path).strip("/").partition("/")
        if self.bucket.closed:
            return self.fault(403, "AccessDenied")
        if name != NAME:
            return self.fault(404, "NoSuchBucket")
        if not key:
            return self.list_objects() if self.command == "GET" else self.answer(200)
        if key not in self.bucket.objects:
            return self.fault(404, "NoSuchKey")
        about = {"ETag": self.etag(key), "Last_Modified": formatdate(1e9, usegmt=True)}
        if self.command == "GET":
            return self.send_object(key, **about)
        self.bucket.asked.append(("info", key))
        return self.answer(200, content_length=str(len(self.bucket.objects[key].content)), **about)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        key = unquote(urlsplit(self.path).path).strip("/").partition("/")[2]
        content = self.body()
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            size, _, rest = content.partition(b"\r\n")
            content = rest[: int(size.split(b";")[0], 16)]
        self.bucket.asked.append(("put", key))
        if self.bucket.read_only:
            return self.fault(403, "AccessDenied")
        self.bucket.put(key, content)
        return self.answer(200, ETag=self.etag(key))

    def etag(self, key: str) -> str:
        return f'"{hashlib.md5(self.bucket.objects[key].content).hexdigest()}"'

    def fault(self, status: int, code: str) -> None:
        self.answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def list_objects(self) -> None:
        keys, prefixes, more = self.page(self.query(), "continuation-token")
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2001-09-09T01:46:40.000Z</LastModified>"
            f"<ETag>{escape(self.etag(key))}</ETag><Size>{len(self.bucket.objects[key].content)}</Size></Contents>"
            for key in keys
        )
        rows += "".join(f"<CommonPrefixes><Prefix>{escape(part)}</Prefix></CommonPrefixes>" for part in prefixes)
        rows += f"<NextContinuationToken>{more}</NextContinuationToken>" if more else ""
        rows += f"<IsTruncated>{str(bool(more)).lower()}</IsTruncated><KeyCount>{len(keys)}</KeyCount>"
        self.answer(200, f"<ListBucketResult><Name>{NAME}</Name>{rows}</ListBucketResult>".encode())


class _Google(_Api):
    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        name, _, rest = path.partition("/storage/v1/b/")[2].partition("/")
        if self.bucket.closed:
            return self.json(403, {"error": {"code": 403, "message": "no storage.objects.list access"}})
        if name != NAME:
            return self.json(404, {"error": {"code": 404, "message": "no such bucket"}})
        if not rest:
            return self.json(200, {"kind": "storage#bucket", "name": NAME})
        key = unquote(rest.partition("/")[2])
        if not key:
            keys, prefixes, more = self.page(self.query(), "pageToken")
            found = {"kind": "storage#objects", "items": [self.about(key) for key in keys], "prefixes": prefixes}
            return self.json(200, found | ({"nextPageToken": more} if more else {}))
        if key not in self.bucket.objects:
            return self.json(404, {"error": {"code": 404, "message": "no such object"}})
        if path.startswith("/download"):
            return self.send_object(key)
        self.bucket.asked.append(("info", key))
        return self.json(200, self.about(key))

    def do_POST(self) -> None:
        kind = self.headers["Content-Type"]
        whole = email.message_from_bytes(
            f"Content-Type: {kind}\r\n\r\n".encode() + self.body(), policy=email.policy.HTTP
        )
        about, content = (part.get_payload(decode=True) for part in whole.iter_parts())
        key = json.loads(about)["name"]
        self.bucket.asked.append(("put", key))
        if self.bucket.read_only:
            return self.json(403, {"error": {"code": 403, "message": "no storage.objects.create access"}})
        self.bucket.put(key, content)
        return self.json(200, self.about(key))

    def about(self, key: str) -> dict[str, str]:
        held = self.bucket.objects[key]
        about = {"kind": "storage#object", "name": key, "bucket": NAME, "size": str(len(held.content))}
        return about | {"generation": str(held.generation), "updated": "2001-09-09T01:46:40.000000Z"}

    def json(self, status: int, content: dict) -> None:
        self.answer(status, json.dumps(content).encode(), content_type="application/json")
