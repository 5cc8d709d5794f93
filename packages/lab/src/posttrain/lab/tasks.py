"""The work of a comparison as tasks that can run side by side: shared stages once, then each row.

Pure planning over the plans of all arms and seeds. A task is done by a process of its own (posttrain.lab.worker).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.core.runs import RunDirectory
from posttrain.lab.arms import LEARNED
from posttrain.lab.pipeline import is_finished
from posttrain.lab.plan import Plan, Row, Stage
from posttrain.lab.policy_measures import policy_items

EVALUATION = "evaluation"


@dataclass(frozen=True)
class Task:
    """One stage to train, or one row to train, evaluate and measure."""

    key: str
    label: str
    """What people read: `dpo, seed 1`."""
    work: tuple[str, ...]
    """What its time is estimated by: the stage's method, `evaluation`, or both."""
    plan: Plan
    """A plan that has it."""
    run: RunDirectory
    needs: frozenset[str]
    """Keys of the tasks that must be done before it."""
    finished: bool
    stage: str | None = None
    """Fingerprint of the stage to train."""
    row: str | None = None
    """Name of the row to evaluate and measure afterwards."""
    amount: float = 1.0
    """How much its stage does, as `amount_of` counts."""
    joined: Row | None = None
    """The row, where it is no plan's but another finished run's."""
    most_seconds: float | None = None
    """When its stage's budget ends it."""

    @property
    def seed(self) -> int:
        """Its plan's."""
        return self.plan.seed

    @property
    def samples(self) -> bool:
        """Whether it needs the policy service: a stage that samples, and every row's measurement."""
        return self.row is not None or any(stage.samples for stage in self._stage)

    @property
    def adapts(self) -> Path | None:
        """The checkpoint that its stage's adapter is for, if it trains one."""
        return next((stage.start for stage in self._stage if stage.trains_adapter), None)

    @property
    def scores(self) -> bool:
        """Whether it needs the reward service: a stage that asks for a reward, and every row's measurement."""
        return self.row is not None or any(stage.reward_sources for stage in self._stage)

    @property
    def learned(self) -> bool:
        """Whether the reward service must hold the seed's reward model."""
        return self.row is not None or any(LEARNED in stage.reward_sources for stage in self._stage)

    @property
    def _stage(self) -> list[Stage]:
        return [each for each in self.plan.stages if each.identity.fingerprint == self.stage]


def tasks_of(plans: Sequence[Plan], rows: Collection[str] | None = None, on_tasks: bool = True) -> list[Task]:
    """The tasks of all plans, each once, in an order in which every task follows what it needs.

    `rows` names those that are wanted, None for all; `on_tasks` says whether they are evaluated on the tasks, or
    measured on the validation prompts only.

    A row's own stage and its evaluation are one task, so that a process starts once for both; but where other tasks
    build on the stage, or it could begin before the reward model that its row is measured with, they are two.
    """
    tasks: dict[str, Task] = {}
    stages = [stage for plan in plans for stage in plan.stages]
    built_on = {parent.fingerprint for stage in stages for parent in stage.identity.parents}
    finished = {stage.identity.fingerprint for stage in stages if stage.run.finished}
    for plan in plans:
        wanted = [row for row in plan.rows if rows is None or row.name in rows]
        own = {row.identity.fingerprint: row for row in wanted}
        measured_with = _measured_with(plan)
        for stage in plan.stages:
            fingerprint = stage.identity.fingerprint
            needs = frozenset(parent.fingerprint for parent in stage.identity.parents) & {
                each.identity.fingerprint for each in plan.stages
            }
            waits = measured_with - needs - finished
            together = fingerprint in own and fingerprint not in built_on and not waits
            if not together:
                task = Task(
                    fingerprint,
                    f"{own[fingerprint].name if fingerprint in own else stage.method}, seed {plan.seed}",
                    (stage.method,),
                    plan,
                    stage.run,
                    needs,
                    stage.run.finished,
                    stage=fingerprint,
                    **_extent(stage),
                )
                tasks.setdefault(task.key, task)
        for row in wanted:
            _add_row(tasks, plan, row, measured_with, on_tasks)
    return list(tasks.values())


def _add_row(tasks: dict[str, Task], plan: Plan, row: Row, measured_with: frozenset[str], on_tasks: bool) -> None:
    fingerprint = row.identity.fingerprint
    stage = next((each for each in plan.stages if each.identity.fingerprint == fingerprint), None)
    apart = stage is None or fingerprint in tasks
    key = f"{fingerprint}/{plan.seed}"  # the base has one fingerprint, and is measured against every seed's SFT
    needs = {parent.fingerprint for parent in row.identity.parents} & set(tasks) | measured_with
    if apart and stage:
        needs.add(fingerprint)
    if on_tasks:  # another seed's base is the same evaluation: one task does it, the others need not wait in a worker
        needs |= set([each.key for each in tasks.values() if each.row and each.run == row.run][:1]) - {key}
    task = Task(
        key,
        f"{row.name}, seed {plan.seed}{': evaluation' if apart else ''}",
        (EVALUATION,) if apart or stage is None else (stage.method, EVALUATION),
        plan,
        row.run,
        frozenset(needs),
        is_finished(plan, row, on_tasks),
        stage=None if apart else fingerprint,
        row=row.name,
        **({} if apart or stage is None else _extent(stage)),
    )
    tasks.setdefault(key, task)


def joining_tasks(joined: Sequence[tuple[Row, Plan]]) -> list[Task]:
    """Measures rows of other finished runs against each seed's plan, once that has what they are measured with."""
    return [
        Task(
            f"{row.identity.fingerprint}/{plan.seed}",
            f"{row.name}, seed {plan.seed}: evaluation",
            (EVALUATION,),
            plan,
            row.run,
            _measured_with(plan),
            policy_items(row, plan).exists(),
            row=row.name,
            joined=row,
        )
        for row, plan in joined
    ]


def amount_of(settings: Mapping[str, Any]) -> float:
    """How much a stage with these settings does, to compare stages of one method: its steps, else its epochs, of which
    it does the share `length`."""
    return settings.get("length", 1.0) * settings.get("steps", settings.get("epochs", 1))


def _extent(stage: Stage) -> dict[str, Any]:
    settings = stage.settings.model_dump()
    return {"amount": amount_of(settings), "most_seconds": settings.get("max_seconds")}


def _measured_with(plan: Plan) -> frozenset[str]:
    """The stages that every row's KL and learned reward are measured with."""
    wanted = {LEARNED, plan.reference.identity.stage}
    return frozenset(stage.identity.fingerprint for stage in plan.stages if stage.method in wanted)
