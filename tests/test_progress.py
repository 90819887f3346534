"""Progress: a line now and then in a log, nothing lost of what is iterated."""

from __future__ import annotations

import time

from hisam_jax import progress as module
from hisam_jax.progress import progress, progress_bar


def test_items_pass_and_a_log_gets_whole_lines(capsys):
    assert list(progress(range(7), description="reading", unit="row")) == list(range(7))
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("reading") for line in lines)
    assert "7.00/7.00" in lines[-1] and "\r" not in "".join(lines)


def test_a_long_run_says_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(module, "LOG_SECONDS", 0.05)
    with progress_bar(None, "training", "step") as bar:
        for _ in range(20):
            time.sleep(0.01)
            bar.update()
            bar.set_postfix(loss="0.5")
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 8 and "loss=0.5" in lines[-1] and "20.0" in lines[-1]


def test_nothing_to_do_is_no_error(capsys):
    assert list(progress([], description="empty")) == []
