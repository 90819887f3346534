"""What is refused of a comparison's config file, each mistake with its field, its value and what was expected."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ml_collections

from hisam_jax.comparison.predictions import OWN_ROWS
from hisam_jax.comparison.statistics import metric_names
from hisam_jax.config import is_section
from hisam_jax.errors import UserError
from hisam_jax.files import is_plain_name

if TYPE_CHECKING:
    from hisam_jax.comparison.grid import Data, Grid, Row

FEWEST_RESAMPLES = 10
ABOUT, WHY = ("name", "row", "source"), "why"  # of a published figure, and why ours may differ; the rest are metrics
A_ROW = "a row with name, config and tokenizer"
SHOWN = 60  # characters of a value in a message


def check_fields(config: Mapping[str, Any], known: Sequence[str], required: Sequence[str]) -> None:
    """Refuses fields of the file that are unknown or missing.

    Raises:
        UserError: the first of them.
    """
    for name in config:
        if name not in known:
            raise UserError("unknown config field", field=str(name), expected=" or ".join(known))
    for name in required:
        if name not in config:
            raise UserError("missing config field", field=name, expected=f"a config with {', '.join(required)}")


def named(section: str, given: Any) -> dict[str, Any]:
    """A section's entries by name; rows, which come as a list for their order, by the `name` in each.

    Raises:
        UserError: no such section, or an entry without a name of its own.
    """
    if section == "rows":
        return _rows(given)
    if not is_section(given):
        raise _wrong(section, given, f"{section} by name, such as {{'mine': {{...}}}}")
    for name in given:
        _check_plain(section, name)
    return dict(given.items())


def _rows(given: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for place, row in enumerate(sequence("rows", given, f"a list, each of it {A_ROW}")):
        if not is_section(row):
            raise _wrong(f"rows[{place}]", row, A_ROW)
        values = dict(row.items())
        name = values.pop("name", None)
        if name is None:
            raise UserError("no name", field=f"rows[{place}].name", expected="a name of its own")
        _check_plain(f"rows[{place}].name", name)
        if name in found:
            raise UserError(f"name {name!r} again", field=f"rows[{place}].name", expected="a name of its own")
        found[name] = values
    return found


def sequence(field: str, value: Any, expected: str) -> tuple:
    """A list or tuple of the file as a tuple.

    Raises:
        UserError: it is none.
    """
    if not isinstance(value, list | tuple):
        raise _wrong(field, value, expected)
    return tuple(value)


def pairs(field: str, given: Any) -> tuple:
    """The field `pairs` or `across`, two names each.

    Raises:
        UserError: it is something else.
    """
    expected = "(row, rival), two different names"
    found = tuple(sequence(field, pair, expected) for pair in sequence(field, given, f"a list of {expected}"))
    for pair in found:
        if len(pair) != 2 or pair[0] == pair[1]:
            raise _wrong(field, pair, expected)
    return found


def check(grid: Grid) -> None:
    """Refuses what does not fit together.

    Raises:
        UserError: the first such field.
    """
    for section, names in (("datasets", grid.datasets), ("tokenizers", grid.tokenizers), ("rows", grid.rows)):
        if not names:
            raise UserError("nothing", field=section, expected="at least one")
    if not isinstance(grid.title, str):
        raise _wrong("title", grid.title, "text")
    if not _is_whole(grid.resamples) or grid.resamples < FEWEST_RESAMPLES:
        raise _wrong("resamples", grid.resamples, f"a whole number, {FEWEST_RESAMPLES} or more")
    _check_seeds("seeds", grid.seeds)
    rivals = {*grid.rows, *OWN_ROWS}
    for name, row in grid.rows.items():
        _check_row(name, row, grid, rivals)
    _check_known("reference", grid.reference, rivals)
    for pair in grid.pairs:
        for name in pair:
            _check_known("pairs", name, rivals)
    places = [f"{dataset}/{row}" for dataset in grid.datasets for row in grid.rows_of(dataset)]
    for pair in grid.across:
        for name in pair:
            _check_known("across", name, places)
    for name, data in grid.datasets.items():
        _check_data(f"datasets.{name}", data, rivals)


def _check_row(name: str, row: Row, grid: Grid, rivals: Collection[str]) -> None:
    field = f"rows.{name}"
    if name in OWN_ROWS:
        raise UserError(f"name {name!r}", field="rows", expected="another: that is a row of the tables' own")
    _check_known(f"{field}.tokenizer", row.tokenizer, grid.tokenizers)
    for dataset in row.datasets:
        _check_known(f"{field}.datasets", dataset, grid.datasets)
    if row.against:
        _check_known(f"{field}.against", row.against, rivals)
    _check_seeds(f"{field}.seeds", row.seeds or grid.seeds)
    if isinstance(row.config, str):
        return
    for dataset in row.datasets or grid.datasets:
        if dataset not in row.config:
            raise UserError(f"none for dataset {dataset!r}", field=f"{field}.config", expected="a file for each")
        if not isinstance(row.config[dataset], str):
            raise _wrong(f"{field}.config.{dataset}", row.config[dataset], "the name of a config file")


def _check_data(field: str, data: Data, rivals: Collection[str]) -> None:
    for metric in data.metrics:
        _check_metric(f"{field}.metrics", metric)
    for place, entry in enumerate(data.published):
        of = f"{field}.published[{place}]"
        if not is_section(entry):
            raise _wrong(of, entry, "name, row, source and metrics")
        _check_published(of, entry, rivals)


def _check_published(field: str, entry: Mapping[str, Any], rivals: Collection[str]) -> None:
    for name in ABOUT:
        if name not in entry:
            raise UserError("missing config field", field=f"{field}.{name}", expected=f"{', '.join(ABOUT)} and metrics")
        if not isinstance(entry[name], str):
            raise _wrong(f"{field}.{name}", entry[name], "text")
    _check_known(f"{field}.row", entry["row"], rivals)
    for name, value in entry.items():
        if name in ABOUT or (name == WHY and isinstance(value, str)):
            continue
        _check_metric(field, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _wrong(f"{field}.{name}", value, "a number")


def _check_metric(field: str, metric: Any) -> None:
    """Refuses what no table can hold, naming the nearest that one can."""
    by_list = metric_names()
    known = [f"{name}/{one}" for name, of in by_list.items() for one in of]
    if metric in known:
        return
    close = difflib.get_close_matches(str(metric), known, n=1, cutoff=0.0)[0]
    kinds = {tuple(of): [name for name in by_list if by_list[name] == of] for of in by_list.values()}
    said = "; ".join(f"{' or '.join(names)} with {' or '.join(of)}" for of, names in kinds.items())
    raise UserError(f"unknown metric {metric!r}", field=field, expected=f"{close}, or another of {said}")


def _check_plain(field: str, name: Any) -> None:
    if not isinstance(name, str) or not is_plain_name(name):
        raise UserError(f"name {name!r}", field=field, expected="a text of letters, digits, dots, dashes, _")


def _check_known(field: str, name: Any, known: Collection[str]) -> None:
    if not isinstance(name, str) or name not in known:
        raise _wrong(field, name, " or ".join(sorted(known)))


def _check_seeds(field: str, seeds: Sequence[Any]) -> None:
    able = all(_is_whole(seed) and 0 <= seed < 2**32 for seed in seeds)
    if not seeds or not able or len(set(seeds)) < len(seeds):
        raise _wrong(field, seeds, f"different whole numbers from 0 to {2**32 - 1}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong(field: str, value: Any, expected: str) -> UserError:
    said = repr(value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value)
    said = said if len(said) <= SHOWN else f"{said[:SHOWN]}..."
    return UserError(f"value {said}", field=field, expected=expected)
