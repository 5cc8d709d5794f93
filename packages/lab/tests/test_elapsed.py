"""How long a comparison took: counted over the runs of its command that did work, however they ended."""

import json
import time
from pathlib import Path

import pytest

from packages.lab.tests.finished_runs import finish, finished, plans_of, read_once
from posttrain.core.errors import WorkError
from posttrain.core.files import atomic_write_json
from posttrain.lab import elapsed as module
from posttrain.lab.comparison import write_comparison
from posttrain.lab.elapsed import FOLDER, Elapsed, Work, all_work, elapsed, finished_work, recorded_run

COMMAND = "posttrain compare --recipe nano --methods dpo --seeds 0,1"
EVERYTHING = Work(8, 6)


def record(folder: Path, number: int, **run) -> None:
    """What the run with that number left."""
    given = {"command": COMMAND, "jobs": 2, "seconds": 60.0, "complete": False, "after": None, **run}
    counts = {key: {"stages": given[key][0], "evaluations": given[key][1]} for key in ("before", "after") if given[key]}
    atomic_write_json(folder / FOLDER / f"20260101T00000{number}-1.json", {**given, **counts})


def runs(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((folder / FOLDER).glob("*.json"))]


class Finished:
    """What is finished by now, as a test sets it."""

    def __init__(self, stages: int, evaluations: int) -> None:
        self.work = Work(stages, evaluations)

    def __call__(self) -> Work:
        return self.work


def test_what_two_seeds_need_is_every_stage_and_row_once_a_seed(tmp_path, monkeypatch):
    read_once(monkeypatch)
    plans = plans_of(tmp_path, ["dpo", "orpo"], (0, 1))
    # sft, preferences, rm, dpo, orpo; base, sft, dpo, orpo.
    assert all_work(plans, []) == Work(2 * 5, 2 * 4)
    assert finished_work(plans, []) == Work(0, 0)
    finish(plans_of(tmp_path, ["dpo"], (0,)))
    assert finished_work(plans, []) == Work(4, 3)


def test_run_to_its_end_says_its_seconds_what_it_did_and_what_was_there(tmp_path):
    record(tmp_path, 0, before=(3, 1), after=(8, 6), complete=True, seconds=793.4)
    found = elapsed(tmp_path, COMMAND, EVERYTHING)
    assert found == Elapsed(793.4, 1, (2,), done=Work(5, 5), reused=Work(3, 1))
    said = "Done in 13:13, 2 at a time: 5 stages and 5 evaluations; 3 stages and 1 evaluation were reused."
    assert found.sentence() == said


def test_runs_that_were_interrupted_count_with_the_one_that_ended_them(tmp_path):
    record(tmp_path, 0, before=(0, 0), after=(3, 1), seconds=100.0)
    record(tmp_path, 1, before=(3, 1), seconds=50.0)  # killed
    record(tmp_path, 2, before=(5, 2), after=(8, 6), complete=True, seconds=30.0, jobs=1)
    found = elapsed(tmp_path, COMMAND, EVERYTHING)
    assert found == Elapsed(180.0, 3, (1, 2), done=EVERYTHING, reused=Work(0, 0))
    assert "Done in 3:00 in 3 runs of the command, 1 or 2 at a time" in found.sentence()


def test_what_others_finished_between_two_runs_is_reused(tmp_path):
    record(tmp_path, 0, before=(0, 0), after=(3, 1))
    record(tmp_path, 1, before=(6, 3), after=(8, 6), complete=True)
    found = elapsed(tmp_path, COMMAND, EVERYTHING)
    assert found is not None
    assert (found.done, found.reused) == (Work(5, 4), Work(3, 2))


def test_new_work_after_a_finished_comparison_is_counted_anew(tmp_path):
    record(tmp_path, 0, before=(0, 0), after=(8, 6), complete=True, seconds=500.0)
    record(tmp_path, 1, before=(7, 5), after=(8, 6), complete=True, seconds=40.0)
    assert elapsed(tmp_path, COMMAND, EVERYTHING) == Elapsed(40.0, 1, (2,), Work(1, 1), Work(7, 5))


def test_runs_of_another_command_say_nothing(tmp_path):
    record(tmp_path, 0, before=(0, 0), after=(8, 6), complete=True, command="posttrain compare --seeds 5")
    assert elapsed(tmp_path, COMMAND, EVERYTHING) is None
    assert elapsed(tmp_path / "nowhere", COMMAND, EVERYTHING) is None


def test_run_leaves_its_record(tmp_path):
    now = Finished(3, 1)
    with recorded_run(tmp_path, COMMAND, 2, now):
        now.work = EVERYTHING
    (run,) = runs(tmp_path)
    assert run.pop("seconds") >= 0
    counts = {"before": {"stages": 3, "evaluations": 1}, "after": {"stages": 8, "evaluations": 6}}
    assert run == {"command": COMMAND, "jobs": 2, "complete": True, **counts}


@pytest.mark.parametrize("ends", [KeyboardInterrupt(), WorkError("1 of 5 tasks failed")])
def test_run_that_does_not_come_to_its_end_leaves_its_record_too(tmp_path, ends):
    now = Finished(0, 0)
    with pytest.raises(type(ends)), recorded_run(tmp_path, COMMAND, 2, now):
        now.work = Work(2, 1)
        raise ends
    (run,) = runs(tmp_path)
    assert (run["complete"], run["after"]) == (False, {"stages": 2, "evaluations": 1})


def test_run_that_is_killed_has_left_its_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WRITE_SECONDS", 0.01)
    with recorded_run(tmp_path, COMMAND, 2, Finished(0, 0)):
        deadline = time.monotonic() + 10
        while not (found := runs(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert [(run["complete"], run["after"]) for run in found] == [(False, None)]
    assert found[0]["seconds"] >= 0.01


def test_run_with_nothing_to_do_leaves_none(tmp_path):
    with recorded_run(tmp_path, COMMAND, 2, Finished(8, 6)):
        pass
    assert not list(tmp_path.iterdir())


def test_disk_that_takes_no_record_does_not_hide_how_the_work_ended(tmp_path):
    (tmp_path / FOLDER).write_text("in the way")
    now = Finished(0, 0)
    with pytest.raises(WorkError, match="tasks failed"), recorded_run(tmp_path, COMMAND, 2, now):
        now.work = Work(2, 1)
        raise WorkError("1 of 5 tasks failed")


def test_comparison_says_what_it_took_in_its_page_and_its_data(tmp_path, monkeypatch):
    read_once(monkeypatch)
    monkeypatch.setattr("posttrain.lab.comparison.draw_plots", lambda folder, table, entries: [])
    plans = finished(tmp_path, ["dpo"])
    folder = tmp_path / "nano"
    assert write_comparison(folder, plans, [], [], COMMAND).plain["took"] is None
    record(folder, 0, before=(1, 0), after=(4, 3), complete=True, seconds=65.0)
    said = "Done in 1:05, 2 at a time: 3 stages and 3 evaluations; 1 stage and 0 evaluations were reused."
    for _ in range(2):  # the second has nothing left to do
        write_comparison(folder, plans, [], [], COMMAND)
        assert json.loads((folder / "comparison.json").read_text())["took"] == {
            "seconds": 65.0,
            "runs": 1,
            "jobs": [2],
            "done": {"stages": 3, "evaluations": 3},
            "reused": {"stages": 1, "evaluations": 0},
            "sentence": said,
        }
        assert f"{said}\n" in (folder / "comparison.md").read_text()
