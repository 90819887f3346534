"""The commands in README and docs: where they stand, what marks them, how a page of them is run.

A comment right before a block of bash or Python marks it:

    <!-- not run: REASON -->        it needs what a test has not; its flags are checked
    <!-- slow -->                   it runs with the slow tests
    <!-- slow, waits for: URL -->   and what follows waits until that address answers

A block of Python with a title is the file of that name. Other blocks of a page run in order, in one shell.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *DOCS.rglob("*.md")])
FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<kind>bash|python)(?P<more>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S
)
MARK = re.compile(r"not run: (?P<reason>.+)|slow(?:, waits for: (?P<url>\S+))?")
# What commands of the docs are given besides, so that they take seconds. Nothing else is changed of them.
SHORTER = {
    "train": "--config.training.steps=3 --config.training.evaluate_every=0 --config.training.monitor=None "
    "--config.model.width=16 --config.model.layers=1 --config.data.items_per_row=32 --config.data.window=16 "
    "--config.data.rows=4 --config.evaluation.resamples=20 --config.evaluation.beams=10 --config.evaluation.samples=2 "
    "--config.evaluation.validation_users=20",
    "tokenize": {"dst.py": "--config.dst.steps=20", "residual_kmeans.py": "--config.residual_kmeans.iterations=2"},
    "serve": "--rows 1 --max-candidates 4 --max-k 5",
    "export": "-k 10 --beams 10",
    "scale": {"--dataset": "--only 1"},
}


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of a page: `code` of `kind` bash or python from `line` on, with what its mark and its title say."""

    page: str
    line: int
    kind: str
    code: str
    title: str | None
    reason: str | None
    slow: bool
    url: str | None

    @property
    def runs(self) -> bool:
        return self.reason is None

    def commands(self) -> list[list[str]]:
        """Each simple command of a block of bash as words, settings of the environment left out."""
        text = re.sub(r"\\\n\s*", " ", self.code)
        found = []
        for line in text.split("\n"):
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
            lexer.whitespace_split, lexer.commenters = True, "#"
            try:
                words = list(lexer)
            except ValueError:  # a string over several lines, which no command of ours has
                continue
            for part in _split(words):
                found.append(part[next((i for i, w in enumerate(part) if not re.match(r"\w+=", w)), len(part)) :])
        return [words for words in found if words]


def _split(words: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if set(word) <= set("|&;"):
            yield part
            part = []
        else:
            part.append(word)
    yield part


def blocks(page: str) -> list[Block]:
    """The blocks of bash and Python of a page; an assertion where a mark is none of ours."""
    text, found = (ROOT / page).read_text(), []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        mark = MARK.fullmatch(match["mark"]) if match["mark"] else None
        assert mark or not match["mark"], f"{page}:{line}: unknown mark {match['mark']!r}"
        title = re.search(r'title="([\w.]+)"', match["more"])
        reason, url = (mark["reason"], mark["url"]) if mark else (None, None)
        slow = mark is not None and reason is None
        found.append(Block(page, line, match["kind"], match["code"], title and title[1], reason, slow, url))
    return found


def run_page(page: str, folder: Path, timeout: int) -> str:
    """Runs a page's blocks in `folder`; what they print. An assertion with their last words where one fails."""
    for name in ("configs", "launch", "benchmarks"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    script = folder / "page.sh"
    script.write_text(_script(page, folder))
    environment = {
        **os.environ,
        "PATH": f"{_commands(folder)}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "HISAM_CACHE": str(folder / "cache"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
    }
    run = subprocess.Popen(
        ["bash", script], cwd=folder, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = run.communicate(timeout=timeout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)  # what the page left in the background
    assert run.returncode == 0, f"{page}: exit code {run.returncode}\n{out[-2000:]}\n{err[-4000:]}"
    return out


def _script(page: str, folder: Path) -> str:
    lines = ["set -euo pipefail", "trap 'jobs -p | xargs -r kill || true; wait' EXIT"]
    for block in blocks(page):
        if not block.runs:
            continue
        if block.kind == "bash":
            lines.append(block.code)
        else:
            name = block.title or f"block_{block.line}.py"
            (folder / name).write_text(block.code)
            lines += [] if block.title else [f"python {name}"]
        if block.url:
            lines.append(f"timeout 600 bash -c 'until curl -sf {block.url}; do sleep 0.5; done'")
    return re.sub(r"(localhost:|--port )8000", rf"\g<1>{_free_port()}", "\n".join(lines))


def _commands(folder: Path) -> Path:
    """A folder for the PATH with `python`, and `hisam` that adds what makes its verbs short."""
    shim = folder / "bin"
    shim.mkdir(exist_ok=True)
    _executable(shim / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    cases = []
    for verb, extra in SHORTER.items():
        for part, flags in (extra if isinstance(extra, dict) else {"": extra}).items():
            cases.append(f"'{verb} '*'{part}'*) set -- \"$@\" {flags} ;;")
    body = "\n".join(["#!/bin/bash", 'case "$*" in', *cases, "esac", f'exec {sys.executable} -m hisam_jax "$@"', ""])
    _executable(shim / "hisam", body)
    return shim


def _executable(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
