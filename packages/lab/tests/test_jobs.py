"""Workers in their slots: how they end is told, and nothing of them is left."""

import errno
import json
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from posttrain.core.config import validate
from posttrain.core.errors import RequestError, WorkError
from posttrain.core.runs import RunDirectory
from posttrain.lab import jobs as jobs_module
from posttrain.lab.graph import plan_training
from posttrain.lab.jobs import WorkerSlot, jobs_and_threads, run_jobs
from posttrain.lab.recipe import Recipe, load_recipe, recipe_path
from posttrain.lab.run_services import Lent
from posttrain.lab.tasks import Task, tasks_of
from posttrain.lab.worker import Job, do

NANO = load_recipe("nano", ["threads=1"])


@dataclass(frozen=True)
class Script(Job):
    """A job that runs a line of Python."""

    code: str = ""

    def command(self) -> list[str]:
        return [sys.executable, "-c", self.code]


class FakeServices:
    """Counts how often a pair of services was begun, and knows who uses them."""

    def __init__(self) -> None:
        self.begun = self.closed = 0
        self.refuses: Exception | None = None
        self.starts: Exception | None = None

    def __enter__(self) -> "FakeServices":
        self.begun += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.closed += 1

    def lend(self, checkpoint: Any, scores: bool, model: Any, adapter: bool) -> Lent:
        if self.starts:
            raise self.starts
        self.asked = (bool(checkpoint), scores, model)
        self.started_with = (checkpoint, adapter)
        return Lent("http://policy", f"http://reward/{model}", (11, 12))

    def refuse_unfit_policy(self) -> None:
        if self.refuses:
            raise self.refuses


@pytest.fixture
def services(monkeypatch) -> FakeServices:
    fake = FakeServices()
    monkeypatch.setattr(jobs_module, "run_services", lambda plan, logs: fake)
    return fake


def task(tmp_path, key="dpo", row=None, samples=False, reward_sources=(), adapter=False):
    run = RunDirectory(tmp_path / "nano" / "dpo" / key)
    stage = SimpleNamespace(
        identity=SimpleNamespace(fingerprint=key),
        samples=samples,
        reward_sources=reward_sources,
        trains_adapter=adapter,
        start=tmp_path / "start",
        run=run,
        method="dpo",
    )
    plan = SimpleNamespace(
        seed=0,
        method="dpo",
        recipe=NANO,
        stages=(stage,),
        rows=(),
        last=stage,
        reference=SimpleNamespace(checkpoint=tmp_path / "sft"),
        reward_model=None,
    )
    return Task(key, f"{key}, seed 0", ("dpo",), cast("Any", plan), run, frozenset(), False, stage=key, row=row)


def script(code: str):
    return lambda task: Script({}, "dpo", 0, "runs", task.stage, task.row, code=code)


def done(tmp_path, code: str, **options) -> str | None:
    with WorkerSlot(0, script(code)) as slot:
        return slot.do(task(tmp_path, **options))


def test_a_worker_that_ends_well_has_no_reason(tmp_path):
    assert done(tmp_path, "print('all good')") is None
    (log,) = (tmp_path / "nano" / "dpo" / "dpo" / "logs").glob("*-dpo--seed-0.log")
    assert log.read_text() == "all good\n"


def test_a_worker_that_raises_is_told_with_its_last_line_and_its_log(tmp_path):
    reason = done(tmp_path, "print('step 1'); raise ValueError('no such column')")
    (log,) = tmp_path.rglob("*.log")
    assert reason == f"ValueError: no such column (log: {log})"
    assert "Traceback" in log.read_text()


def test_an_error_of_ours_is_told_even_if_something_is_said_after_it(tmp_path):
    code = "import sys; print('error: data.path is missing'); print('a warning at the end'); sys.exit(2)"
    reason = done(tmp_path, code)
    assert reason is not None
    assert reason.startswith("data.path is missing (log: ")


def test_a_worker_that_says_nothing_is_told_so(tmp_path):
    reason = done(tmp_path, "import os; os._exit(3)")
    assert reason is not None
    assert reason.startswith("it ended without a word (log: ")


@pytest.mark.parametrize(
    ("by", "told"),
    [
        (signal.SIGKILL, "ended by SIGKILL, as the system does when memory runs out (log: "),
        (signal.SIGSEGV, "ended by SIGSEGV (log: "),
    ],
)
def test_a_worker_that_a_signal_ended_is_told_so_with_its_log(tmp_path, by, told):
    reason = done(tmp_path, f"import os; os.kill(os.getpid(), {int(by)})")
    assert reason is not None
    assert reason.startswith(told)


