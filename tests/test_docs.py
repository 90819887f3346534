"""README and docs are true: their commands run, their flags and fields exist, their figures are the benchmarks'."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
import types
from pathlib import Path

import docs_fixtures
import pytest
from docs_fixtures import DOCS, PAGES, ROOT, blocks, run_page

from hisam_jax.cli import build_parser
from hisam_jax.cli.common import split_overrides
from hisam_jax.config import load_config
from hisam_jax.errors import UserError
from hisam_jax.scaling.sweep import completed

sys.path.insert(0, str(DOCS / "make"))
import code_tables
import config_fields
import hooks
import pictures

SLOW = [page for page in PAGES if any(block.runs and block.slow for block in blocks(page))]
QUICK = [page for page in PAGES if page not in SLOW and any(block.runs for block in blocks(page))]
FIRST = "docs/your-data.md"  # others go on in its folder
TESTED_OPTIONS = {"--quick", "--only", "--data", "--work", "--rows", "--seeds", "--dry-run", "--help", "--version"}
NO_SECTION = ("seed", "architecture", "name", "collisions")


@pytest.mark.parametrize("page", QUICK)
def test_a_page_runs_from_its_first_block_to_its_last(page, tmp_path):
    run_page(page, tmp_path, 300)


@pytest.fixture(scope="module")
def own_data(tmp_path_factory) -> Path:
    """The folder in which the page about one's own data was followed."""
    folder = tmp_path_factory.mktemp("own")
    run_page(FIRST, folder, 1200)
    return folder


@pytest.mark.slow
def test_the_page_about_own_data_ends_with_recommendations_and_a_report(own_data):
    assert (own_data / "runs/mine/report.html").stat().st_size > 50_000
    assert (own_data / "runs/clicks/run.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in SLOW if page != FIRST])
def test_a_page_runs_where_the_one_about_own_data_ended(page, own_data):
    run_page(page, own_data, 900)


def test_what_is_not_run_says_why():
    reasons = [block.reason for page in PAGES for block in blocks(page) if not block.runs]
    assert reasons and all(len(reason.split()) > 3 for reason in reasons)


def test_every_fence_of_commands_is_a_block():
    """Neither an indented nor an unclosed fence hides a command from these tests."""
    for page in PAGES:
        text = (ROOT / page).read_text()
        assert len(re.findall(r"```(?:bash|sh|shell|console|python)\b", text)) == len(blocks(page)), page


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_every_command_has_flags_that_exist(page):
    for block in (block for block in blocks(page) if block.kind == "bash"):
        for words in block.commands():
            _check(words, f"{page}:{block.line}")


def _check(words: list[str], where: str) -> None:
    if words[0].startswith("launch/"):
        assert (ROOT / words[0]).is_file(), f"{where}: {words[0]}"
        words = ["hisam", *words[words.index("--") + 1 :]]
    if words[0] == "hisam":
        _check_verb(words[1:], where)
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in words[1:] if "=" not in word} <= set(targets), f"{where}: {words}"
    elif words[:2] == ["python", "-m"]:
        source = inspect.getsource(importlib.import_module(_module(words[2])))
        source += (ROOT / "benchmarks/parts.py").read_text()
        assert all(f'"{word}"' in source or f'"{word[2:]}"' in source for word in words[3:] if word.startswith("--")), (
            f"{where}: {words}"
        )
    elif words[:2] == ["pip", "install"]:
        extras = re.findall(r"\[([\w,]+)\]", " ".join(words))
        known = (ROOT / "pyproject.toml").read_text()
        assert all(f"\n{extra} = [" in known for group in extras for extra in group.split(",")), f"{where}: {words}"


