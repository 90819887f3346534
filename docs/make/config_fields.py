"""The page of config fields, from the frozen dataclasses: types and defaults as they are, text from docstrings."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator

from hisam_jax.comparison.grid import Data, Grid, Row, Tokenizer
from hisam_jax.data.pipeline import PipelineConfig
from hisam_jax.data.shop import ShopConfig
from hisam_jax.evaluation.item_knn import ItemKNNConfig
from hisam_jax.inference.engine import EngineConfig
from hisam_jax.inference.transitions import TransitionConfig
from hisam_jax.models.qarm_config import Codes
from hisam_jax.models.registry import ARCHITECTURES
from hisam_jax.scaling.flops import Vocabulary
from hisam_jax.scaling.sizes import Rate, Size
from hisam_jax.scaling.sweep import Part, Sweep
from hisam_jax.serving.limits import Limits
from hisam_jax.sharding import MeshConfig
from hisam_jax.tokenizer.alarms import AlarmConfig
from hisam_jax.tokenizer.registry import TOKENIZERS
from hisam_jax.training.assembly import EvaluationConfig
from hisam_jax.training.config import TrainingConfig
from hisam_jax.training.optimizer import OptimizerConfig

OWN = [name for name in TOKENIZERS if TOKENIZERS[name].config.__module__.startswith("hisam_jax.")]
# heading -> (section of the config file, record)
GROUPS: dict[str, list[tuple[str, type]]] = {
    "Training: `hisam train --config`": [
        *((f'model, with architecture="{name}"', entry.config) for name, entry in ARCHITECTURES.items()),
        ("data", PipelineConfig),
        ("training", TrainingConfig),
        ("training.optimizer", OptimizerConfig),
        ("evaluation", EvaluationConfig),
        ("mesh", MeshConfig),
        ("catalogue, which hisam compile takes the data to be", Vocabulary),
    ],
    "Tokenizers: `hisam tokenize --config`": [
        *((name, TOKENIZERS[name].config) for name in OWN),
        ("alarms", AlarmConfig),
    ],
    "Comparisons: `hisam compare CONFIG`": [
        ("the file itself", Grid),
        ("datasets.NAME", Data),
        ("tokenizers.NAME", Tokenizer),
        ("rows[...]", Row),
    ],
    "Scaling laws: `hisam scale CONFIG`": [
        ("the file itself", Sweep),
        ("parts.NAME", Part),
        ("sizes.NAME", Size),
        ("learning_rate", Rate),
    ],
    "Records that flags set": [
        ("hisam prepare --source shop, as --shop-FIELD", ShopConfig),
        ("hisam serve, as flags", Limits),
        ("the engine behind hisam serve and hisam evaluate, from Python", EngineConfig),
        ("the baseline of hisam evaluate, tuned on validation", ItemKNNConfig),
        ("what evaluation.blend blends with, from Python", TransitionConfig),
    ],
}


def records() -> list[type]:
    """Every record of the page."""
    return [record for group in GROUPS.values() for _, record in group]


def descriptions(record: type) -> dict[str, str]:
    """Field -> what the `Attributes:` of the docstring say of it, those of the classes it is made of included."""
    found: dict[str, str] = {}
    for cls in reversed(record.__mro__):
        found |= dict(_entries(cls.__dict__.get("__doc__") or ""))
    return {field.name: found[field.name] for field in dataclasses.fields(record) if field.name in found}


def page() -> str:
    """The tables, in Markdown."""
    return "\n\n".join(f"## {heading}\n\n" + "\n\n".join(map(_table, group)) for heading, group in GROUPS.items())


def _table(entry: tuple[str, type]) -> str:
    section, record = entry
    about, summary = descriptions(record), (record.__doc__ or "").strip().split("\n\n")[0]
    rows = [
        _row(f"`{field.name}`", _type(field.type), _default(field), about[field.name])
        for field in dataclasses.fields(record)
    ]
    head = f"### `{section}` {{ #{record.__name__} }}\n\n{' '.join(summary.split())} "
    head += f"Source: [`{record.__name__}`][{record.__module__}.{record.__qualname__}]."
    return "\n".join([head, "", "| field | type | default | what it is |", "|---|---|---|---|", *rows])


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        nested = dataclasses.is_dataclass(field.default)
        return "its own defaults" if nested else f"`{field.default!r}`"
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()!r}`"
    return "none: to be given"


def _type(hint: object) -> str:
    """A type as its users write values of it: the choices of a `Literal`, else its name."""
    text = hint if isinstance(hint, str) else getattr(hint, "__name__", str(hint))
    text = f"Literal{list(typing.get_args(Codes))}" if text == "Codes" else text
    choices = re.fullmatch(r"Literal\[(.*)\]", text)
    return " or ".join(f"`{part.strip()}`" for part in choices[1].split(",")) if choices else f"`{text}`"


def _row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in cells) + " |"


def _entries(doc: str) -> Iterator[tuple[str, str]]:
    """`(field, text)` of the section `Attributes:` of a docstring; `a, b: text` is of both."""
    section = re.search(r"^ *Attributes:\n(.*?)(?=\n\n|\Z)", doc, re.S | re.M)
    if not section:
        return
    lines = section[1].split("\n")
    depth = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    text = "\n".join(line[depth:] for line in lines)
    for names, about in re.findall(r"^(\w[\w, ]*): (.*(?:\n .*)*)", text, re.M):
        for name in names.split(","):
            yield name.strip(), " ".join(about.split())
