"""Runs the tasks of plans on worker processes, with the cores shared out among them."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from posttrain.core.process import PARENT_VARIABLE
from posttrain.lab.pipeline import run_services
from posttrain.lab.plan import Plan
from posttrain.lab.recipe import Recipe
from posttrain.lab.run_services import RunServices
from posttrain.lab.schedule import run_tasks
from posttrain.lab.services import service_url
from posttrain.lab.tasks import Task
from posttrain.lab.worker import Job


def jobs_and_threads(recipe: Recipe, jobs: int | None) -> tuple[int, int]:
    """How many tasks run side by side, and with how many threads each.

    A model that fits a laptop gains more from another task on the second core than from a second thread: one thread a
    task, one task a core. With a GPU, whose work does not divide so, and where POLICY_URL names the one service that
    all would push to, one task at a time with all cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if jobs is None:
        jobs = 1 if _has_gpu() or service_url("policy") else max(1, cores // (recipe.threads or 1))
    return jobs, recipe.threads or max(1, cores // jobs)


def run_jobs(
    tasks: Sequence[Task],
    recipe: str,
    overrides: Callable[[Plan], Sequence[str]],
    root: Path,
    jobs: int,
    estimate: Mapping[str, float],
    trackers: Sequence[str] = (),
    on_tasks: bool = True,
) -> None:
    """Does what is not done; see posttrain.lab.schedule.

    `overrides` gives what was put into the recipe for a plan. `on_tasks`: evaluate rows on the recipe's tasks as well.
    """

    def job(task: Task) -> Job:
        return Job(
            recipe=recipe,
            overrides=tuple(overrides(task.plan)),
            arm=task.plan.method,
            seed=task.seed,
            runs=str(root),
            stage=task.stage,
            row=task.row,
            on_tasks=on_tasks,
            trackers=tuple(trackers),
        )

    number = min(jobs, sum(not task.finished for task in tasks))
    with ExitStack() as stack:
        slots = [stack.enter_context(WorkerSlot(place, job)) for place in range(number)]
        run_tasks(tasks, slots, estimate)


class WorkerSlot:
    """A place for one worker after the other, with a pair of services that they share; use it as a context manager.

    A service costs as much to start as a short stage. A seed's reward model stays in it as long as its tasks come.
    """

    STOP_SECONDS = 15.0

    def __init__(self, place: int, job: Callable[[Task], Job]) -> None:
        self._place, self._job = place, job
        self._services: RunServices | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "WorkerSlot":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def do(self, task: Task) -> str | None:
        """Has a worker do the task; why it failed, with the place of its log."""
        job = self._job(task)
        if task.served:
            policy, reward = self._services_of(task.plan).addresses(task.plan.reference.checkpoint, _model(task.plan))
            job = replace(job, policy_url=policy, reward_url=reward, services=self._services_of(task.plan).pids)
        name = "".join(c if c.isalnum() else "-" for c in task.label)
        log = task.run.path / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        # Threads that spin while they wait take the core from the task beside them.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, PARENT_VARIABLE: str(os.getpid())}
        if threads := task.plan.recipe.threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        with open(log, "wb") as file:
            self._process = subprocess.Popen(job.command(), stdout=file, stderr=subprocess.STDOUT, env=environment)
        status = self._process.wait()
        if status == 0:
            return None
        died = f"ended by {signal.Signals(-status).name}" if status < 0 else _last_line(log)
        return f"{died} (log: {log})"

    def stop(self) -> None:
        """Ends the worker that runs."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(self.STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _services_of(self, plan: Plan) -> RunServices:
        if self._services is None:
            logs = plan.last.run.root / plan.recipe.name / "logs" / str(self._place)
            self._services = self._stack.enter_context(run_services(plan, logs))
        return self._services


def _model(plan: Plan) -> Path | None:
    """The seed's reward model, once there is one."""
    return plan.reward_model if plan.reward_model and plan.reward_model.exists() else None


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "it ended without a word"


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
