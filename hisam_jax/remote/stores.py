"""Buckets through fsspec: opened with a patience that ends, listed, read and written; every failure is one line."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.callbacks import Callback

from hisam_jax.errors import UserError
from hisam_jax.files import full_disk_is_a_user_error

CONNECT_S, SILENCE_S, ANSWER_S = 5.0, 10.0, 60.0  # to connect, between two pieces of data, for the first answer
_TAGS = ("generation", "ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "created")
_CREDENTIALS = {
    "gs": "gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS",
    "s3": """AWS_PROFILE or AWS_ACCESS_KEY_ID; for a public bucket FSSPEC_S3='{"anon": true}'""",
}
_ALIASES = {"gcs": "gs", "s3a": "s3"}


class Stopped(Exception):
    """A transfer was given up because another one failed, or by the user."""


class _Stopping(Callback):
    """What fsspec calls between two pieces of a transfer."""

    def __init__(self, stop: threading.Event):
        super().__init__()
        self._stop = stop

    def call(self, hook_name: str | None = None, **values: Any) -> None:
        if self._stop.is_set():
            raise Stopped


@dataclasses.dataclass(frozen=True)
class Entry:
    """An object: where it lies in its store, bytes, and a tag that is another when its content is, None if unknown."""

    path: str
    size: int
    tag: str | None


@dataclasses.dataclass(frozen=True)
class Store:
    """A file or a folder behind a URL."""

    url: str
    field: str | None
    filesystem: Any
    path: str

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.path.rsplit("/", 1)[-1]

    def entries(self) -> dict[str, Entry]:
        """Every object at or below the URL, by its path relative to the URL's parent.

        Raises:
            UserError: nothing is there, it cannot be read, or an object's name is no path of a file.
        """
        with self._one_line():
            found = self._info(self.path)
            if found["type"] == "file":
                return {self.name: _entry(found)}
            found = self.filesystem.find(self.path, detail=True)
        files = {name: info for name, info in found.items() if info["type"] == "file" and not name.endswith("/")}
        if not files:
            raise _nothing(self.url, self.field)
        return {self._relative(name): _entry(info) for name, info in files.items()}

    def beside(self, name: str) -> Entry | None:
        """The object called `name` in the folder that the URL lies in."""
        with self._one_line():
            try:
                return _entry(self._info(f"{self.path.rpartition('/')[0]}/{name}"))
            except FileNotFoundError:
                return None

    def fetch(self, entry: Entry, target: Path, stop: threading.Event) -> None:
        """The object's bytes into the file `target`; ends with `Stopped` soon after the event `stop` is set.

        Raises:
            UserError: it cannot be read, is not as long as it was listed, or the disk is full.
        """
        with self._one_line(), full_disk_is_a_user_error(target.parent):
            # Else gcsfs makes a file as long as it will be before its bytes come.
            streams = {"concurrency": 1} if "gs" in self.filesystem.protocol else {}
            self.filesystem.get_file(entry.path, str(target), callback=_Stopping(stop), **streams)
        size = target.stat().st_size
        if size != entry.size:
            problem = (
                f"{size} bytes of {entry.path} came: it was cut short, changed while it was read, or is kept compressed"
            )
            raise UserError(problem, path=self.url, field=self.field, expected=f"{entry.size} bytes", hint="try again")

    def put(self, name: str, content: bytes) -> str:
        """Writes an object below the URL, which appears when it is whole; returns its URL."""
        with self._one_line():
            self.filesystem.pipe_file(f"{self.path}/{name}", content)
        return f"{self.url.rstrip('/')}/{name}"

    def _info(self, path: str) -> Mapping[str, Any]:
        if isinstance(self.filesystem, AsyncFileSystem):
            return sync(self.filesystem.loop, self.filesystem._info, path, timeout=ANSWER_S)
        return self.filesystem.info(path)

    def _relative(self, path: str) -> str:
        rest = path.removeprefix(f"{self.path}/")
        if any(part in ("", ".", "..") for part in rest.split("/")) or "\0" in rest:
            expected = "names that a folder can hold"
            raise UserError(f"object {path!r}", path=self.url, field=self.field, expected=expected)
        return f"{self.name}/{rest}"

    def _one_line(self) -> contextlib.AbstractContextManager[None]:
        return _one_line(self.url, self.field)


def open_store(url: str, field: str | None = None) -> Store:
    """The store behind `url`, nothing of it read yet, with the credentials and settings that fsspec finds.

    Raises:
        UserError: a protocol that is unknown or whose library is not installed, no bucket, no usable credentials.
    """
    protocol = url.split("://")[0].lower()
    if protocol in ("http", "https"):
        raise UserError(
            f"{url}: no folder can be listed over {protocol}", field=field, expected="a local path, gs:// or s3://"
        )
    if protocol not in fsspec.available_protocols():
        expected = "a local path, gs://, s3:// or another protocol that fsspec knows"
        raise UserError(f"unknown protocol {protocol}:// of {url}", field=field, expected=expected)
    if not url.split("://", 1)[1].strip("/"):
        raise UserError(f"{url} names no bucket", field=field, expected=f"{protocol}://BUCKET/FOLDER")
    kind = _ALIASES.get(protocol, protocol)
    with _one_line(url, field):
        try:
            options = {"skip_instance_cache": True, "use_listings_cache": False, **_options(kind)}
            filesystem = _client(kind)(**options | fsspec.config.conf.get(kind, {}))
            if kind == "s3":
                filesystem.retries = 2  # rounds of three attempts each
            path = filesystem._strip_protocol(url)
        except ImportError as error:
            expected = "pip install 'hisam_jax[remote]'" if kind in _CREDENTIALS else str(error)
            raise UserError(f"{protocol}:// needs a library ({error})", field=field, expected=expected) from error
    return Store(url, field, filesystem, path.rstrip("/"))


def _client(kind: str) -> type[fsspec.AbstractFileSystem]:
    if kind != "gs":
        return fsspec.get_filesystem_class(kind)
    from gcsfs.core import GCSFileSystem  # the one that is registered asks a second service about each bucket first

    return GCSFileSystem


def _options(kind: str) -> dict[str, Any]:
    """Time limits, in the words of each library, and no tracebacks of theirs on the user's screen."""
    for name in ("gcsfs", "s3fs", "fsspec", "google", "aiobotocore", "botocore", "asyncio"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    if kind == "s3":
        limits = {"connect_timeout": CONNECT_S, "read_timeout": SILENCE_S}
        # One stream an object: parts of many megabytes each, of several objects at once, fill the memory.
        return {"config_kwargs": limits | {"retries": {"total_max_attempts": 3}}, "max_concurrency": 1}
    if kind == "gs":
        import aiohttp

        return {"requests_timeout": aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)}
    return {}


