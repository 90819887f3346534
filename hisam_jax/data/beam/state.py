"""Files that one pipeline leaves for the next, in a folder or under a bucket's prefix: each is whole or absent."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import uuid

import polars as pl
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

_PLAIN = {"compression_type": CompressionTypes.UNCOMPRESSED}  # a file's ending says nothing of its bytes


@dataclasses.dataclass(frozen=True)
class State:
    """Named files below `root`; writing a name again, as a retried worker does, replaces it."""

    root: str

    def write(self, name: str, content: bytes) -> None:
        path = self._path(name)
        # An object appears when its stream is closed; a file has to be renamed into its place.
        scratch = f"{path}.{uuid.uuid4().hex}.partial" if self._is_local() else path
        with FileSystems.create(scratch, **_PLAIN) as stream:
            stream.write(content)
        if scratch != path:
            os.replace(scratch, path)

    def read(self, name: str) -> bytes:
        with FileSystems.open(self._path(name), **_PLAIN) as stream:
            return stream.read()

    def write_frame(self, name: str, frame: pl.DataFrame) -> None:
        stream = io.BytesIO()
        frame.write_parquet(stream, compression="lz4")
        self.write(name, stream.getvalue())

    def read_frame(self, name: str) -> pl.DataFrame:
        return pl.read_parquet(io.BytesIO(self.read(name)))

    def clear(self) -> None:
        """Removes all of it."""
        if self._is_local():
            shutil.rmtree(self.root, ignore_errors=True)  # Beam's own would read a bracket in the path as a pattern
        else:
            FileSystems.delete([f"{self.root}/"])

    def _is_local(self) -> bool:
        return FileSystems.get_scheme(self.root) is None

    def _path(self, name: str) -> str:
        return FileSystems.join(self.root, *name.split("/"))
