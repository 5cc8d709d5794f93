"""Runs the tasks of plans on worker processes, with the cores shared out among them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from posttrain.core.errors import PosttrainError, RequestError
from posttrain.core.files import disk_errors
from posttrain.core.process import PARENT_VARIABLE, end_process
from posttrain.core.runs import refuse_unwritable
from posttrain.lab.estimates import peak_memory
from posttrain.lab.machine import free_memory, usable_cores
from posttrain.lab.pipeline import run_services
from posttrain.lab.plan import Plan
from posttrain.lab.recipe import Recipe
from posttrain.lab.run_services import RunServices
from posttrain.lab.schedule import Ended, run_tasks
from posttrain.lab.services import service_url
from posttrain.lab.tasks import Task
from posttrain.lab.worker import Job

ASSUMED_PEAK_BYTES = 2 * 2**30
"""Memory of a task with its services where no run of the recipe says: a little more than the nano recipe's 1.7 GiB."""


def jobs_and_threads(recipe: Recipe, jobs: int | None, runs: Path) -> tuple[int, int]:
    """How many tasks run side by side, and with how many threads each.

    A model that fits a laptop gains more from another task on the second core than from a second thread: one thread a
    task, one task a core. With a GPU, whose work does not divide so, and where POLICY_URL names the one service that
    all would push to, one task at a time with all cores. Fewer, which is told, where memory is short for the highest
    peak of the recipe's finished `runs`. RequestError for more than one with POLICY_URL.
    """
    if jobs and jobs > 1 and service_url("policy"):
        raise RequestError(
            f"--jobs {jobs}: tasks side by side would push their weights over each other's to the service in "
            "POLICY_URL; leave --jobs out, or unset POLICY_URL, and every task has a service of its own"
        )
    cores = usable_cores()
    if jobs is not None:
        return jobs, recipe.threads or max(1, cores // jobs)
    jobs = 1 if _has_gpu() or service_url("policy") else max(1, cores // (recipe.threads or 1))
    # Threads as if memory were no matter: it differs from day to day, and another number of them gives other digits.
    return _within_memory(jobs, peak_memory(runs, recipe)), recipe.threads or max(1, cores // jobs)


def _within_memory(jobs: int, known: int | None) -> int:
    """As many of these tasks as have their peak in memory that is free, at least one."""
    free, peak = free_memory(), known or ASSUMED_PEAK_BYTES
    fit = max(1, min(jobs, free // peak))
    if fit < jobs:
        whence = "the most that a run here took" if known else "assumed, no run here says"
        print(
            f"{fit} at a time, not {jobs}: {free / 2**30:.1f} GiB of memory are free, and a task takes "
            f"{peak / 2**30:.1f} GiB ({whence}); --jobs N says otherwise",
            file=sys.stderr,
        )
    return fit


def run_jobs(
    tasks: Sequence[Task],
    root: Path,
    jobs: int,
    estimate: Mapping[str, float],
    trackers: Sequence[str] = (),
    on_tasks: bool = True,
    ended: Ended | None = None,
) -> None:
    """Does what is not done, and tells `ended` of it; see posttrain.lab.schedule.

    `on_tasks`: evaluate rows on the recipe's tasks as well. RequestError, before anything is done, for a policy service
    that cannot be trained with.
    """
    open_tasks = [task for task in tasks if not task.finished]
    refuse_unwritable(root)
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)

    def job(task: Task) -> Job:
        row = task.joined or next((row for row in task.plan.rows if row.name == task.row), None)
        return Job(
            recipe=task.plan.recipe.model_dump(mode="json"),
            arm=task.plan.method,
            seed=task.seed,
            runs=str(root),
            stage=task.stage,
            row=row.identity.fingerprint if row else None,
            joins=(task.joined.name, str(task.joined.run.path)) if task.joined else (),
            on_tasks=on_tasks,
            trackers=tuple(trackers),
        )

    if any(stage.samples and not stage.run.finished for task in open_tasks for stage in task.plan.stages):
        with run_services(open_tasks[0].plan, root) as services:
            services.refuse_unfit_policy()
    with ExitStack() as stack:
        slots = [stack.enter_context(WorkerSlot(place, job)) for place in range(min(jobs, len(open_tasks)))]
        run_tasks(tasks, slots, estimate, ended)


class WorkerSlot:
    """A place for one worker after the other, with a pair of services that they share; use it as a context manager.

    A service costs as much to start as a short stage. A seed's reward model stays in it as long as its tasks come.
    """

    STOP_SECONDS = 15.0

    def __init__(self, place: int, job: Callable[[Task], Job]) -> None:
        self._place, self._job = place, job
        self._services: RunServices | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._starting, self._stopped = threading.Lock(), False
        self._stack = ExitStack()

    def __enter__(self) -> "WorkerSlot":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def do(self, task: Task) -> str | None:
        """Has a worker do the task; why it failed, with the place of its log."""
        try:
            problem = self._work(task)
        except PosttrainError as error:
            problem = str(error)
        if problem and not self._stopped:
            # It may have been the services; the next task must not fail for them as well.
            self._stack.close()
            self._services = None
        return problem

    def _work(self, task: Task) -> str | None:
        job = self._job(task)
        if task.samples or task.scores:
            services = self._services_of(task.plan)
            lent = services.lend(
                (task.adapts or task.plan.reference.checkpoint) if task.samples else None,
                task.scores,
                _model(task.plan) if task.learned else None,
                adapter=task.adapts is not None,
            )
            job = replace(job, policy_url=lent.policy, reward_url=lent.reward, services=lent.pids)
        name = "".join(c if c.isalnum() else "-" for c in task.label)
        log = task.run.path / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{name}.log"
        with disk_errors(log):
            log.parent.mkdir(parents=True, exist_ok=True)
        # Threads that spin while they wait take the core from the task beside them.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, PARENT_VARIABLE: str(os.getpid())}
        if threads := task.plan.recipe.threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        with disk_errors(log), open(log, "wb") as file, self._starting:
            if self._stopped:
                return "stopped"
            self._process = subprocess.Popen(
                job.command(), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment
            )
        status = self._process.wait()
        return None if status == 0 else f"{_reason(status, log)} (log: {log})"

    def stop(self) -> None:
        """Ends the worker that runs; none is started any more."""
        with self._starting:
            self._stopped = True
        if self._process is None or self._process.poll() is not None:
            return
        end_process(self._process, self.STOP_SECONDS)

    def _services_of(self, plan: Plan) -> RunServices:
        if self._services is None:
            # Another comparison in the same runs folder has places of the same numbers.
            logs = plan.last.run.root / plan.recipe.name / "logs" / f"{os.getpid()}-{self._place}"
            self._services = self._stack.enter_context(run_services(plan, logs))
        return self._services


def _model(plan: Plan) -> Path | None:
    """The seed's reward model, once there is one."""
    return plan.reward_model if plan.reward_model and plan.reward_model.exists() else None


def _reason(status: int, log: Path) -> str:
    """Why a worker ended with that exit status: the signal, or what it said last."""
    if status == -signal.SIGKILL:
        return "ended by SIGKILL, as the system does when memory runs out"
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (told or lines or ["it ended without a word"])[-1]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
