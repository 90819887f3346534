"""Beam's runners by the names of `--runner`, and their options."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import io
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import create_runner

from hisam_jax.data.beam.mistakes import received_from_workers
from hisam_jax.errors import UserError
from hisam_jax.progress import progress_bar

# Beam's own name of direct would first try to fetch an engine from the network; FnApiRunner is what it falls back to.
RUNNERS = {
    "direct": "apache_beam.runners.portability.fn_api_runner.FnApiRunner",
    "flink": "FlinkRunner",
    "spark": "SparkRunner",
    "dataflow": "DataflowRunner",
}
REQUIRED = {"dataflow": {"project": "NAME", "region": "NAME", "temp_location": "gs://BUCKET/FOLDER"}}
_SWITCHES = {"true": True, "false": False}


@dataclasses.dataclass(frozen=True)
class Runner:
    """Runs pipelines, one after the other.

    Attributes:
        name: a key of `RUNNERS`.
        options: Beam's own, by name.
    """

    name: str
    options: Mapping[str, str]

    def run(self, build: Callable[..., None], *arguments: object) -> None:
        """Builds a pipeline by `build(pipeline, *arguments)` and waits for its end.

        Raises:
            UserError: one that a worker met, or a job server that cannot be fetched.
        """
        label = f"beam {build.__name__.strip('_')}"
        with (
            progress_bar(1, label, "pipeline") as bar,
            received_from_workers(),
            _job_server(self.name),
            _quiet(self.name),
        ):
            with beam.Pipeline(runner=create_runner(RUNNERS[self.name]), options=_parse(self.options)) as pipeline:
                build(pipeline, *arguments)
            bar.update()


def make_runner(name: str, options: Mapping[str, str]) -> Runner:
    """A runner whose options are known to be good.

    Raises:
        UserError: an unknown runner or option, a value that Beam does not take, a required option left out, or
            something that the runner needs and is not installed.
    """
    if name not in RUNNERS:
        raise UserError(f"unknown runner '{name}'", field="--runner", expected=", ".join(RUNNERS))
    known = PipelineOptions([]).get_all_options()
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1, cutoff=0.0)
            raise UserError(f"Beam has no option '{option}'", field="--runner-option", expected=f"'{close[0]}'?")
    for option, value in REQUIRED.get(name, {}).items():
        if not options.get(option):
            expected = f"--runner-option {option}={value}"
            raise UserError(f"--runner {name} needs '{option}'", field="--runner-option", expected=expected)
    _parse(options)
    _check_installed(name, options)
    return Runner(name, dict(options))


def _parse(options: Mapping[str, str]) -> PipelineOptions:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = PipelineOptions.from_dictionary({k: _SWITCHES.get(v.lower(), v) for k, v in options.items()})
            parsed.get_all_options()  # parses them all, each by its type
    except SystemExit as error:
        problem = said.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise UserError(problem or str(options), field="--runner-option", expected="what Beam takes") from error
    return parsed


def _check_installed(name: str, options: Mapping[str, str]) -> None:
    google = name == "dataflow" or any(value.startswith("gs://") for value in options.values())
    if google and not _has("google.cloud.storage"):
        raise UserError("Google Cloud is not reached without its libraries", field="--runner",
                        expected="pip install 'apache-beam[gcp]'")  # fmt: skip
    if name in ("flink", "spark") and not options.get("job_endpoint") and not shutil.which("java"):
        raise UserError("Beam's job server runs on Java, and there is no `java`", field="--runner",
                        expected="java on the PATH, or --runner-option job_endpoint=HOST:PORT")  # fmt: skip


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@contextlib.contextmanager
def _job_server(name: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        problem, found, _ = str(error).partition(": <urlopen error")
        if not found or "job server" not in problem:
            raise
        raise UserError(problem, field="--runner", expected=f"--runner-option {name}_job_server_jar=FILE, or "
                        "--runner-option job_endpoint=HOST:PORT of one that runs") from error  # fmt: skip


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """On this machine a worker's mistake is said once, by whoever catches it, and not as a traceback before."""
    logger = logging.getLogger("apache_beam")
    level = logger.level
    logger.setLevel(logging.CRITICAL if name == "direct" else level)
    try:
        yield
    finally:
        logger.setLevel(level)
