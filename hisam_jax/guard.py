"""A parent that watches over one process of several, because JAX's runtime ends a process that has lost its peers by
`abort()` and a page of C++ stack, and offers no callback that works: the parent says it in one line."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable
from typing import BinaryIO

from hisam_jax.errors import PeerLost, UserError, tell

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_FATAL = re.compile(rb"^F\d{4} .*JAX distributed service detected fatal errors")
# Gloo's report, as several threads at once print it: its pieces in any order, the last of them maybe a number alone.
_CHATTER = re.compile(rb"(\[Gloo\] Rank |\d+| is connected to | peer ranks\. |Expected number[a-z ]+: )*\n")
_SURELY_CHATTER = re.compile(rb"\[Gloo\]|connected|peer ranks")
_PR_SET_PDEATHSIG = 1
_LAST_WORDS_SECONDS = 5.0  # a worker of the dead process may hold its stderr open for ever


def guard(name: str) -> None:
    """Forks: the child returns and goes on; the parent stays as its guard and leaves with its exit code, never returns.

    The guard forwards signals, passes the child's stderr on, and turns the runtime's dump into one `hisam: error:`
    line: exit code 75 (another process was lost), or 2 where not all had joined. A child that a signal ended gives
    128 and the signal. A guard that is killed takes its child along. In the child, what C++ libraries print on stdout
    goes to stderr. Where jax is imported already its threads would not survive a fork, and nothing happens.

    Args:
        name: the process, as the line names it.
    """
    if "jax" in sys.modules or threading.active_count() > 1:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # none may arrive between the fork and the handlers
    parent, child = os.getpid(), os.fork()
    if child == 0:
        os.close(read)
        _become_the_child(parent, write)
        return
    os.close(write)
    _watch(name, child, os.fdopen(read, "rb"))


def _become_the_child(parent: int, stderr: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)
    os.setpgid(0, 0)  # Ctrl-C reaches the guard alone, which forwards it once
    os.dup2(stderr, 2)
    os.close(stderr)
    results = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = open(results, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)


def _watch(name: str, child: int, stderr: BinaryIO) -> None:
    for number in FORWARDED:
        signal.signal(number, lambda number, _: _send(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    stream = Stream()
    reader = threading.Thread(target=stream.follow, args=(stderr, sys.stderr.buffer), daemon=True)
    reader.start()
    _, status = os.waitpid(child, 0)
    reader.join(_LAST_WORDS_SECONDS)
    code, line = verdict(name, os.waitstatus_to_exitcode(status), stream)
    if line:
        tell(line)
    sys.stderr.flush()
    os._exit(code)


def _send(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


class Stream:
    """The child's stderr on its way: what it has said of its end, and the runtime's dump, which is kept back."""

    def __init__(self) -> None:
        self.explained, self.dump = False, b""

    def follow(self, source: Iterable[bytes], out: BinaryIO) -> None:
        """Copies line by line until the end."""
        chatting = False
        for line in source:
            chatting = bool(_CHATTER.fullmatch(line)) and (chatting or bool(_SURELY_CHATTER.search(line)))
            if self.dump or _FATAL.match(line):
                self.dump += line
            elif not chatting:
                self.explained |= line.startswith(b"hisam: error: ")
                out.write(line)
                out.flush()


def verdict(name: str, code: int, stream: Stream) -> tuple[int, str | None]:
    """The exit code of a child that ended with `code` (negative: by that signal), and the line to print, if any."""
    if stream.dump and code in (-signal.SIGABRT, PeerLost.exit_code):  # the dump and an exception may race
        error = _of_the_dump(name, stream.dump.decode(errors="replace"))
        return error.exit_code, None if stream.explained else str(error)
    if stream.dump:
        sys.stderr.buffer.write(stream.dump)
    if code >= 0:
        return code, None
    known = stream.explained or -code in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    return 128 - code, None if known else f"{name} was ended by {signal.Signals(-code).name}"


def _of_the_dump(name: str, dump: str) -> UserError:
    if "RegisterTask" in dump:
        return UserError(f"{name}: joining the others failed", hint="their output says why")
    if names := re.search(r"(?:stopped sending heartbeats\):|timed out task names:)\s*((?:\d+\s+)+)", dump):
        return PeerLost(name, f"no sign of life from process {', '.join(names[1].split())}")
    if "Failed to send RPC to coordination service" in dump:
        return PeerLost(name, "process 0, which all others are joined by, has ended or cannot be reached")
    status = re.search(r"absl::Status: (.*)", dump)
    return PeerLost(name, status[1] if status else "the runtime gave up")
