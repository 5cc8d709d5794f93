"""posttrain runs: what is listed is there, and only what can go is removed."""

import json
import os

import pytest
import yaml

from posttrain.core.cli import run as command
from posttrain.core.runs import RunDirectory, StageIdentity


def make(root, stage, *, seed=0, finished=True):
    run = RunDirectory.of(root, "nano", StageIdentity(stage, 1, {}, seed))
    run.path.mkdir(parents=True)
    (run.path / "config.yaml").write_text(yaml.safe_dump({"stage": stage, "seed": seed}))
    if finished:
        run.finish({"stage": stage, "seed": seed, "cost": {"wall_seconds": 2.0}, "fingerprint": run.path.name})
    return run


def listed(capsys, *arguments):
    assert command(["runs", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_list_tells_finished_running_and_unfinished_apart(tmp_path, capsys):
    make(tmp_path, "sft")
    make(tmp_path, "rm", finished=False)
    running = make(tmp_path, "ppo", finished=False)
    with running.lock():
        runs = listed(capsys, "list", "--runs", str(tmp_path))["runs"]
    assert {(run["stage"], run["state"]) for run in runs} == {
        ("sft", "finished"),
        ("rm", "unfinished"),
        ("ppo", "running"),
    }


def test_show_finds_a_run_by_the_beginning_of_its_fingerprint(tmp_path, capsys):
    run = make(tmp_path, "sft")
    shown = listed(capsys, "show", run.path.name[:5], "--runs", str(tmp_path))
    assert shown["provenance"]["cost"] == {"wall_seconds": 2.0}
    assert listed(capsys, "show", str(run.path), "--runs", str(tmp_path)) == shown


def test_show_of_an_unknown_run_says_where_to_look(tmp_path, capsys):
    make(tmp_path, "sft")
    assert command(["runs", "show", "zzz", "--runs", str(tmp_path)]) == 2
    assert "posttrain runs list" in capsys.readouterr().err


def test_no_runs_folder_is_a_clear_error(tmp_path, capsys):
    assert command(["runs", "list", "--runs", str(tmp_path / "runs")]) == 2
    assert "nothing was run here yet" in capsys.readouterr().err


def test_gc_removes_nothing_without_yes(tmp_path, capsys):
    run = make(tmp_path, "rm", finished=False)
    assert listed(capsys, "gc", "--runs", str(tmp_path))["paths"] == [str(run.path)]
    assert run.path.exists()


def test_gc_keeps_finished_and_running(tmp_path, capsys):
    finished, unfinished = make(tmp_path, "sft"), make(tmp_path, "rm", finished=False)
    running = make(tmp_path, "ppo", finished=False)
    (finished.path.parent / ".checkpoint.abc.tmp").mkdir()
    (running.path / ".checkpoint.abc.tmp").mkdir()
    with running.lock():
        listed(capsys, "gc", "--yes", "--runs", str(tmp_path))
    assert finished.path.exists()
    assert (running.path / ".checkpoint.abc.tmp").exists()
    assert not unfinished.path.exists()
    assert not (finished.path.parent / ".checkpoint.abc.tmp").exists()


@pytest.mark.parametrize(("days", "left"), [("30", True), ("1", False)])
def test_gc_of_old_finished_runs_goes_by_age(tmp_path, capsys, days, left):
    run = make(tmp_path, "sft")
    old = run.provenance_path.stat().st_mtime - 5 * 86400
    for path in (run.path, *run.path.iterdir()):
        os.utime(path, (old, old))
    listed(capsys, "gc", "--older-than", days, "--yes", "--runs", str(tmp_path))
    assert run.path.exists() is left
