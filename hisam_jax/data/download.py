"""Public data sets from their official places: resumed where they broke off, checked, and whole or absent."""

from __future__ import annotations

import json
import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from hisam_jax.data.fetch import Client, fetch
from hisam_jax.data.public_sets import PUBLIC_SETS, PublicSet, RemoteFile
from hisam_jax.errors import UserError
from hisam_jax.files import atomic_directory, sha256_file
from hisam_jax.paths import output_path

RECEIPT = "SOURCE.json"


def download(name: str, out: str | Path, *, mirror: str | None = None, client: Client | None = None) -> Path:
    """Fetches the public set `name` into the folder `out`, ready for `hisam prepare --raw`.

    What was fetched before a break lies in `.OUT.download` beside `out`, and the next call goes on from there. A set
    that is already there is left as it is.

    Args:
        name: a key of `PUBLIC_SETS`.
        out: a folder that does not exist yet, is empty, or holds this set.
        mirror: URL of a folder with the same file names (http, gs, s3), asked in place of the official one.
        client: retries, pauses and time limits.

    Returns:
        `out`.

    Raises:
        UserError: an unknown name, a folder with other things in it, a file that is not there, a wrong checksum or
            size, an archive with a path outside of it, or a server that does not answer.
    """
    entry, final = _public_set(name), output_path(out, "out")
    if _is_done(entry, final):
        return final
    cache = final.parent / f".{final.name}.download"
    cache.mkdir(parents=True, exist_ok=True)
    files = [_at(mirror, remote) for remote in entry.files]
    archives = [fetch(remote, cache, client or Client()) for remote in files]
    with atomic_directory(final) as scratch:
        for archive in archives:
            if archive.suffix == ".zip":
                unpack(archive, scratch)
            else:
                _place(archive, scratch / archive.name)
        sums = {archive.name: sha256_file(archive) for archive in archives}
        receipt = {"name": name, "source": entry.source, "terms": entry.terms, "sha256": sums}
        receipt["urls"] = [remote.url for remote in files]
        (scratch / RECEIPT).write_text(json.dumps(receipt, indent=2) + "\n")
    shutil.rmtree(cache, ignore_errors=True)
    return final


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a zip into `folder`, without the one folder that everything in it may lie in.

    Raises:
        UserError: not a whole zip, or a member that would land outside of `folder` or is a link.
    """
    try:
        with zipfile.ZipFile(archive) as bundle:
            members = [member for member in bundle.infolist() if not member.is_dir()]
            paths = [_safe_path(member, archive) for member in members]
            tops = {path.parts[0] for path in paths}
            strip = 1 if len(tops) == 1 and all(len(path.parts) > 1 for path in paths) else 0
            for member, path in zip(members, paths, strict=True):
                target = folder.joinpath(*path.parts[strip:])
                target.parent.mkdir(parents=True, exist_ok=True)
                with bundle.open(member) as source, open(target, "wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"not a whole zip archive: {error}", path=archive, expected="a zip archive") from error


def _public_set(name: str) -> PublicSet:
    if name not in PUBLIC_SETS:
        raise UserError(f"unknown data set '{name}'", field="name", expected=f"one of {', '.join(PUBLIC_SETS)}")
    return PUBLIC_SETS[name]


def _is_done(entry: PublicSet, final: Path) -> bool:
    if not final.exists():
        return False
    if not final.is_dir():
        raise UserError("is a file", path=final, field="out", expected="a new folder")
    try:
        done = json.loads((final / RECEIPT).read_text())["name"]
    except (OSError, ValueError, KeyError, TypeError):
        done = None
    if done == entry.name:
        return True
    if done or any(final.iterdir()):
        problem = f"holds {done}" if done else "holds something else"
        raise UserError(problem, path=final, field="out", expected="a new or empty folder", hint="nothing was touched")
    return False


def _at(mirror: str | None, remote: RemoteFile) -> RemoteFile:
    if mirror is None:
        return remote
    base = mirror.rstrip("/")
    checksum_url = f"{base}/{remote.checksum_url.rsplit('/', 1)[-1]}" if remote.checksum_url else None
    return RemoteFile(f"{base}/{remote.name}", remote.checksum, checksum_url)


def _place(archive: Path, target: Path) -> None:
    try:
        os.link(archive, target)  # the cache keeps its copy until the folder is whole
    except OSError:
        shutil.copyfile(archive, target)


def _safe_path(member: zipfile.ZipInfo, archive: Path) -> PurePosixPath:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    outside = path.is_absolute() or ".." in path.parts or not path.parts or ":" in path.parts[0]
    if outside or stat.S_ISLNK(member.external_attr >> 16):
        expected = "plain files inside the archive"
        raise UserError(f"member '{member.filename}' is unsafe", path=archive, expected=expected)
    return path
