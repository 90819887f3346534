"""Text columns into the readers' schema: lazily, one row a line, every unusable row kept with its reason.

Interactions are read as raw lines and split by expression, so that no row, however broken, can shift another, and a
message can name the line. Malformed UTF-8 becomes U+FFFD and is found by it.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import polars as pl

from hisam_jax.errors import UserError

LONGEST_HEADER = 1 << 16  # bytes
LATEST = 4_102_444_800  # 2100-01-01, seconds since 1970
REPLACEMENT = "\ufffd"
UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
EVENT_FIELDS = ("user", "item", "rating", "timestamp")
_QUOTED = r'"(?:[^"]|"")*"'
_ISO = (
    r"^(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}):(\d{2})(?::(\d{2})(?:[.,]\d+)?)?)?"
    r"\s?(?:Z|UTC|GMT|([+-])(\d{2}):?(\d{2}))?$"
)


def check_file(path: Path, expected: str) -> Path:
    """`path` if it is a readable file with something in it (and, if gzipped, whole); a `UserError` otherwise."""
    if not path.is_file():
        raise UserError("no such file", path=path, expected=expected)
    try:
        with open(path, "rb") as stream:
            magic = stream.read(2)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", path=path, expected=expected) from error
    if not magic:
        raise UserError("the file is empty", path=path, expected=expected)
    if magic == b"\x1f\x8b":
        _check_gzip(path)
    return path


def find_file(raw: Path, names: Sequence[str], expected: str) -> Path:
    """The first of `names` in `raw`, or in its only subfolder that has one (archives unpack into a folder)."""
    if not raw.is_dir():
        raise UserError("no such folder", path=raw, field="raw", expected=f"a folder with {expected}")
    for name in names:
        if (raw / name).exists():
            return check_file(raw / name, expected)
    nested = sorted(path for name in names for path in raw.glob(f"*/{name}"))
    if len(nested) == 1:
        return check_file(nested[0], expected)
    raise UserError(f"no {' or '.join(names)} here", path=raw, expected=expected)


def scan_lines(source: Path | BinaryIO, first_row: int = 0) -> pl.LazyFrame:
    """Columns `row` (UInt32, 0-based line) and `raw` (String), lazily; plain or gzipped, `\\n` or `\\r\\n`.

    Args:
        source: a file, or whole lines of one from line `first_row` on.
    """
    # A separator that no text file holds makes the CSV scanner a line scanner that tolerates broken UTF-8.
    return pl.scan_csv(
        source,
        has_header=False,
        schema={"raw": pl.String},
        separator="\x1f",
        quote_char=None,
        encoding="utf8-lossy",
        empty_string_is_null=False,
        missing_columns="insert",
        extra_columns="ignore",
        row_index_name="row",
        row_index_offset=first_row,
        glob=False,
    ).with_columns(pl.col("row").cast(pl.UInt32))


def read_header(path: Path, separator: str) -> list[str]:
    """Names in the first line, a byte-order mark and quotes removed."""
    with open_binary(path) as stream:
        text = stream.readline(LONGEST_HEADER).decode("utf-8-sig", errors="replace").rstrip("\r\n")
    if len(text) >= LONGEST_HEADER - 2 or any(mark < " " and mark not in ("\t", separator) for mark in text):
        expected = "a header with column names: UTF-8 text, lines that end in \\n"
        raise UserError("not a line of text", path=path, line=1, expected=expected)
    if not text.strip():
        raise UserError("the first line is empty", path=path, line=1, expected="a header with column names")
    return [name.strip() for name in next(csv.reader([text], delimiter=separator))]


def need_columns(path: Path, found: Sequence[str], needed: Sequence[str]) -> None:
    """A `UserError` naming the columns found and those expected, unless all `needed` are there."""
    for name in needed:
        if name not in found:
            raise UserError(
                f"column '{name}' is missing; found {_shortened(', '.join(found))}",
                path=path,
                line=1,
                field=name,
                expected=f"a header with {', '.join(needed)}",
            )
        if list(found).count(name) > 1:
            raise UserError(f"column '{name}' is there twice", path=path, line=1, field=name, expected="it once")


@contextlib.contextmanager
def whole_parquet(path: Path) -> Iterator[None]:
    """Polars finds a damaged page only when it comes to it: a `UserError` then, too."""
    try:
        yield
    except pl.exceptions.ComputeError as error:
        if not str(error).startswith(("parquet: ", "invalid utf8")):
            raise
        raise UserError(f"damaged ({error})", path=path, expected="a whole Parquet file") from error


def open_binary(path: Path):
    """A binary stream, decompressed where the file is gzipped."""
    stream = open(path, "rb")
    magic = stream.read(2)
    stream.seek(0)
    return gzip.GzipFile(fileobj=stream) if magic == b"\x1f\x8b" else stream


def has_byte(path: Path, byte: bytes) -> bool:
    """Whether `byte` occurs in the file, read in blocks."""
    with open_binary(path) as stream:
        return any(byte in block for block in iter(lambda: stream.read(1 << 22), b""))


def split_events(
    lines: pl.LazyFrame,
    *,
    separator: str,
    header: Sequence[str] | None,
    columns: Mapping[str, str | int],
    quoted: bool = False,
) -> pl.LazyFrame:
    """String columns named by the keys of `columns`, `row` and `broken`; blank lines are left out.

    Args:
        lines: of a delimited text file, as `scan_lines` gives them.
        separator: between fields; longer than a character only where nothing is quoted.
        header: the names in the file's first line, or None for a file without one.
        columns: schema name -> column name, or 0-based place where there is no header.
        quoted: whether fields may be quoted.
    """
    rows = lines.filter(pl.col("raw").str.strip_chars() != "")
    if header is None:
        return split_fields(rows, separator, 1 + max(columns.values()), dict(columns), quoted=quoted)
    chosen = {name: list(header).index(column) for name, column in columns.items()}
    return split_fields(rows.filter(pl.col("row") > 0), separator, len(header), chosen, quoted=quoted)


def split_fields(
    rows: pl.LazyFrame, separator: str, width: int, chosen: dict[str, int], *, quoted: bool = False
) -> pl.LazyFrame:
    """Adds `chosen` (name -> 0-based place among `width` fields) and `broken` (another number of fields) to `rows`.

    A field may hold separators and doubled quotes where `quoted`; never a line break: such lines are broken ones.
    """
    if quoted:
        places = {name: pl.col("fields").list.get(place, null_on_oob=True) for name, place in chosen.items()}
        # A separator goes before the row, so that every field, empty ones too, is one non-empty match.
        other = f"[^{_escape(separator)}"
        pattern = rf'{_escape(separator)}(?:{_QUOTED}|(?:{other}"]{other}]*)?)'
        matched = (separator + pl.col("raw")).str.extract_all(pattern)
        whole = matched.list.join("").str.len_bytes() == pl.col("raw").str.len_bytes() + len(separator.encode())
        split = rows.with_columns(fields=matched, broken=~((matched.list.len() == width) & whole))
        unquote = {name: _unquote(field.str.strip_prefix(separator)) for name, field in places.items()}
        return split.with_columns(**unquote)
    parts = pl.col("raw").str.split_exact(separator, width)
    field = pl.col("fields").struct.field
    broken = field(f"field_{width - 1}").is_null() | field(f"field_{width}").is_not_null()
    return rows.with_columns(fields=parts).with_columns(
        broken=broken, **{name: field(f"field_{place}") for name, place in chosen.items()}
    )


def to_interactions(rows: pl.LazyFrame, *, unit: str = "s", dates: bool = False, first_line: int = 0) -> pl.LazyFrame:
    """INTERACTION_SCHEMA from string columns `user`, `item`, maybe `rating` and `timestamp`, and `row`, `broken`.

    Args:
        rows: `row` is the 0-based line; the first `first_line` of them are a header.
        unit: what numeric timestamps count.
        dates: whether timestamps may also be dates in ISO form.
    """
    columns = rows.collect_schema().names()
    texts = {
        name: pl.col(name).str.strip_chars() if name in columns else pl.lit(None, pl.String) for name in EVENT_FIELDS
    }
    number = pl.col("timestamp").cast(pl.Float64, strict=False) / UNITS[unit]
    typed = rows.with_columns(**texts).with_columns(
        rating_value=pl.col("rating").cast(pl.Float32, strict=False),
        seconds=pl.coalesce(number, _iso_seconds(pl.col("timestamp"))) if dates else number,
    )
    return typed.select(
        "user",
        "item",
        rating="rating_value",
        timestamp=pl.when(_good_time()).then("seconds").cast(pl.Int64),
        order=(pl.col("row") - first_line).cast(pl.UInt32),
        line=(pl.col("row") + 1).cast(pl.UInt32),
        reason=_reason(columns),
    )


def timestamp_unit(rows: pl.LazyFrame) -> str:
    """'s', 'ms', 'us' or 'ns' by the size of the numbers in column `timestamp`: what most of the column exceeds.

    Seconds stay below 1e11 until the year 5138; milliseconds exceed it since 1973. One streaming pass.
    """
    number = pl.col("timestamp").str.strip_chars().cast(pl.Float64, strict=False)
    above = {unit: (number > 1e8 * UNITS[unit]).mean() for unit in ("ms", "us", "ns")}
    shares = rows.select(**above).collect(engine="streaming").row(0, named=True)
    return next((unit for unit in ("ns", "us", "ms") if (shares[unit] or 0.0) > 0.5), "s")


def check_has_rows(rows: pl.LazyFrame, path: Path) -> pl.LazyFrame:
    """`rows`, or a `UserError` if there is not one."""
    if rows.select("row").head(1).collect(engine="streaming").is_empty():
        raise UserError("the file has no rows", path=path, expected="one interaction a row")
    return rows


def _iso_seconds(text: pl.Expr) -> pl.Expr:
    part = text.str.extract_groups(_ISO).struct.field
    clock = [part(str(place)).cast(pl.Int64).fill_null(0) for place in (2, 3, 4)]
    zone = part("6").cast(pl.Int64) * 3600 + part("7").cast(pl.Int64) * 60
    zone = pl.when(part("5") == "-").then(-zone).otherwise(zone).fill_null(0)
    day = part("1").str.to_date("%Y-%m-%d", strict=False).cast(pl.Int64) * 86_400
    moment = day + clock[0] * 3600 + clock[1] * 60 + clock[2] - zone
    possible = (clock[0] < 24) & (clock[1] < 60) & (clock[2] <= 60)
    return pl.when(possible).then(moment).cast(pl.Float64)


def _good_time() -> pl.Expr:
    return pl.col("seconds").is_between(0, LATEST).fill_null(False)  # a NaN is between nothing


def _reason(columns: Sequence[str]) -> pl.Expr:
    present = [name for name in EVENT_FIELDS if name in columns]
    not_utf8 = pl.any_horizontal(pl.col(name).str.contains(REPLACEMENT, literal=True) for name in present)
    rules = [("broken_row", pl.col("broken")), ("not_utf8", not_utf8)]
    rules += [(f"missing_{name}", pl.col(name).fill_null("") == "") for name in ("user", "item")]
    if "rating" in columns:
        rules.append(("bad_rating", ~pl.col("rating_value").is_finite().fill_null(False)))
    if "timestamp" in columns:
        rules.append(("bad_timestamp", ~_good_time()))
    return pl.coalesce(pl.when(rule.fill_null(False)).then(pl.lit(reason)) for reason, rule in rules)


def _shortened(text: str, width: int = 300) -> str:
    return text if len(text) <= width else f"{text[:width]}..."


def _unquote(field: pl.Expr) -> pl.Expr:
    inner = field.str.strip_prefix('"').str.strip_suffix('"').str.replace_all('""', '"', literal=True)
    return pl.when(field.str.starts_with('"')).then(inner).otherwise(field)


def _escape(separator: str) -> str:
    return f"\\x{{{ord(separator):x}}}"


def _check_gzip(path: Path) -> None:
    """Reads it through once: a cut-off archive would otherwise only show in the middle of the preparation."""
    try:
        with gzip.open(path, "rb") as stream:
            while stream.read(1 << 22):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"damaged gzip archive: {error}", path=path, expected="a whole file; download it again"
        ) from error
