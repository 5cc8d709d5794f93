"""Runs a plan: every stage that is not finished, then every evaluation that is not there.

Stages and evaluations that are finished are reused; an unfinished stage resumes. Services are started when the first
stage needs them and end with the run, however it ends.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.core.runs import RunDirectory
from posttrain.lab.conditions import stage_conditions
from posttrain.lab.evaluations import ensure_evaluated, is_evaluated
from posttrain.lab.plan import Plan, Row, Stage
from posttrain.lab.policy_measures import ensure_measured, policy_items
from posttrain.lab.run_services import RunServices
from posttrain.lab.services import service_url
from posttrain.trainers.provenance import environment
from posttrain.trainers.stage import StageInputs, run_stage


@dataclass(frozen=True)
class Options:
    """How to run, apart from what."""

    fresh: bool = False
    """Start the stage that was asked for over, finished or not."""
    trackers: tuple[str, ...] = ()
    """Where metrics go besides metrics.jsonl."""
    services: tuple[int, ...] = ()
    """Process ids of services that others started for this run: their cost is counted with the run's."""
    wait: bool = False
    """Wait for another process that trains the same stage and use what it made, rather than refuse."""


def run_plan(plan: Plan, options: Options) -> None:
    """Makes everything that the plan's table needs; WorkError or RequestError when something cannot be done."""
    if options.fresh:
        _remove(plan.last.run)
    record_base(plan)
    with run_services(plan, plan.last.run.path / "logs") as services:
        if any(stage.samples and not stage.run.finished for stage in plan.stages):
            services.refuse_unfit_policy()
        for number, stage in enumerate(plan.stages, start=1):
            label = f"[{number}/{len(plan.stages)}] {stage.method} {stage.identity.fingerprint[:12]}"
            if stage.run.finished:
                print(f"{label}: finished, reused", file=sys.stderr)
                continue
            print(f"{label}: {'resuming' if stage.run.state.exists() else 'starting'}", file=sys.stderr)
            run_one(plan, stage, services, options)
        for row in plan.rows:
            print(f"evaluating {row.name}", file=sys.stderr)
            finish_row(plan, row, services)


def run_services(plan: Plan, logs: Path) -> RunServices:
    """The services of a plan, as its recipe and the environment say."""
    recipe = plan.recipe
    return RunServices(
        logs,
        recipe.sources,
        recipe.threads,
        service_url("policy"),
        service_url("reward"),
        recipe.engine,
        recipe.vllm,
        # What is trained in bf16 is saved in fp32, which the policy service would compute in: twice the time.
        "bfloat16" if recipe.precision == "bf16" else "auto",
    )


def finish_row(plan: Plan, row: Row, services: RunServices) -> None:
    """Evaluates and measures what stands in a row, as far as that is not done."""
    ensure_evaluated(row, plan, services)
    ensure_measured(row, plan, services)


def is_finished(plan: Plan, row: Row, on_tasks: bool = True) -> bool:
    """Whether nothing is left to do for a row."""
    evaluated = not on_tasks or is_evaluated(row, plan.recipe.evaluation)
    return row.run.finished and evaluated and policy_items(row, plan).exists()


def run_one(plan: Plan, stage: Stage, services: RunServices, options: Options) -> None:
    """One stage, whose parents are finished."""
    reward_model = plan.reward_model if plan.reward_model and plan.reward_model.exists() else None
    inputs = StageInputs(
        run=stage.run,
        seed=plan.seed,
        start=stage.start,
        reference=stage.reference,
        source=stage.source,
        validation=stage.validation,
        policy=services.policy(stage.start, stage.trains_adapter) if stage.samples else None,
        reward=services.reward(reward_model) if stage.reward_sources else None,
        trackers=options.trackers,
        threads=plan.recipe.threads,
    )
    record = _record(plan, stage)
    run_stage(stage.method, stage.settings, inputs, stage.identity, record, options.services, options.wait)


def _record(plan: Plan, stage: Stage) -> dict[str, Any]:
    """What provenance keeps beside the stage's own: what it shares with other rows, and what it is an arm of."""
    record: dict[str, Any] = {"conditions": dict(stage_conditions(plan, stage))}
    arm = next((row.arm for row in plan.rows if row.arm and row.identity == stage.identity), None)
    if arm:
        record["arm"] = {"name": arm.row_name, "learns_from": arm.learns_from, "trials": arm.trials}
    return record


def record_base(plan: Plan) -> None:
    """The base has a directory for its evaluation, and provenance like everybody; its weights stay where they are."""
    row = plan.rows[0]
    if row.run.finished:
        return
    with row.run.lock(wait=True):
        if row.run.finished:  # by another process meanwhile
            return
        row.run.finish(
            {
                "stage": "base",
                "model": plan.base.name,
                "config_hash": row.identity.config_hash,
                "fingerprint": row.identity.fingerprint,
                **plan.base.definition(),
                "conditions": {"base.revision": plan.base.revision, "base.digest": plan.base.digest},
                "environment": environment(plan.recipe.threads),
            }
        )


def _remove(run: RunDirectory) -> None:
    if not run.path.exists():
        return
    with run.lock():
        shutil.rmtree(run.path)