@pytest.mark.parametrize(
    "line",
    ["hisam train --datset d", "hisam evaluate --workdir r --config.seed=1", "make teest", "pip install '.[serv]'",
     "python -m benchmarks.comparison --dat d", "launch/local.sh 2 -- trian --workdir r",
     "hisam tokenize --dataset d --config configs/tokenizer/dst.py --config.dst.stps=3 --out o"],
)  # fmt: skip
def test_a_command_that_would_be_refused_is_found(line):
    block = docs_fixtures.Block("", 1, "bash", f"X=1 {line} | head  # a comment\n", None, "no", False, None)
    words, head = block.commands()
    assert head == ["head"]
    with pytest.raises((AssertionError, UserError)):
        _check(words, "here")


def _module(name: str) -> str:
    return f"{name}.__main__" if (ROOT / name.replace(".", "/")).is_dir() else name


def _check_verb(argv: list[str], where: str) -> None:
    argv, overrides = split_overrides([word for word in argv if word not in ("&", "<", ">", ">>")])
    try:
        arguments = build_parser().parse_args(argv)
    except Exception as error:
        raise AssertionError(f"{where}: hisam {' '.join(argv)}: {error}") from error
    config = getattr(arguments, "config", None)
    assert config is not None or not overrides, f"{where}: hisam {argv[0]} takes no config"
    if config is not None and config.startswith("configs/"):
        load_config(ROOT / config, overrides, completed if arguments.verb == "scale" else None)


def test_every_flag_in_the_text_exists():
    parsers = [build_parser(), *code_tables.verbs().values()]
    known = {flag for parser in parsers for flag in parser._option_string_actions} | TESTED_OPTIONS
    known |= {"--no-baselines", "--items", "--tokens", "--heads", "--width", "--dtype"}
    for page in [*PAGES, "BUILD.md"]:
        text = docs_fixtures.FENCE.sub("", (ROOT / page).read_text())
        for flag in re.findall(r"`[^`\n]*?(--[a-z][\w-]*)(?![\w.-])", text):
            assert flag in known or flag in ("--config", "--FLAG"), f"{page}: {flag}"


def test_every_override_in_the_text_is_a_field():
    configs = [
        load_config(file) for file in [*(ROOT / "configs").glob("*.py"), *(ROOT / "configs/tokenizer").glob("*.py")]
    ]
    configs += [completed(load_config(ROOT / "configs" / "scaling" / f"{name}.py")) for name in ("tiny", "shop")]
    for page in [*PAGES, "BUILD.md"]:
        for field in re.findall(r"--config\.([a-z_.]+[a-z])\b", (ROOT / page).read_text()):
            if field.split(".")[0] == "bins":
                continue  # of the tokenizer that a page adds
            assert any(_has(config, field) for config in configs), f"{page}: {field}"


def _has(config, field: str) -> bool:
    for name in field.split("."):
        if name not in config:
            return False
        config = config[name]
    return True


def test_every_config_is_on_the_page():
    files = (file.read_text() for file in (ROOT / "hisam_jax").rglob("*.py"))
    named = {name for text in files for name in re.findall(r"^class (\w+Config)\b", text, re.M)}
    parts = {cls.__name__ for record in config_fields.records() for cls in record.__mro__}  # fields that one inherits
    assert len(named) > 15 and named <= parts


@pytest.mark.parametrize("record", config_fields.records())
def test_every_field_is_on_the_page_with_its_default_and_what_it_is(record):
    section = re.search(rf"\{{ #{record.__name__} \}}\n(.*?)(?=\n##|\Z)", config_fields.page(), re.S)
    for field in dataclasses.fields(record):
        row = re.search(rf"^\| `{field.name}` \| .+? \| (.+?) \| (.+) \|$", section[1], re.M)
        assert row and len(row[2]) > 5, f"{record.__name__}.{field.name}: no description in the docstring"
        if isinstance(field.default, (int, float, str, bool)):
            assert row[1] == f"`{field.default!r}`", f"{record.__name__}.{field.name}"