def test_a_worker_has_its_threads_and_reads_nothing_of_the_terminal(tmp_path):
    code = "import os, sys; assert os.environ['OMP_NUM_THREADS'] == '1'; assert sys.stdin.read() == ''"
    assert done(tmp_path, code) is None


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path, monkeypatch):
    def refuse(self: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    reason = done(tmp_path, "")
    assert reason is not None
    assert reason.startswith(f"cannot write {tmp_path}")
    assert ": Permission denied; make it writable" in reason


def test_stop_ends_the_worker(tmp_path):
    with WorkerSlot(0, script("import time; print('up', flush=True); time.sleep(60)")) as slot:
        reasons: list[str | None] = []
        thread = threading.Thread(target=lambda: reasons.append(slot.do(task(tmp_path))))
        thread.start()
        while not any(log.read_text() for log in tmp_path.rglob("*.log")):
            time.sleep(0.02)
        slot.stop()
        thread.join(5)
    assert not thread.is_alive()
    assert not _children()


def test_nothing_starts_in_a_slot_that_was_stopped(tmp_path):
    with WorkerSlot(0, script("open('started', 'w')")) as slot:
        slot.stop()
        assert slot.do(task(tmp_path)) == "stopped"
    assert not _children()


def _children() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]


def test_a_slot_starts_its_services_once_for_all_tasks_that_need_them(tmp_path, services):
    with WorkerSlot(0, script("")) as slot:
        slot.do(task(tmp_path, "sft"))
        assert services.begun == 0
        slot.do(task(tmp_path, "rm", samples=True))
        slot.do(task(tmp_path, "dpo", row="dpo"))
        assert (services.begun, services.closed) == (1, 0)
    assert services.closed == 1


def test_a_stage_that_trains_an_adapter_is_lent_a_policy_service_of_its_own_start(tmp_path, services):
    with WorkerSlot(0, script("")) as slot:
        slot.do(task(tmp_path, "ppo", samples=True))
        assert services.started_with == (tmp_path / "sft", False)
        slot.do(task(tmp_path, "ppo", samples=True, adapter=True))
        assert services.started_with == (tmp_path / "start", True)


def test_a_job_is_told_its_services_and_their_processes(tmp_path, services):
    told: list[Job] = []

    class Told(Script):
        def command(self) -> list[str]:
            told.append(self)
            return super().command()

    with WorkerSlot(0, lambda task: Told({}, "dpo", 0, "runs", None, task.row, code="")) as slot:
        slot.do(task(tmp_path, row="dpo"))
    assert (told[0].policy_url, told[0].reward_url, told[0].services) == (
        "http://policy",
        "http://reward/None",
        (11, 12),
    )


def test_a_task_that_failed_leaves_the_next_one_new_services(tmp_path, services):
    with WorkerSlot(0, script("raise ValueError")) as slot:
        slot.do(task(tmp_path, row="dpo"))
        assert services.closed == 1
        slot.do(task(tmp_path, row="dpo"))
    assert (services.begun, services.closed) == (2, 2)


def test_services_that_do_not_start_fail_the_task_in_their_own_words(tmp_path, services):
    services.starts = WorkError("the policy service did not start: no such model (log: x)")
    assert done(tmp_path, "", row="dpo") == "the policy service did not start: no such model (log: x)"


def test_a_policy_service_that_cannot_be_trained_with_is_refused_before_anything_is_done(tmp_path, services):
    services.refuses = RequestError("stock vLLM cannot be trained with")
    with pytest.raises(RequestError, match="stock vLLM"):
        run_jobs([task(tmp_path, samples=True)], tmp_path / "runs", 1, {})
    assert not list(tmp_path.rglob("*.log"))


def test_a_runs_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(RequestError, match="runs is a file; name a folder"):
        run_jobs([], tmp_path / "runs" / "below", 1, {})


def test_a_runs_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(WorkError, match=r"cannot write (to )?.*runs"):
        run_jobs([], tmp_path / "runs", 1, {})


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(jobs_module, "usable_cores", lambda: 4)
    monkeypatch.setattr(jobs_module, "free_memory", lambda: 64 * 2**30)
    monkeypatch.setattr(jobs_module, "_has_gpu", lambda: False)
    monkeypatch.delenv("POLICY_URL", raising=False)


@pytest.mark.parametrize(
    ("threads", "jobs", "expected"),
    [
        (None, None, (4, 1)),  # one task a core, with one thread
        (None, 2, (2, 2)),
        (None, 8, (8, 1)),
        (2, None, (2, 2)),  # the recipe's threads, and as many tasks as have them
        (8, None, (1, 8)),
        (1, 1, (1, 1)),
    ],
)
def test_cores_are_shared_out_among_tasks(four_cores, tmp_path, threads, jobs, expected):
    recipe = load_recipe("nano", [f"threads={threads}"] if threads else [])
    assert jobs_and_threads(recipe, jobs, tmp_path) == expected


