"""One file over HTTP, resumed by byte ranges: `NAME.partial` grows until it is whole and its checksum is right.

From a bucket it comes as `hisam_jax.remote` brings it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import time
from pathlib import Path

import requests
import urllib3

from hisam_jax.data.public_sets import RemoteFile
from hisam_jax.errors import UserError
from hisam_jax.files import atomic_write, full_disk_is_a_user_error
from hisam_jax.paths import scheme_of
from hisam_jax.progress import progress_bar
from hisam_jax.remote import local

BLOCK = 1 << 18  # bytes
PASSING = {408, 425, 429, 500, 502, 503, 504}


@dataclasses.dataclass(frozen=True)
class Client:
    """How patient a download is.

    Attributes:
        attempts: tries in a row that bring nothing before it gives up.
        pause_s: seconds before the second try, doubled for each one more, at most 60.
        timeout_s: seconds to connect, and between two pieces of data.
    """

    attempts: int = 5
    pause_s: float = 1.0
    timeout_s: float = 30.0


@dataclasses.dataclass(frozen=True)
class _Version:
    """Which version of the remote file a partial one belongs to."""

    url: str
    etag: str | None
    modified: str | None
    length: int | None

    @property
    def validator(self) -> str | None:
        strong = self.etag if self.etag and not self.etag.startswith("W/") else None
        return strong or self.modified


class _Broken(Exception):
    """A fault that may pass: worth another try."""


def fetch(remote: RemoteFile, folder: Path, client: Client) -> Path:
    """`folder/NAME`, whole and checked; a broken transfer goes on where it stopped, unless the remote file changed.

    Raises:
        UserError: the server refuses the file, gives up, or what came is not what was published.
    """
    final = folder / remote.name
    if final.exists():
        return final
    partial = folder / f"{remote.name}.partial"
    if scheme_of(remote.url) not in ("http", "https"):
        return _copy(remote, partial, final)
    with requests.Session() as session, full_disk_is_a_user_error(folder):
        resumed = partial.exists()
        _transfer(session, remote.url, partial, client)
        checksum = remote.checksum or _published(session, remote, client)
        if resumed and checksum and _digest(partial, checksum) != checksum:
            partial.unlink()  # what lay there may have been spoilt: once more from the start
            _transfer(session, remote.url, partial, client)
        if checksum and (found := _digest(partial, checksum)) != checksum:
            _forget(partial)
            raise UserError(f"wrong checksum {found} of {remote.url}", path=final, expected=checksum)
    partial.rename(final)
    _state(partial).unlink(missing_ok=True)
    return final


def _copy(remote: RemoteFile, partial: Path, final: Path) -> Path:
    source, checksum = local(remote.url, "mirror"), remote.checksum
    if checksum is None and remote.checksum_url is not None:
        published = local(remote.checksum_url, "mirror")
        checksum = _md5_in(published.read_text(errors="replace"))
        if checksum is None:
            raise UserError("no checksum", path=remote.checksum_url, field="mirror", expected="an MD5")
    if checksum and (found := _digest(source, checksum)) != checksum:
        raise UserError(f"wrong checksum {found} of {remote.url}", path=final, expected=checksum)
    with full_disk_is_a_user_error(final.parent):
        shutil.copyfile(source, partial)
    partial.rename(final)
    return final


def _transfer(session: requests.Session, url: str, partial: Path, client: Client) -> None:
    """Tries until `partial` is whole; only tries that bring nothing count against the client's patience."""
    fruitless = 0
    while True:
        before = _size(partial)
        try:
            return _continue(session, url, partial, client)
        except (requests.RequestException, urllib3.exceptions.HTTPError, _Broken) as error:
            fruitless = fruitless + 1 if _size(partial) <= before else 1
            if fruitless >= client.attempts:
                hint = "run the same command again to go on from there"
                problem = f"{url} broke off after {_size(partial)} bytes: {error}"
                raise UserError(problem, path=partial, expected="a server that answers", hint=hint) from error
        time.sleep(min(60.0, client.pause_s * 2 ** (fruitless - 1)))


