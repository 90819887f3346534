"""Copies of remote files in the cache: each version is whole or absent, and stays while a process here reads it.

    PLACE/objects/KEY     one object of one version; what a killed call has fetched is found here again
    PLACE/VERSION/NAME    the folder as it was listed: hard links to objects, renamed into its place when whole

`flock` on PLACE lets one process at a time change it; a shared one on VERSION, held until the process ends, keeps that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from hisam_jax.errors import UserError
from hisam_jax.files import full_disk_is_a_user_error, sha256_of
from hisam_jax.progress import progress_bar
from hisam_jax.remote.stores import Entry, Store

WORKERS = 8  # objects fetched at a time
_OBJECTS = "objects"
_held: dict[Path, int] = {}  # versions that this process reads, and the descriptors that keep them


def mirror(store: Store, listing: Callable[[], Mapping[str, Entry]], place: Path) -> Path:
    """The folder that holds what `listing` gives, by name; only objects that `place` does not have yet are fetched.

    Raises:
        UserError: an object cannot be read or changes meanwhile, the disk is full, `place` cannot be written.
    """
    entries = listing()
    keys = {name: _key(entry) for name, entry in sorted(entries.items())}
    folder, objects = place / sha256_of(*(part for pair in keys.items() for part in pair))[:16], place / _OBJECTS
    with _writing(place), _locked(place):
        if not folder.is_dir():
            objects.mkdir(exist_ok=True)
            wanted = {keys[name]: entry for name, entry in entries.items()}
            missing = {key: entry for key, entry in wanted.items() if not _is_whole(objects / key, entry)}
            _fetch(store, missing, objects)
            if missing and listing() != entries:
                _forget(missing, objects)
                raise UserError("changed while it was read", path=store.url, field=store.field, hint="try again")
            _link(keys, objects, folder)
        _hold(folder)
        _clean(place, folder)
    return folder


def _key(entry: Entry) -> str:
    """The name of an object's version; where nothing marks it, one that never comes again."""
    return sha256_of(entry.path, str(entry.size), entry.tag or uuid.uuid4().hex)


def _fetch(store: Store, missing: Mapping[str, Entry], objects: Path) -> None:
    if not missing:
        return
    total, stop = sum(entry.size for entry in missing.values()), threading.Event()
    with ThreadPoolExecutor(WORKERS) as pool, progress_bar(total, store.url, "B") as bar:
        jobs = {pool.submit(_fetch_one, store, entry, objects / key, stop): entry for key, entry in missing.items()}
        try:
            for job in as_completed(jobs):
                job.result()
                bar.update(jobs[job].size)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _fetch_one(store: Store, entry: Entry, target: Path, stop: threading.Event) -> None:
    scratch = target.with_name(f"{target.name}.partial")
    try:
        store.fetch(entry, scratch, stop)
        scratch.chmod(0o444)  # versions share it
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def _is_whole(file: Path, entry: Entry) -> bool:
    return file.is_file() and file.stat().st_size == entry.size


def _forget(keys: Iterable[str], objects: Path) -> None:
    """Removes objects that may be of another version than their key says."""
    for key in keys:
        (objects / key).unlink(missing_ok=True)


def _link(keys: Mapping[str, str], objects: Path, folder: Path) -> None:
    scratch = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    for name, key in keys.items():
        file = scratch / name
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(objects / key, file)
        except OSError:  # a file system without links, or one that has no more of them
            shutil.copyfile(objects / key, file)
    scratch.rename(folder)


def _hold(folder: Path) -> None:
    if folder not in _held:
        _held[folder] = os.open(folder, os.O_RDONLY)
        fcntl.flock(_held[folder], fcntl.LOCK_SH)


def _clean(place: Path, current: Path) -> None:
    """Removes other versions that nobody reads, and objects that no version holds."""
    for folder in place.iterdir():
        if folder.name != _OBJECTS and folder != current:
            with contextlib.suppress(BlockingIOError), _locked(folder, fcntl.LOCK_NB):
                shutil.rmtree(folder)
    for file in (place / _OBJECTS).iterdir():
        if file.stat().st_nlink == 1:
            file.unlink()


@contextlib.contextmanager
def _locked(folder: Path, how: int = 0) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Makes `place`; what keeps it from being written is a `UserError`."""
    try:
        with full_disk_is_a_user_error(place):
            place.mkdir(parents=True, exist_ok=True)
            yield
    except OSError as error:
        problem = f"the cache of remote files cannot be written ({error.strerror or error})"
        hint = "HISAM_CACHE names another folder for it"
        raise UserError(problem, path=error.filename or place, expected="a folder of yours", hint=hint) from error