@pytest.mark.parametrize(
    ("free", "jobs", "told"),
    [
        (8.0, 4, ""),
        (
            7.9,
            3,
            "3 at a time, not 4: 7.9 GiB of memory are free, and a task takes 2.0 GiB (assumed, no run here",
        ),
        (0.1, 1, "1 at a time, not 4: 0.1 GiB of memory are free"),
    ],
)
def test_no_more_tasks_than_memory_is_free_for(four_cores, tmp_path, monkeypatch, capsys, free, jobs, told):
    monkeypatch.setattr(jobs_module, "free_memory", lambda: int(free * 2**30))
    # The threads stay: a task gives the same digits on a day with less memory.
    assert jobs_and_threads(load_recipe("nano"), None, tmp_path) == (jobs, 1)
    assert capsys.readouterr().err.startswith(told)
    assert jobs_and_threads(load_recipe("nano"), 4, tmp_path) == (4, 1)  # who says how many is believed


def test_memory_of_a_task_is_the_most_that_a_run_here_took(four_cores, tmp_path, monkeypatch, capsys):
    for number, peak in enumerate((1, 3)):
        run = RunDirectory(tmp_path / "nano" / "dpo" / str(number))
        run.finish({"cost": {"wall_seconds": 1.0, "peak_memory_bytes": peak * 2**30}})
    monkeypatch.setattr(jobs_module, "free_memory", lambda: 8 * 2**30)
    assert jobs_and_threads(load_recipe("nano"), None, tmp_path) == (2, 1)
    assert "a task takes 3.0 GiB (the most that a run here took); --jobs N" in capsys.readouterr().err


def test_with_a_gpu_one_task_at_a_time_has_all_cores(four_cores, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs_module, "_has_gpu", lambda: True)
    assert jobs_and_threads(load_recipe("nano"), None, tmp_path) == (1, 4)


def test_one_policy_service_for_all_forces_one_task_at_a_time(four_cores, tmp_path, monkeypatch):
    monkeypatch.setenv("POLICY_URL", "http://127.0.0.1:1")
    assert jobs_and_threads(load_recipe("nano"), None, tmp_path) == (1, 4)
    assert jobs_and_threads(load_recipe("nano"), 1, tmp_path) == (1, 4)
    with pytest.raises(RequestError, match="--jobs 2: .* POLICY_URL; leave --jobs out"):
        jobs_and_threads(load_recipe("nano"), 2, tmp_path)


@pytest.mark.parametrize(
    ("asks", "needed"),
    [
        ({"samples": True}, (True, False, None)),  # a reward model is trained without a reward service
        ({"samples": True, "reward_sources": ("verifier",)}, (True, True, None)),
        ({"reward_sources": ("rm",)}, (False, True, "model")),
        ({"row": "dpo"}, (True, True, "model")),
    ],
)
def test_a_task_starts_the_services_that_it_asks_for(tmp_path, services, asks, needed):
    asking = task(tmp_path, **asks)
    model = tmp_path / "model"
    model.mkdir()
    cast("Any", asking.plan).reward_model = model
    with WorkerSlot(0, script("")) as slot:
        slot.do(asking)
    assert services.asked == (*needed[:2], model if needed[2] else None)


@pytest.mark.parametrize("arm", [*NANO.compared(), *NANO.variants])
def test_a_worker_plans_from_the_recipe_as_it_was_told_what_was_planned(tmp_path, arm):
    told = json.loads(json.dumps(NANO.model_dump(mode="json")))
    again = plan_training(validate(Recipe, told, "told"), arm, 0, tmp_path, {}, True)
    planned = plan_training(NANO, arm, 0, tmp_path, {}, True)
    assert [stage.identity.fingerprint for stage in again.stages] == [
        stage.identity.fingerprint for stage in planned.stages
    ]
    assert [row.name for row in again.rows] == [row.name for row in planned.rows]


def test_a_job_keeps_the_recipe_that_was_planned_when_its_file_changes(tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    file.write_text(recipe_path("nano").read_text())
    (planned,) = [plan_training(load_recipe(str(file)), "dpo", 0, tmp_path / "runs", {}, True)]
    file.write_text(file.read_text().replace("name: nano", "name: other"))
    jobs: list[Job] = []
    monkeypatch.setattr(jobs_module, "run_tasks", lambda tasks, slots, *_: jobs.append(slots[0]._job(tasks[-1])))
    run_jobs(tasks_of([planned]), tmp_path / "runs", 1, {})
    assert jobs[0].recipe["name"] == "nano"
    assert jobs[0].row == planned.last.identity.fingerprint


@pytest.mark.parametrize("which", [{"stage": "0" * 64}, {"row": "0" * 64}])
def test_a_worker_whose_plan_is_another_says_so_and_does_nothing(tmp_path, which):
    job = Job(NANO.model_dump(mode="json"), "dpo", 0, str(tmp_path / "runs"), **{"stage": None, "row": None, **which})
    with pytest.raises(WorkError, match="of dpo changed since it was planned; start the same command again"):
        do(job)
    assert not (tmp_path / "runs").exists()
