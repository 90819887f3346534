"""MovieLens as GroupLens publishes it: CSV (latest, 25M, 32M) and the `::` files of 1M.

`tags.csv` is left alone: raters write tags after the fact, on events that may be held out, so as item text they leak.
Posters are not part of the releases; `images` is a folder of `<MovieID>.jpg` (or .jpeg, .png, .webp).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

from hisam_jax.data.readers.base import RawData
from hisam_jax.data.readers.catalogue import ItemRow, Pictures, build_catalogue, item_row, read_records, select_fields
from hisam_jax.data.readers.columns import find_file, need_columns, read_header, split_events
from hisam_jax.data.readers.line_log import LineLog

CSV_RATINGS = {"user": "userId", "item": "movieId", "rating": "rating", "timestamp": "timestamp"}
CSV_MOVIES = ("movieId", "title", "genres")
DAT_RATINGS = {"user": 0, "item": 1, "rating": 2, "timestamp": 3}
EXPECTED = "ratings.csv with movies.csv (latest, 25M, 32M) or ratings.dat with movies.dat (1M)"


def read(raw: Path, images: Path | None = None) -> RawData:
    """Reads `ratings.csv` with `movies.csv`, or `ratings.dat` with `movies.dat`; timestamps are seconds.

    Raises:
        UserError: a file is missing, empty, without the needed columns, or no movie is usable.
    """
    ratings = find_file(raw, ("ratings.csv", "ratings.dat"), EXPECTED)
    movies = find_file(ratings.parent, (f"movies{ratings.suffix}",), EXPECTED)
    if ratings.suffix == ".csv":
        header = read_header(ratings, ",")
        need_columns(ratings, header, list(CSV_RATINGS.values()))
        form, first_line = {"separator": ",", "header": header, "columns": CSV_RATINGS}, 1
    else:
        form, first_line = {"separator": "::", "header": None, "columns": DAT_RATINGS}, 0
    log = LineLog(ratings, functools.partial(split_events, **form), first_line=first_line)
    log.scan_rows()
    items, refused = read_movies(movies, Pictures(images))
    return RawData(
        interactions=log.scan(),
        items=items,
        interactions_path=ratings,
        items_path=movies,
        has_ratings=True,
        has_timestamps=True,
        refused_items=refused,
        lines=log,
    )


def read_movies(path: Path, pictures: Pictures):
    """ITEM_SCHEMA and the refused rows of a `movies.csv` or `movies.dat`: genres are categories and text."""
    if path.suffix == ".dat":
        return build_catalogue(_rows(_dat_fields(path), pictures), path)
    header = read_header(path, ",")
    need_columns(path, header, CSV_MOVIES)
    return build_catalogue(_rows(select_fields(read_records(path), header), pictures), path)


def _dat_fields(path: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")  # re-encoded copies are common; the official file is latin-1
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    lines = enumerate(text.replace("\r", "").split("\n"), start=1)
    return select_fields(((number, line.split("::")) for number, line in lines if line.strip()), CSV_MOVIES)


def _rows(
    records: Iterable[tuple[int, dict[str, str] | str]], pictures: Pictures
) -> Iterator[tuple[int, ItemRow | str]]:
    for line, record in records:
        if isinstance(record, str):
            yield line, record
        else:
            item, title, genres = (record[name].strip() for name in CSV_MOVIES)
            yield line, item_row(item, title, genres.split("|"), (), pictures.find(item))
