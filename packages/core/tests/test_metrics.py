"""metrics.jsonl says each step once, and stays JSON whatever the numbers are."""

import pytest

from posttrain.core.errors import RequestError
from posttrain.core.metrics import MetricsLog, Progress


def test_each_step_is_an_object_on_a_line(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.log(0, loss=1.5, clip_fraction=0.1)
    log.log(1, loss=1.25)
    assert log.rows() == [{"step": 0, "loss": 1.5, "clip_fraction": 0.1}, {"step": 1, "loss": 1.25}]


def test_number_that_is_not_finite_becomes_null(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.log(0, loss=float("nan"), kl=float("inf"), reward=1.0)
    assert log.rows() == [{"step": 0, "loss": None, "kl": None, "reward": 1.0}]


def test_truncation_drops_later_steps_and_a_half_written_line(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(4):
        log.log(step, loss=float(step))
    with open(log.path, "a") as file:
        file.write('{"step": 4, "lo')
    log.truncate(after_step=1)
    log.log(2, loss=9.0)
    assert [row["step"] for row in log.rows()] == [0, 1, 2]


def test_unknown_tracker_is_refused_with_a_suggestion(tmp_path):
    with pytest.raises(RequestError, match=r"unknown tracker 'wandbb' \(did you mean 'wandb'\?\)"):
        MetricsLog(tmp_path / "metrics.jsonl", trackers=["wandbb"])


def test_tracker_that_is_not_installed_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(RequestError, match="pip install"):
        MetricsLog(tmp_path / "metrics.jsonl", trackers=["wandb"])


def test_tracker_gets_the_same_numbers(tmp_path, monkeypatch):
    import types

    seen = []
    fake = types.SimpleNamespace(init=lambda **_: None, log=lambda values, step: seen.append((step, values)))
    monkeypatch.setitem(__import__("sys").modules, "wandb", fake)
    log = MetricsLog(tmp_path / "metrics.jsonl", trackers=["wandb"])
    log.log(3, loss=0.5)
    assert seen == [(3, {"loss": 0.5})]


def test_progress_tells_the_time_left_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(Progress, "PLAIN_EVERY_SECONDS", 0.0)
    with Progress(10, "sft") as progress:
        progress.advance(5, loss=0.25)
        progress.advance(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("sft: 5/10, ")
    assert "left  loss 0.25" in lines[0]
    assert lines[-1].startswith("sft: 10/10 in 0:0")