def test_a_field_without_a_description_is_found():
    @dataclasses.dataclass(frozen=True)
    class Some:
        """A record.

        Attributes:
            one, two: share a text that
                goes on.
        """

        one: int = 1
        two: int = 2
        three: int = 3

    text = "share a text that goes on."
    assert config_fields.descriptions(Some) == {"one": text, "two": text}


def test_every_route_of_the_service_is_in_the_table():
    from hisam_jax.serving import app

    table = code_tables.endpoints()
    parts = inspect.getsource(app.create_app)
    assert all(name in parts for name in ("explain_routes", "item_routes", "release_routes", "routes"))
    for file in (ROOT / "hisam_jax/serving").glob("*routes.py"):
        for method, path in re.findall(r'@router\.(get|post|delete)\("([^"]+)"(?!.*in_schema)', file.read_text()):
            assert f"| `{method.upper()} {path}` |" in table, path


def test_every_public_module_is_in_the_reference():
    files = (DOCS / "reference").glob("*.md")
    pages = "\n".join(hooks.on_page_markdown(file.read_text(), page_at(f"reference/{file.name}")) for file in files)
    shown = set(re.findall(r"^::: ([\w.]+)$", pages, re.M))
    rooms = ("data", "tokenizer", "kernels", "models", "training", "evaluation", "inference", "serving", "scaling",
             "compilation", "comparison", "cells")  # fmt: skip
    for room in rooms:
        for file in (ROOT / "hisam_jax" / room).glob("*.py"):
            name = f"hisam_jax.{room}.{file.stem}"
            assert name in shown or file.stem == "__init__" or not hooks._public(file), name


def test_figures_in_the_readme_are_those_of_the_benchmarks():
    results = "\n".join(file.read_text() for file in (ROOT / "benchmarks/results").glob("*.md"))
    figures = re.findall(r"\b0\.\d{4}\b", (ROOT / "README.md").read_text())
    assert len(figures) > 20
    assert [figure for figure in figures if figure not in results] == []


@pytest.mark.parametrize("page", ["README.md", "BUILD.md", "launch/README.md"])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text()):
        assert target.startswith("https://") or ((ROOT / page).parent / target).exists(), target


def test_the_picture_is_what_its_script_draws():
    assert pictures.OUT.read_text() == pictures.draw()


def test_an_included_page_is_the_file_without_its_heading(tmp_path, monkeypatch):
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    (tmp_path / "some.md").write_text("# Some\n\nText.\n\n# More\n")
    page = page_at("page.md")
    assert hooks.on_page_markdown("A\n\n<!-- include some.md -->\n", page) == "A\n\nText.\n\n# More\n"
    assert "not there yet" in hooks.on_page_markdown("<!-- include other.md -->", page)


def page_at(place: str) -> types.SimpleNamespace:
    return types.SimpleNamespace(file=types.SimpleNamespace(src_uri=place))


@pytest.mark.parametrize(("place", "link"), [("page.md", ""), ("more/page.md", "../")])
def test_pictures_of_an_included_page_are_files_of_the_site(tmp_path, monkeypatch, place, link):
    folder = tmp_path / hooks.RESULTS
    (folder / "some").mkdir(parents=True)
    (folder / "some" / "a.svg").write_text("<svg/>")
    (folder / "some.md").write_text("# Some\n\n![Of a](some/a.svg) [b](some/b.md)\n")
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    made = hooks.on_page_markdown(f"<!-- include {hooks.RESULTS}/some.md -->", page_at(place))
    assert made == f"![Of a]({link}{hooks.RESULTS}/some/a.svg) [b](some/b.md)"
    mkdocs = pytest.importorskip("mkdocs.structure.files")
    config = importlib.import_module("mkdocs.config").load_config(str(ROOT / "mkdocs.yml"))
    files = hooks.on_files(mkdocs.Files([]), config)
    assert [file.src_uri for file in files] == [f"{hooks.RESULTS}/some/a.svg"]