def _continue(session: requests.Session, url: str, partial: Path, client: Client) -> None:
    known, have = _load(partial, url), _size(partial)
    headers = {"Accept-Encoding": "identity"}
    if known is not None and known.validator and have:
        headers |= {"Range": f"bytes={have}-", "If-Range": known.validator}
    with session.get(url, headers=headers, stream=True, timeout=client.timeout_s) as response:
        if response.status_code == 416 and known is not None and have == known.length:
            return  # every byte is here already
        if response.status_code == 416:
            _forget(partial)
            raise _Broken("the part that is here does not fit the remote file")
        _check_status(response, url)
        start = _start(response, have, known)
        version = _version(response, url, start)
        if start == 0:
            partial.write_bytes(b"")  # before its new version is noted: never old bytes under a new name
            atomic_write(_state(partial), json.dumps(dataclasses.asdict(version)))
        _receive(response, partial, start, version.length)
    if version.length is not None and _size(partial) != version.length:
        raise _Broken(f"{_size(partial)} of {version.length} bytes came")


def _check_status(response: requests.Response, url: str) -> None:
    if response.status_code in PASSING:
        raise _Broken(f"HTTP {response.status_code}")
    if response.status_code not in (200, 206):
        raise UserError(f"HTTP {response.status_code} {response.reason} for {url}", field="url", expected="HTTP 200")


def _start(response: requests.Response, have: int, known: _Version | None) -> int:
    """The byte that the body begins with: `have` when the server goes on, 0 when it begins anew."""
    if response.status_code == 200:
        return 0
    span = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    etag = response.headers.get("ETag")
    if span is None or int(span[1]) != have or (etag and known and known.etag and etag != known.etag):
        raise _Broken("the server went on from another place or another version")
    return have


def _version(response: requests.Response, url: str, start: int) -> _Version:
    length = response.headers.get("Content-Length")
    total = start + int(length) if length is not None else None
    return _Version(url, response.headers.get("ETag"), response.headers.get("Last-Modified"), total)


def _receive(response: requests.Response, partial: Path, start: int, total: int | None) -> None:
    description = partial.name.removesuffix(".partial")
    with open(partial, "ab") as sink, progress_bar(total, description, unit="B") as bar:
        bar.update(start)
        # As it comes: `iter_content` drops what came of a block when the line breaks inside it.
        while block := response.raw.read1(BLOCK):
            sink.write(block)
            bar.update(len(block))


def _published(session: requests.Session, remote: RemoteFile, client: Client) -> str | None:
    """The MD5 beside the file, in either usual form: `MD5 (f) = HEX` or `HEX  f`."""
    if remote.checksum_url is None:
        return None
    try:
        response = session.get(remote.checksum_url, timeout=client.timeout_s)
    except requests.RequestException as error:
        problem = f"no answer from {remote.checksum_url}: {error}"
        raise UserError(problem, field="url", expected="its checksum") from error
    found = _md5_in(response.text) if response.ok else None
    if found is None:
        problem = f"no checksum at {remote.checksum_url} (HTTP {response.status_code})"
        raise UserError(problem, field="url", expected="an MD5")
    return found


def _md5_in(text: str) -> str | None:
    found = re.search(r"\b[0-9a-fA-F]{32}\b", text)
    return f"md5:{found[0].lower()}" if found else None


def _digest(path: Path, like: str) -> str:
    kind = like.split(":")[0]
    with open(path, "rb") as stream:
        return f"{kind}:{hashlib.file_digest(stream, kind).hexdigest()}"


def _state(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _load(partial: Path, url: str) -> _Version | None:
    try:
        version = _Version(**json.loads(_state(partial).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return version if version.url == url else None


def _forget(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _state(partial).unlink(missing_ok=True)
