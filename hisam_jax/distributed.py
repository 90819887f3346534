"""Several processes: joined from the environment that a launcher sets, and an end in bounded time when one is lost.

The first of these that holds:

1. `HISAM_COORDINATOR=HOST:PORT`, `HISAM_PROCESSES=N`, `HISAM_PROCESS_ID=I`: N processes, this one is I, process 0
   listens at HOST:PORT. All three or none (`launch/local.sh`, or by hand).
2. `HISAM_DISTRIBUTED=auto`: JAX finds the others (SLURM, GKE, Cloud TPU, Open MPI); `launch/` sets it on clusters.
3. One process; nothing is initialised.

`HISAM_JOIN_TIMEOUT` (300 s): when not all have joined by then, each that waits ends with exit code 2.
`HISAM_HEARTBEAT_TIMEOUT` (100 s): a process that is silent for so long is dead, and the others end with 75.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import re
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from hisam_jax.errors import PeerLost, UserError, tell
from hisam_jax.guard import guard

THREE = ("HISAM_COORDINATOR", "HISAM_PROCESSES", "HISAM_PROCESS_ID")
GOODBYE_SECONDS = 1800  # how long one that has ended waits for the others to end, so that process 0 is not missed
_LOST = re.compile(
    r"Gloo .*(by peer|[Tt]imed? ?out|Broken pipe|refused)|remote process exited|[Cc]oordination ?[Ss]ervice|"
    r"heartbeat timeout",
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Processes:
    """Which process this is, counted from 0, and of how many."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"process {self.index} of {self.count}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the environment asks for; without `processes` JAX's own detection says which process this is."""

    processes: Processes | None
    coordinator: str | None
    join_timeout: int
    heartbeat_timeout: int

    @property
    def name(self) -> str:
        return str(self.processes) if self.processes else "this process"


_joined = Processes()
_entered = False  # from the first step of joining on, the runtime's threads make the interpreter's way out unsafe
_agreements = itertools.count()


def initialize(*, guarded: bool = False) -> Processes:
    """Joins the other processes that the environment speaks of; call it before anything of jax runs.

    Where not all join within HISAM_JOIN_TIMEOUT the process prints one line and ends with exit code 2: the runtime's
    own wait cannot be interrupted. Once joined, an exception that nobody catches ends the process at once.

    Args:
        guarded: let a parent of this process turn the runtime's C++ dumps into one line (`hisam_jax.guard`); then only
            a fork of the caller returns. For programs, not for notebooks.

    Raises:
        UserError: variables that are missing or make no sense, no cluster that JAX knows, a port that is taken.
    """
    global _joined, _entered
    plan = read_environment(os.environ)
    if plan is None or _joined.count > 1:
        return _joined
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # fatal errors alone, which the guard turns into one line
    os.environ.pop("GRPC_VERBOSITY", None)  # ERROR would print the rest after all, NONE not even the fatal ones
    if plan.processes and plan.processes.index == 0:
        _check_port(plan.coordinator)
    if guarded:
        guard(plan.name)
    import jax

    if os.environ.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM; `agree` is for that
    _entered, sys.excepthook = True, _last_words
    with _ends_if_it_lasts(plan):
        _join(jax, plan)
        _joined = plan.processes or Processes(jax.process_index(), jax.process_count())
    return _joined


def is_main() -> bool:
    """Whether this process is the one that writes logs and results."""
    return _joined.index == 0


def barrier(name: str, timeout: float) -> None:
    """Waits until every process has come to `name`.

    Raises:
        PeerLost: not all came within `timeout` seconds, or one has died.
    """
    if _joined.count == 1:
        return
    try:
        _client().wait_at_barrier(f"hisam/{name}", max(1, int(timeout * 1000)))
    except Exception as error:
        raise lost_peer(error, f"not all processes came to '{name}' within {timeout:g} s") from error


def agree(flag: bool, timeout: float = 300.0) -> bool:
    """Whether any process says True; every process must ask, equally often. About a millisecond, on the host.

    Raises:
        PeerLost: not all asked within `timeout` seconds, or one has died.
    """
    if _joined.count == 1:
        return flag
    name = f"agree/{next(_agreements)}"
    key = f"hisam/{name}"
    if flag:
        _client().key_value_set(key, "", allow_overwrite=True)
    barrier(name, timeout)
    try:
        _client().key_value_try_get(key)
        return True
    except Exception as error:
        if "NOT_FOUND" in str(error):
            return False
        raise lost_peer(error, "asking the others failed") from error


def from_main(value: Any, timeout: float = 300.0) -> Any:
    """What process 0 gives as `value`, which must be JSON; every process must ask, equally often.

    Raises:
        PeerLost: process 0 did not ask within `timeout` seconds, or has died.
    """
    if _joined.count == 1:
        return value
    key = f"hisam/main/{next(_agreements)}"
    try:
        if is_main():
            _client().key_value_set(key, json.dumps(value))
            return value
        return json.loads(_client().blocking_key_value_get(key, max(1, int(timeout * 1000))))
    except Exception as error:
        raise lost_peer(error, f"process 0 said nothing within {timeout:g} s") from error


def leave(code: int) -> int:
    """The exit code of the program; a failed one of several ends here, without waiting for the others to end too."""
    if code and _entered:
        _exit(code)
    return code


