"""Several processes: the environment's rules, joining or ending in time, and what happens when one is lost."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launch_fixtures import environment, start, write_program

from hisam_jax import cli, distributed
from hisam_jax.distributed import THREE, Plan, Processes, read_environment
from hisam_jax.errors import PeerLost, UserError
from hisam_jax.guard import Stream, verdict

WHOLE = dict(zip(THREE, ("10.0.0.1:8476", "4", "3"), strict=True))
DUMP = b"F1124 15:12:33.304727   29976 client.h:80] Terminating process because the JAX distributed service detected "
DUMP += b"fatal errors. This most likely indicates that another task died. absl::Status: "
HEARTBEAT = (
    b"UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1\n3\nThe tasks have crashed.\n"
)
LEADER = b"UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was preempted\n"
REGISTER = b"DEADLINE_EXCEEDED\n\nRPC: /xla.coordination.CoordinationService/RegisterTask\n"
STACK = b"*** Check failure stack trace: ***\n    @     0x7f4030e20634  absl::log_internal::LogMessage::SendToLog()\n"


@pytest.fixture
def program(tmp_path):
    return write_program(tmp_path)


@pytest.fixture
def started():
    """Where a test puts what it has started; nothing of it outlives the test."""
    processes: list[subprocess.Popen] = []
    yield processes
    for process in processes:
        process.kill()


def the_line(stderr: str) -> str:
    assert stderr.startswith("hisam: error: ") and stderr.count("\n") == 1, stderr
    return stderr


def test_without_variables_there_is_one_process():
    assert read_environment({}) is None
    assert read_environment({"HISAM_DISTRIBUTED": "", "HISAM_COORDINATOR": ""}) is None
    assert read_environment(WHOLE | {"HISAM_PROCESSES": "1", "HISAM_PROCESS_ID": "0"}) is None


def test_three_variables_or_jaxs_own_detection():
    assert read_environment(WHOLE) == Plan(Processes(3, 4), "10.0.0.1:8476", 300, 100)
    timeouts = {"HISAM_JOIN_TIMEOUT": "7", "HISAM_HEARTBEAT_TIMEOUT": "8"}
    assert read_environment({"HISAM_DISTRIBUTED": "auto"} | timeouts) == Plan(None, None, 7, 8)
    assert read_environment(WHOLE | {"HISAM_DISTRIBUTED": "auto"}).coordinator == "10.0.0.1:8476"


@pytest.mark.parametrize("given", [c for n in (1, 2) for c in itertools.combinations(THREE, n)])
def test_some_of_the_three_name_the_missing_ones(given):
    with pytest.raises(UserError) as refusal:
        read_environment({name: WHOLE[name] for name in given})
    missing = " and ".join(name for name in THREE if name not in given)
    assert str(refusal.value).startswith(f"{missing} not set, but {' and '.join(given)};")


@given(st.integers(2, 10**6), st.integers(0, 10**6))
def test_an_index_is_below_the_count(count, index):
    variables = WHOLE | {"HISAM_PROCESSES": str(count), "HISAM_PROCESS_ID": str(index)}
    if index < count:
        assert read_environment(variables).processes == Processes(index, count)
    else:
        with pytest.raises(UserError, match=f"'HISAM_PROCESS_ID': value '{index}'; expected .* 0 to {count - 1}"):
            read_environment(variables)


NUMBERS = ("HISAM_PROCESSES", "HISAM_PROCESS_ID", "HISAM_JOIN_TIMEOUT", "HISAM_HEARTBEAT_TIMEOUT")


@given(st.sampled_from(NUMBERS), st.text(min_size=1).filter(lambda text: not (text.isascii() and text.isdigit())))
def test_what_is_not_a_whole_number_is_refused_by_name(name, text):
    with pytest.raises(UserError, match=f"field '{name}'.*expected a whole number from"):
        read_environment(WHOLE | {name: text})


@pytest.mark.parametrize("address", ["localhost:1", "node-7.cluster.local:65535", "[::1]:8476", "[fe80::1.2.3.4]:80"])
def test_addresses(address):
    assert read_environment(WHOLE | {"HISAM_COORDINATOR": address}).coordinator == address


@pytest.mark.parametrize(
    "address", ["localhost", ":80", "a b:80", "host:0", "host:65536", "host:http", "::1:80", "h:80\n"]
)
def test_addresses_that_are_none(address):
    with pytest.raises(UserError, match="field 'HISAM_COORDINATOR'.*expected HOST:PORT"):
        read_environment(WHOLE | {"HISAM_COORDINATOR": address})


def test_another_way_of_joining_is_refused():
    with pytest.raises(UserError, match="field 'HISAM_DISTRIBUTED': value 'slurm'; expected auto"):
        read_environment({"HISAM_DISTRIBUTED": "slurm"})


def test_one_process_pays_nothing():
    code = "import sys; from hisam_jax import distributed as d; d.initialize(guarded=True); d.barrier('x', 1)\n"
    code += "print(d.is_main(), d.agree(True), d.agree(False), d.leave(3), 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True", "False", "3", "False"], done.stderr


@pytest.mark.parametrize("verb", [["train", "--dataset", "d", "--ids", "i", "--config", "c"], ["evaluate"]])
def test_the_verbs_on_a_mesh_join_first(verb, monkeypatch, capsys):
    monkeypatch.setenv("HISAM_PROCESSES", "2")
    assert cli.main([*verb, "--workdir", "w"]) == 2
    assert "HISAM_COORDINATOR and HISAM_PROCESS_ID not set" in the_line(capsys.readouterr().err)


def test_the_other_verbs_do_not(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HISAM_PROCESSES", "2")
    assert cli.main(["ids", "--ids", str(tmp_path / "none"), "--export", str(tmp_path / "x.parquet")]) == 2
    assert "HISAM" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        ValueError("UNKNOWN: Gloo all-reduce failed: [pair.cc:547] Connection closed by peer [127.0.0.1]:41347"),
        RuntimeError("UNKNOWN: Gloo all-gather failed: Read error [127.0.0.1]:5: Connection reset by peer"),
        RuntimeError("INTERNAL: NCCL operation failed: remote process exited or there was a network error"),
        RuntimeError("UNAVAILABLE: Task 1 heartbeat timeout. This indicates that the remote task has failed"),
    ],
)
def test_errors_of_a_lost_peer_are_known_and_no_others(error):
    lost = distributed.lost_peer(error)
    assert isinstance(lost, PeerLost) and lost.exit_code == 75 and str(error)[:40] in str(lost)
    wrapped = KeyError("step")
    wrapped.__cause__ = error
    assert distributed.lost_peer(wrapped) is not None
    assert distributed.lost_peer(ValueError("shapes (2, 3) and (4,) do not fit")) is None


@pytest.mark.parametrize(
    ("status", "code", "line"),
    [
        (HEARTBEAT, 75, "no sign of life from process 1, 3"),
        (LEADER, 75, "process 0, which all others are joined by, has ended or cannot be reached"),
        (REGISTER, 2, "joining the others failed"),
        (b"INTERNAL: something new\n", 75, "INTERNAL: something new"),
    ],
)
def test_the_runtimes_dump_becomes_one_line(status, code, line, capfdbinary):
    stream = Stream()
    with open(os.dup(1), "wb") as out:
        stream.follow([b"step 3\n", DUMP + status, STACK, b"hisam: error: too late\n"], out)
    assert capfdbinary.readouterr().out == b"step 3\n"
    got, text = verdict("process 0 of 4", -signal.SIGABRT, stream)
    assert got == code and line in text and text.startswith("process 0 of 4")
    assert verdict("process 0 of 4", 75, stream) == (code, text)


def test_what_is_not_of_the_runtime_passes_through(capfdbinary):
    stream = Stream()
    ours = [b"12\n", b"hisam: error: mine\n", b"\n", b"F1124 other.cc] check failed\n", b"a server is connected to 3\n"]
    expected = b" peer ranks. Expected number of connected peer ranks is : "
    gloo = [b"[Gloo] Rank 2[Gloo] Rank  is connected to 3 peer ranks.  peer ranks. " + expected[13:] + b"33\n", b"\n"]
    gloo += [b"[Gloo] Rank [Gloo] Rank 0 is connected to 1" + expected + b"1\n", b"3" + expected + b"\n", b"3\n"]
    with open(os.dup(1), "wb") as out:
        stream.follow([*ours[:2], *gloo, *ours[3:], ours[2]], out)
    assert capfdbinary.readouterr().out == b"".join([*ours[:2], *ours[3:], ours[2]]) and not stream.dump
    assert verdict("p", 2, stream) == (2, None) and verdict("p", -signal.SIGSEGV, stream) == (139, None)


@pytest.mark.parametrize(("number", "line"), [(signal.SIGSEGV, "p was ended by SIGSEGV"), (signal.SIGTERM, None)])
def test_a_guard_leaves_with_128_and_the_signal(number, line):
    code = f"import os, time; from hisam_jax.guard import guard; guard('p'); os.kill(os.getpid(), {int(number)})"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == 128 + number
    assert done.stderr == (f"hisam: error: {line}\n" if line else "")


def test_a_guard_forwards_signals_and_keeps_stdout_for_results(started):
    code = "import os, signal, sys, time; from hisam_jax.guard import guard; guard('p')\n"
    code += "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(143)))\n"
    code += "os.write(1, b'chatter of a library\\n'); print('ready', flush=True); time.sleep(60)"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment(), **pipes)
    started.append(process)
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (143, "saved\n", "chatter of a library\n")


def test_a_guard_that_is_killed_takes_its_child_along(started):
    code = (
        "import os, time; from hisam_jax.guard import guard; guard('p'); print(os.getpid(), flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, text=True)
    started.append(process)
    assert int(process.stdout.readline()) != process.pid
    process.kill()
    assert process.stdout.read() == ""  # comes back only when the child, which holds the other end, is gone


def test_too_few_end_in_time_each_with_one_line(program, started):
    begin = time.monotonic()
    started += start(program, [0, 2], 3, HISAM_JOIN_TIMEOUT=3)
    for index, process in zip((0, 2), started, strict=True):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 2 and out == ""
        line = the_line(err)
        assert f"process {index} of 3: not all processes joined at 127.0.0.1:" in line and "within 3 s" in line
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("host", ["", "127.0.0.1"])
def test_a_port_that_is_taken_is_one_line(host, monkeypatch, capsys):
    with socket.create_server((host, 0)) as taken:
        port = taken.getsockname()[1]
        values = (f"127.0.0.1:{port}", "2", "0")
        for name, value in zip(THREE, values, strict=True):
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("GRPC_VERBOSITY", raising=False)
        assert cli.main(["evaluate", "--workdir", "w"]) == 2
    assert f"'HISAM_COORDINATOR': process 0 cannot listen at port {port}" in the_line(capsys.readouterr().err)


def test_they_agree_and_wait_for_each_other_no_longer_than_asked(program, started):
    started += start(program, [0, 1], 2, "agree", "alone")
    for index, process in enumerate(started):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out.splitlines()[:2] == [f"process {index} of 2: 2 of 1 here", "agreed: False True True"]
        late = [line for line in out.splitlines() if line.startswith("barrier: ")]
        assert len(late) == (index == 0) and all("not all processes came to 'lonely' within 0.5 s" in x for x in late)


@pytest.mark.parametrize(("killed", "doing"), [(0, "reduce"), (1, "reduce"), (0, "sleep"), (1, "sleep")])
def test_one_is_killed_and_the_other_says_so_and_ends(killed, doing, program, started):
    started += start(program, [0, 1], 2, doing, HISAM_HEARTBEAT_TIMEOUT=5)
    for process in started:
        process.stdout.readline()  # both have joined and computed
    started[killed].kill()
    begin = time.monotonic()
    _, err = started[1 - killed].communicate(timeout=60)
    assert started[1 - killed].returncode == 75
    assert f"process {1 - killed} of 2 lost another" in the_line(err)
    assert time.monotonic() - begin < 20


def test_what_ends_us_is_one_write_that_no_dump_can_split():
    read, write = os.pipe2(os.O_DIRECT)  # a read gives back what one write put in
    code = "from hisam_jax.errors import UserError, tell; tell(UserError('no'))"
    subprocess.run([sys.executable, "-u", "-c", code], stderr=write, check=True)
    os.close(write)
    assert os.read(read, 4096) == b"hisam: error: no\n"
    os.close(read)


@pytest.mark.parametrize(("how", "code"), [("refuse", 2), ("fault", 1)])
def test_one_that_fails_does_not_wait_for_the_others(how, code, program, started):
    started += start(program, [0, 1], 2, how)
    outcomes = [process.communicate(timeout=60)[1] for process in started]
    assert [process.returncode for process in started] == [75, code]
    assert "process 0 of 2 lost another" in the_line(outcomes[0])
    assert ("KeyError: 'ours'" in outcomes[1]) == (how == "fault")
