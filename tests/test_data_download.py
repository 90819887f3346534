"""Downloads against a server on this machine that breaks off, changes, lies and refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hisam_jax.data import download as download_module
from hisam_jax.data.download import download, unpack
from hisam_jax.data.fetch import Client
from hisam_jax.data.public_sets import PUBLIC_SETS, PublicSet, RemoteFile
from hisam_jax.data.readers import READERS, read
from hisam_jax.errors import UserError

QUICK = Client(attempts=3, pause_s=0.01, timeout_s=5.0)
SIZE = 300_000


@dataclasses.dataclass
class Site:
    """What the server gives, how it misbehaves, and what it was asked."""

    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    ranges: bool = True
    validators: bool = True
    chunked: bool = False  # no Content-Length: only the last chunk tells a whole body
    stop_after: list[int] = dataclasses.field(default_factory=list)  # bytes of each next body before it hangs up
    statuses: list[int] = dataclasses.field(default_factory=list)  # answered first, in turn
    asked: list[tuple[str, str | None]] = dataclasses.field(default_factory=list)  # (name, Range)
    sent: int = 0
    url: str = ""


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        protocol_version = "HTTP/1.1" if site.chunked else "HTTP/1.0"

        def do_GET(self) -> None:
            name, span = self.path.rsplit("/", 1)[-1], self.headers.get("Range")
            site.asked.append((name, span))
            if site.statuses:
                return self.send_error(site.statuses.pop(0))
            if name not in site.files:
                return self.send_error(404)
            body = site.files[name]
            etag = f'"{hashlib.md5(body).hexdigest()}"'
            fresh = self.headers.get("If-Range") in (None, etag)
            start = int(span.removeprefix("bytes=").removesuffix("-")) if span and site.ranges and fresh else 0
            if start >= len(body):
                return self.send_error(416)
            self.send_response(206 if start else 200)
            if not site.chunked:
                self.send_header("Content-Length", str(len(body) - start))
            else:
                self.send_header("Transfer-Encoding", "chunked")
                self.send_header("Connection", "close")
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            if site.validators:
                self.send_header("ETag", etag)
            self.end_headers()
            piece = body[start : start + (site.stop_after.pop(0) if site.stop_after else len(body))]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if site.chunked else piece)
            if site.chunked and start + len(piece) == len(body):
                self.wfile.write(b"0\r\n\r\n")
            site.sent += len(piece)

    return Handler


@pytest.fixture(params=[False])
def site(request, monkeypatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = Site(chunked=request.param)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(made))
    made.url = f"http://127.0.0.1:{server.server_port}/mirror/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


def register(monkeypatch, *files: RemoteFile) -> None:
    entry = PublicSet("toy", files, "movielens", "free")
    monkeypatch.setattr(download_module, "PUBLIC_SETS", {"toy": entry})


def noise(size: int = SIZE, seed: int = 0) -> bytes:
    return b"".join(hashlib.sha256(f"{seed}/{place}".encode()).digest() for place in range(size // 32))


def md5(data: bytes) -> str:
    return f"md5:{hashlib.md5(data).hexdigest()}"


def archive(**members: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, text in members.items():
            bundle.writestr(name, text)
    return stream.getvalue()


def get(site: Site, out: Path, client: Client = QUICK) -> Path:
    return download("toy", out, mirror=site.url, client=client)


def leftovers(out: Path) -> set[str]:
    return {path.name for path in out.parent.rglob("*") if path.is_file()}


def test_an_archive_is_unpacked_without_its_folder_and_can_be_read(site, monkeypatch, tmp_path):
    movies = {
        "ml/ratings.csv": "userId,movieId,rating,timestamp\n1,2,3,4\n",
        "ml/movies.csv": "movieId,title,genres\n2,A,B\n",
    }
    site.files["ml.zip"] = archive(**movies)
    register(monkeypatch, RemoteFile("https://example.org/sets/ml.zip", md5(site.files["ml.zip"])))
    out = get(site, tmp_path / "deep" / "ml")
    assert sorted(path.name for path in out.iterdir()) == ["SOURCE.json", "movies.csv", "ratings.csv"]
    assert json.loads((out / "SOURCE.json").read_text())["urls"] == [site.url + "ml.zip"]
    assert read("movielens", out).interactions.collect()["user"].to_list() == ["1"]
    assert [path.name for path in out.parent.iterdir()] == ["ml"]
    assert get(site, out) == out and len(site.asked) == 1  # there already


@pytest.mark.parametrize("site", [False, True], indirect=True, ids=["sized", "chunked"])
def test_a_broken_transfer_goes_on_where_it_stopped(site, monkeypatch, tmp_path):
    data = site.files["a.gz"] = noise()
    site.stop_after = [100_000, 50_000]
    register(monkeypatch, RemoteFile("https://example.org/a.gz", md5(data)))
    out = get(site, tmp_path / "toy")
    assert site.asked == [("a.gz", None), ("a.gz", "bytes=100000-"), ("a.gz", "bytes=150000-")]
    assert site.sent == SIZE and (out / "a.gz").read_bytes() == data


def test_a_killed_command_goes_on_in_the_next_one(site, monkeypatch, tmp_path):
    data = site.files["a.gz"] = noise()
    other = site.files["b.gz"] = noise(3200, seed=1)
    register(monkeypatch, RemoteFile("https://example.org/b.gz"), RemoteFile("https://example.org/a.gz"))
    site.stop_after = [len(other), 70_000]
    with pytest.raises(UserError, match=r"broke off after 70000 bytes.*same command again"):
        get(site, tmp_path / "toy", Client(attempts=1, pause_s=0.01))
    assert not (tmp_path / "toy").exists() and "a.gz.partial" in leftovers(tmp_path / "toy")
    site.asked.clear()
    out = get(site, tmp_path / "toy")
    assert site.asked == [("a.gz", "bytes=70000-")]
    assert (out / "a.gz").read_bytes() == data and (out / "b.gz").read_bytes() == other
    assert leftovers(out) == {"a.gz", "b.gz", "SOURCE.json"}


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_changed_in_between_is_fetched_from_its_start(site, monkeypatch, tmp_path, ranges):
    site.files["a.gz"], site.stop_after, site.ranges = noise(seed=1), [90_000], ranges
    register(monkeypatch, RemoteFile("https://example.org/a.gz"))
    with pytest.raises(UserError):
        get(site, tmp_path / "toy", Client(attempts=1))
    data = site.files["a.gz"] = noise(seed=2)
    assert (get(site, tmp_path / "toy") / "a.gz").read_bytes() == data


def test_nothing_is_resumed_that_cannot_be_told_apart(site, monkeypatch, tmp_path):
    data, site.validators, site.stop_after = noise(), False, [90_000]
    site.files["a.gz"] = data
    register(monkeypatch, RemoteFile("https://example.org/a.gz"))
    assert (get(site, tmp_path / "toy") / "a.gz").read_bytes() == data
    assert site.asked == [("a.gz", None)] * 2


def test_a_transfer_killed_between_its_last_byte_and_its_end(site, monkeypatch, tmp_path):
    data = site.files["a.gz"] = noise()
    register(monkeypatch, RemoteFile("https://example.org/a.gz", "md5:" + "0" * 32))
    cache = tmp_path / ".toy.download"
    cache.mkdir()
    (cache / "a.gz.partial").write_bytes(data)
    etag = f'"{hashlib.md5(data).hexdigest()}"'
    state = {"url": site.url + "a.gz", "etag": etag, "modified": None, "length": SIZE}
    (cache / "a.gz.partial.json").write_text(json.dumps(state))
    register(monkeypatch, RemoteFile("https://example.org/a.gz", md5(data)))
    assert (get(site, tmp_path / "toy") / "a.gz").read_bytes() == data and site.sent == 0


def test_a_spoilt_part_is_thrown_away_and_fetched_once_more(site, monkeypatch, tmp_path):
    data = site.files["a.gz"] = noise()
    register(monkeypatch, RemoteFile("https://example.org/a.gz", md5(data)))
    site.stop_after = [90_000]
    with pytest.raises(UserError):
        get(site, tmp_path / "toy", Client(attempts=1))
    with open(tmp_path / ".toy.download" / "a.gz.partial", "r+b") as stream:
        stream.write(b"spoilt")
    assert (get(site, tmp_path / "toy") / "a.gz").read_bytes() == data


@pytest.mark.parametrize("kind", ["fixed", "published"])
def test_a_wrong_checksum_leaves_nothing(site, monkeypatch, tmp_path, kind):
    site.files |= {"a.gz": noise(), "a.gz.md5": b"MD5 (a.gz) = " + b"0" * 32}
    url = "https://example.org/a.gz"
    remote = RemoteFile(url, "sha256:" + "0" * 64) if kind == "fixed" else RemoteFile(url, checksum_url=f"{url}.md5")
    register(monkeypatch, remote)
    with pytest.raises(UserError, match=r"a\.gz: wrong checksum .*; expected (sha256|md5):0000"):
        get(site, tmp_path / "toy")
    assert leftovers(tmp_path / "toy") == set() and not (tmp_path / "toy").exists()


@pytest.mark.parametrize("form", ["MD5 (a.gz) = {}\n", "{}  a.gz\n"])
def test_a_published_checksum_is_fetched(site, monkeypatch, tmp_path, form):
    data = noise()
    site.files |= {"a.gz": data, "a.gz.md5": form.format(hashlib.md5(data).hexdigest().upper()).encode()}
    register(monkeypatch, RemoteFile("https://example.org/a.gz", checksum_url="https://example.org/a.gz.md5"))
    assert (get(site, tmp_path / "toy") / "a.gz").exists()
    assert [name for name, _ in site.asked] == ["a.gz", "a.gz.md5"]


def test_a_missing_file_stops_at_once_and_a_passing_fault_does_not(site, monkeypatch, tmp_path):
    register(monkeypatch, RemoteFile("https://example.org/a.gz"))
    with pytest.raises(UserError, match=r"HTTP 404 .*a\.gz"):
        get(site, tmp_path / "toy")
    assert len(site.asked) == 1 and not (tmp_path / "toy").exists()
    site.files["a.gz"], site.statuses = noise(), [503, 429]
    assert (get(site, tmp_path / "toy") / "a.gz").exists()


def test_a_server_that_never_gives_anything_is_given_up(site, monkeypatch, tmp_path):
    register(monkeypatch, RemoteFile("https://example.org/a.gz"))
    site.files["a.gz"], site.stop_after = noise(), [0] * 9
    with pytest.raises(UserError, match="broke off after 0 bytes"):
        get(site, tmp_path / "toy")
    assert len(site.asked) == QUICK.attempts
    with pytest.raises(UserError, match="broke off"):
        download("toy", tmp_path / "toy", mirror="http://127.0.0.1:9", client=QUICK)  # nobody there


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "C:\\evil.txt", "..\\evil.txt"])
def test_an_archive_cannot_write_outside_of_its_folder(site, monkeypatch, tmp_path, name):
    site.files["a.zip"] = archive(**{"ok.txt": "1", name: "2"})
    register(monkeypatch, RemoteFile("https://example.org/a.zip"))
    with pytest.raises(UserError, match="is unsafe"):
        get(site, tmp_path / "in" / "toy")
    assert not list(tmp_path.rglob("*.txt")) and not (tmp_path / "in" / "toy").exists()


def test_links_and_damage_in_archives_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as bundle:
        bundle.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="'link' is unsafe"):
        unpack(tmp_path / "a.zip", tmp_path)
    whole = archive(**{"a.txt": "text" * 1000})
    for data in (whole[:-30], b"not a zip", whole[:40] + bytes(4) + whole[44:]):
        (tmp_path / "b.zip").write_bytes(data)
        with pytest.raises(UserError, match="not a whole zip"):
            unpack(tmp_path / "b.zip", tmp_path / "to")


def test_a_folder_of_something_else_is_left_alone(site, monkeypatch, tmp_path):
    register(monkeypatch, RemoteFile("https://example.org/a.gz"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds something else.*nothing was touched"):
        get(site, tmp_path / "mine")
    with pytest.raises(UserError, match="is a file"):
        get(site, tmp_path / "mine" / "thesis.txt")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work" and site.asked == []


def test_the_registry(tmp_path):
    with pytest.raises(UserError, match="unknown data set 'ml-2m'.*ml-latest-small, ml-1m, ml-25m, ml-32m"):
        download("ml-2m", tmp_path / "x")
    assert {"amazon-beauty-2014", "amazon-books-2023", "amazon-movies-and-tv-2023"} <= set(PUBLIC_SETS)
    for name, entry in PUBLIC_SETS.items():
        assert entry.name == name and entry.source in READERS and entry.terms
        assert all(remote.url.startswith("https://") for remote in entry.files)