def _entry(info: Mapping[str, Any]) -> Entry:
    tags = (f"{key}={info[key]}" for key in _TAGS if info.get(key))
    return Entry(info["name"], int(info["size"]), next(tags, None))


@contextlib.contextmanager
def _one_line(url: str, field: str | None) -> Iterator[None]:
    try:
        yield
    except (UserError, Stopped):
        raise
    except Exception as error:  # gcsfs, s3fs and what they stand on raise dozens of types, others at every release
        raise _explained(error, url, field) from error


def _explained(error: Exception, url: str, field: str | None) -> UserError:
    kind = type(error).__name__
    said = f"{kind}: {error}" if str(error) else kind
    protocol = url.split("://")[0].lower()
    if isinstance(error, FileNotFoundError):
        return _nothing(url, field)
    refused = isinstance(error, PermissionError) or str(error).startswith("Forbidden")
    if refused or getattr(error, "code", None) in (401, 403) or re.search("Credential|Refresh|Token", kind):
        hint = _CREDENTIALS.get(_ALIASES.get(protocol, protocol))
        return UserError(
            f"no permission ({said})", path=url, field=field, expected="credentials with access", hint=hint
        )
    if isinstance(error, (ConnectionError, TimeoutError)) or re.search("Connect|Timeout|Payload", kind):
        expected, hint = "a server that answers", "check the network, and try again"
        return UserError(f"no whole answer ({said})", path=url, field=field, expected=expected, hint=hint)
    return UserError(f"failed ({said})", path=url, field=field)


def _nothing(url: str, field: str | None) -> UserError:
    return UserError("nothing is there", path=url, field=field, expected="an object, or a prefix with objects below it")
