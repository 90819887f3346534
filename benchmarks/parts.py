"""A benchmark of several parts: each is a module with `run` and `markdown`, and one page holds them all."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import inspect
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, processor, today, versions
from hisam_jax.files import atomic_write


@dataclasses.dataclass(frozen=True)
class Page:
    """What `python -m benchmarks.NAME` rewrites.

    Attributes:
        name: of the package under `benchmarks`, and of its results.
        title: of the page.
        questions: part -> the question that it answers, in order.
        packages: whose versions are recorded.
        need_data: parts that need the public data sets.
    """

    name: str
    title: str
    questions: Mapping[str, str]
    packages: tuple[str, ...]
    need_data: tuple[str, ...] = ()

    def record(self, part: str, options: dict[str, Any]) -> dict[str, Any]:
        """One part's result with where, when and how it was made."""
        started, module = time.monotonic(), self._module(part)
        options["work"].mkdir(parents=True, exist_ok=True)
        accepted = inspect.signature(module.run).parameters
        result = module.run(**{key: value for key, value in options.items() if key in accepted})
        return {
            "command": self.command_of(part, options.get("seeds", 1) if "seeds" in accepted else 1),
            "date": today(),
            "device": device(),
            "versions": versions("jax", *self.packages),
            "minutes": round((time.monotonic() - started) / 60, 2),
            "result": result,
        }

    def command_of(self, part: str, seeds: int) -> str:
        """What makes one part anew; DIR stands for the public data sets."""
        words = [f"python -m benchmarks.{self.name}", *(["--data DIR"] if part in self.need_data else [])]
        return " ".join([*words, f"--only {part}", *([f"--seeds {seeds}"] if seeds != 1 else [])])

    def write(self, folder: Path, part: str, made: dict[str, Any]) -> None:
        """Puts one part's record into NAME.json, where others keep theirs, and writes NAME.md anew."""
        target = folder / f"{self.name}.json"
        known = json.loads(target.read_text()) if target.is_file() else {}
        known[part] = json.loads(json.dumps(made))
        ordered = {name: known[name] for name in self.questions if name in known}
        atomic_write(target, json.dumps(ordered, indent=1) + "\n")
        sections = [f"# {self.title}\n", f"Each section is one part of `python -m benchmarks.{self.name}`.\n"]
        for name, entry in ordered.items():
            body = self._module(name).markdown(entry["result"]).rstrip("\n") + "\n"
            sections += [f"## {self.questions[name]}\n", body, _source(entry)]
        atomic_write(folder / f"{self.name}.md", "\n".join(sections))

    def main(self, description: str) -> None:
        """The command line of a page whose parts need no more than a scratch folder: runs what was asked for.

        The results are rewritten after each part.
        """
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parts, work = list(self.questions), Path("runs") / self.name
        parser.add_argument("--only", nargs="*", choices=parts, default=parts, help="which parts")
        parser.add_argument("--work", type=Path, default=work, help="scratch folder")
        parser.add_argument("--quick", action="store_true", help="tiny settings, results under --work: does it run?")
        arguments = parser.parse_args()
        results = arguments.work / "quick" if arguments.quick else RESULTS
        for name in [part for part in parts if part in arguments.only]:
            options = {"work": arguments.work / name, "quick": arguments.quick, "results": results}
            self.write(results, name, self.record(name, options))

    def _module(self, part: str) -> Any:
        return importlib.import_module(f"benchmarks.{self.name}.{part}")


@functools.cache
def device() -> str:
    """The processor, and the accelerator where there is one."""
    import jax

    kind = jax.devices()[0]
    return processor() if kind.platform == "cpu" else f"{kind.device_kind} x {jax.device_count()}, {processor()}"


def _source(record: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    seeds = record["result"].get("seeds")
    of = [f"seeds {', '.join(map(str, seeds))}"] if isinstance(seeds, list) else []
    parts = [
        f"`{record['command']}`",
        record["date"],
        record["device"],
        packages,
        f"{record['minutes']:.1f} minutes in its last start, cells kept from earlier ones not counted",
    ]
    return f"{'; '.join(parts[:1] + of + parts[1:])}.\n"
