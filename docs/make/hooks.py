"""What MkDocs calls: lines such as `<!-- include benchmarks/results/tokenizers.md -->` become what they name.

`include FILE` is a file of the repository without its first heading, and with its pictures; `fields`, `flags`,
`endpoints` and `limits` are made of the code; `modules PACKAGE` is a reference entry for every module of a room that
has a public name.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import code_tables
import config_fields

if TYPE_CHECKING:  # what else is here works without MkDocs, which the tests need not have
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
RESULTS = "benchmarks/results"  # whose pictures are the site's too
PICTURE = re.compile(r"(!\[[^\]]*\]\()([^):]+\.svg\))")
DIRECTIVE = re.compile(r"^<!-- (include|fields|flags|endpoints|limits|modules)(?: (.*?))? -->$", re.M)


def on_files(files: Files, config: MkDocsConfig, **_: object) -> Files:
    """Called once: pictures of results become files of the site."""
    from mkdocs.structure.files import File

    for picture in sorted((ROOT / RESULTS).rglob("*.svg")):
        place = picture.relative_to(ROOT).as_posix()
        files.append(File(place, str(ROOT), config["site_dir"], config["use_directory_urls"]))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Called for every page."""
    folder = posixpath.dirname(page.file.src_uri)

    def made(match: re.Match) -> str:
        text = MAKERS[match[1]](match[2] or "")
        held = posixpath.relpath(posixpath.dirname(match[2]) or ".", folder or ".") if match[1] == "include" else ""
        return PICTURE.sub(rf"\g<1>{held}/\g<2>", text) if held else text

    return DIRECTIVE.sub(made, markdown)


def include(file: str) -> str:
    """A Markdown file of the repository, or nothing where it is absent."""
    path = ROOT / file
    if not path.is_file():
        return f"_`{file}` is not there yet._"
    return re.sub(r"\A# .*\n", "", path.read_text()).strip()


def modules(arguments: str) -> str:
    """`::: module` for the public modules of a package, but those that stand after it."""
    package, *left_out = arguments.split()
    folder = ROOT / package.replace(".", "/")
    names = [path.stem for path in sorted(folder.glob("*.py")) if path.stem not in ("__init__", *left_out)]
    shown = [name for name in names if _public(folder / f"{name}.py")]
    return "\n\n".join(f"::: {package}.{name}" for name in shown)


def _public(file: Path) -> bool:
    tree = ast.parse(file.read_text())
    defined = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef))
    return any(not node.name.startswith("_") and ast.get_docstring(node) for node in defined)


MAKERS: dict[str, Callable[[str], str]] = {
    "include": include,
    "fields": lambda _: config_fields.page(),
    "flags": lambda _: code_tables.flags(),
    "endpoints": lambda _: code_tables.endpoints(),
    "limits": lambda _: code_tables.limits(),
    "modules": modules,
}
