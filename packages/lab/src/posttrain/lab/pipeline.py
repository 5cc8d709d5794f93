"""Runs a plan: every stage that is not finished, then every evaluation that is not there.

Stages and evaluations that are finished are reused; an unfinished stage resumes. Services are started when the first
stage needs them and end with the run, however it ends.
"""

import shutil
import sys
from dataclasses import dataclass

from posttrain.core.runs import RunDirectory
from posttrain.lab.evaluations import ensure_evaluated
from posttrain.lab.graph import Plan, Stage
from posttrain.lab.policy_measures import ensure_measured
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


def run_plan(plan: Plan, options: Options) -> None:
    """Makes everything that the plan's table needs; WorkError or RequestError when something cannot be done."""
    if options.fresh:
        _remove(plan.last.run)
    _record_base(plan)
    logs = plan.last.run.path / "logs"
    recipe = plan.recipe
    with RunServices(
        logs,
        recipe.sources,
        recipe.threads,
        service_url("policy"),
        service_url("reward"),
        recipe.engine,
        recipe.vllm,
    ) as services:
        if any(stage.samples and not stage.run.finished for stage in plan.stages):
            services.refuse_unfit_policy()
        for number, stage in enumerate(plan.stages, start=1):
            label = f"[{number}/{len(plan.stages)}] {stage.method} {stage.identity.fingerprint[:12]}"
            if stage.run.finished:
                print(f"{label}: finished, reused", file=sys.stderr)
                continue
            print(f"{label}: {'resuming' if stage.run.state.exists() else 'starting'}", file=sys.stderr)
            _run(plan, stage, services, options)
        for row in plan.rows:
            print(f"evaluating {row.name}", file=sys.stderr)
            ensure_evaluated(row, plan.recipe.evaluation, plan.seed)
            ensure_measured(row, plan, services)


def _run(plan: Plan, stage: Stage, services: RunServices, options: Options) -> None:
    reward_model = plan.reward_model if plan.reward_model and plan.reward_model.exists() else None
    inputs = StageInputs(
        run=stage.run,
        seed=plan.seed,
        start=stage.start,
        reference=stage.reference,
        source=stage.source,
        validation=stage.validation,
        policy=services.policy(stage.start) if stage.samples else None,
        reward=services.reward(reward_model) if stage.reward_sources else None,
        trackers=options.trackers,
        threads=plan.recipe.threads,
    )
    run_stage(stage.method, stage.settings, inputs, stage.identity)


def _record_base(plan: Plan) -> None:
    """The base has a directory for its evaluation, and provenance like everybody; its weights stay where they are."""
    row = plan.rows[0]
    if row.run.finished:
        return
    with row.run.lock(wait=True):
        row.run.finish(
            {
                "stage": "base",
                "model": plan.base.name,
                "config_hash": row.identity.config_hash,
                "fingerprint": row.identity.fingerprint,
                **plan.base.definition(),
                "environment": environment(plan.recipe.threads),
            }
        )


def _remove(run: RunDirectory) -> None:
    if not run.path.exists():
        return
    with run.lock():
        shutil.rmtree(run.path)