def lost_peer(error: BaseException, otherwise: str | None = None) -> PeerLost | None:
    """What to say of an error, or of one behind it, that means that another process is gone; None of any other."""
    chain = error
    while chain is not None:
        if isinstance(chain, PeerLost):
            return chain
        if _LOST.search(str(chain)):
            timed_out = otherwise and "DEADLINE_EXCEEDED" in str(chain)
            return PeerLost(str(_joined), otherwise if timed_out else str(chain).splitlines()[0])
        chain = chain.__cause__ or chain.__context__
    return PeerLost(str(_joined), f"{otherwise}: {error}") if otherwise else None


def read_environment(environment: Mapping[str, str]) -> Plan | None:
    """The plan of an environment by the rules above; None: one process.

    Raises:
        UserError: some of the three variables without the others, or a value that is not one.
    """
    timeouts = [
        _whole(environment, name, 1, 10**6, default)
        for name, default in (("HISAM_JOIN_TIMEOUT", 300), ("HISAM_HEARTBEAT_TIMEOUT", 100))
    ]
    given = [name for name in THREE if environment.get(name)]
    if given:
        if missing := [name for name in THREE if name not in given]:
            raise UserError(
                f"{' and '.join(missing)} not set, but {' and '.join(given)}",
                expected=f"all of {', '.join(THREE)}, or none",
                hint="launch/local.sh sets all three",
            )
        count = _whole(environment, "HISAM_PROCESSES", 1, 10**6)
        processes = Processes(_whole(environment, "HISAM_PROCESS_ID", 0, count - 1), count)
        coordinator = _address(environment["HISAM_COORDINATOR"])
        return Plan(processes, coordinator, *timeouts) if count > 1 else None
    kind = environment.get("HISAM_DISTRIBUTED")
    if kind not in (None, "", "auto"):
        raise UserError(f"value '{kind}'", field="HISAM_DISTRIBUTED", expected="auto, or not set")
    return Plan(None, None, *timeouts) if kind else None


def _whole(environment: Mapping[str, str], name: str, least: int, most: int, default: int | None = None) -> int:
    text = environment.get(name) or (None if default is None else str(default))
    if text is None or not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise UserError(f"value '{text}'", field=name, expected=f"a whole number from {least} to {most}")
    return int(text)


def _address(text: str) -> str:
    match = re.fullmatch(r"([^\s:]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})", text)
    if not match or not 1 <= int(match[2]) <= 65535:
        raise UserError(f"value '{text}'", field="HISAM_COORDINATOR", expected="HOST:PORT, such as 10.0.0.1:8476")
    return text


def _check_port(coordinator: str) -> None:
    """Refuses a port that is taken: the runtime would too, and crash."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    port = int(coordinator.rpartition(":")[2])
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6).close()
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at port {port}: {error.strerror}",
            field="HISAM_COORDINATOR",
            expected="a free port on the machine of process 0",
        ) from error


def _join(jax: Any, plan: Plan) -> None:
    who = {}
    if plan.processes:
        who = {"num_processes": plan.processes.count, "process_id": plan.processes.index}
        who |= {"coordinator_address": plan.coordinator, "cluster_detection_method": "deactivate"}
    try:
        jax.distributed.initialize(
            **who,
            initialization_timeout=plan.join_timeout + 60,  # ours ends first: the runtime's ends by abort()
            heartbeat_timeout_seconds=plan.heartbeat_timeout,
            shutdown_timeout_seconds=GOODBYE_SECONDS,
        )
    except (RuntimeError, ValueError, OSError) as error:
        if plan.processes is None and "should be defined" in str(error):
            raise UserError(
                "JAX finds no cluster here",
                field="HISAM_DISTRIBUTED",
                expected="auto under SLURM, GKE, Cloud TPU or Open MPI",
                hint=f"elsewhere set {', '.join(THREE)}",
            ) from error
        where = f" at {plan.coordinator}" if plan.coordinator else ""
        raise UserError(f"{plan.name}: joining the others{where} failed: {error}") from error


@contextlib.contextmanager
def _ends_if_it_lasts(plan: Plan) -> Iterator[None]:
    """Ends the process when the body takes longer than the join timeout."""
    done = threading.Event()

    def wait() -> None:
        if not done.wait(plan.join_timeout):
            where = f" at {plan.coordinator}" if plan.coordinator else ""
            problem = f"{plan.name}: not all processes joined{where} within {plan.join_timeout} s"
            expected = f"{plan.processes.count} of them" if plan.processes else None
            hint = "the missing ones' output says why; HISAM_JOIN_TIMEOUT waits longer"
            _exit(2, UserError(problem, expected=expected, hint=hint))

    threading.Thread(target=wait, name="hisam-join", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _last_words(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Ends one of several at an exception that nobody caught: the interpreter's own way out waits for the others."""
    lost = lost_peer(error)
    if lost is None:
        traceback.print_exception(kind, error, trace)
    _exit(lost.exit_code if lost else 1, lost)


def _exit(code: int, error: UserError | None = None) -> None:
    if error is not None:
        tell(error)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _client() -> Any:
    from jax._src import distributed  # the coordination client has no public name; Orbax takes it from here too

    return distributed.global_state.client
