"""The command `hisam VERB`: parses, calls one function, prints its result on stdout; progress goes to stderr."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import hisam_jax
from hisam_jax import distributed
from hisam_jax.cli import comparison, compilation, data, ids, model, results, scaling, serving
from hisam_jax.cli.common import Parser, add_verb, split_overrides, write_result
from hisam_jax.errors import UserError, tell

DONE, INTERRUPTED = 0, 130
ON_A_MESH = ("train", "evaluate")  # what several processes do together
MENDABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns 0, 2 after one `hisam: error:` line, or 130; our own faults keep their traceback (1).

    75 after such a line: one of several processes, or one that reads data, was lost; started again, they go on.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # the runtimes' own chatter would drown the progress lines
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    return distributed.leave(_outcome(sys.argv[1:] if argv is None else argv))


def _outcome(argv: Sequence[str]) -> int:
    try:
        return _run(argv)
    except UserError as error:
        return _refuse(error)
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        return _refuse(UserError(error.strerror, path=error.filename))
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _refuse(_out_of_memory(error))
    except KeyboardInterrupt:
        print("hisam: interrupted", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> Parser:
    """The parser of every verb."""
    parser = Parser(
        prog="hisam",
        description="From raw interaction logs and a catalogue to semantic IDs, a trained model and recommendations.",
        epilog="`hisam VERB --help` lists every flag of a verb with its unit and default. Wherever a path is read "
        "it may be a gs:// or s3:// URL (pip install 'hisam_jax[remote]').",
    )
    parser.add_argument("--version", action="version", version=f"hisam {hisam_jax.__version__}")
    verbs = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB", required=True)
    for part in (data, model, ids, results, serving, comparison, compilation, scaling):
        for name, verb in part.VERBS.items():
            add_verb(verbs, name, verb)
    return parser


def _run(argv: Sequence[str]) -> int:
    argv, overrides = split_overrides(argv)
    arguments = build_parser().parse_args(argv)
    if overrides and "config" not in arguments:
        raise UserError(f"hisam {arguments.verb} takes no config", field=f"--config.{next(iter(overrides))}")
    arguments.overrides = overrides
    if arguments.verb in ON_A_MESH:
        distributed.initialize(guarded=True)
    result = arguments.call(arguments)
    if distributed.is_main():
        write_result(result)
    return DONE


def _out_of_memory(error: RuntimeError) -> UserError:
    """JAX's error, whose first line says how much was asked for and nothing of what to do."""
    said = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
    return UserError(
        f"a device's memory is full ({said})", field="data.rows, model.remat, mesh.fsdp",
        expected="a step that fits", hint="`hisam compile` says what would fit without trying it",
    )  # fmt: skip


def _refuse(error: UserError) -> int:
    tell(error)
    return error.exit_code
