"""Which answers of a row are judged against the SFT policy's, and where each item's preferences lie when they are.

A match is a row's greedy answers, of one seed, against those of that seed's SFT policy, on the items that both have.
What came of it lies in the row's `eval/` under a name that says by what and against what it was judged: where answers
or judges changed, it is another match.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from posttrain.core.errors import RequestError, suggest
from posttrain.core.files import read_jsonl
from posttrain.core.hashing import digest_json
from posttrain.eval_harness.asked import has_references
from posttrain.eval_harness.catalog import task_version
from posttrain.eval_harness.generation_tasks import generation_tasks
from posttrain.lab.arms import LEARNED
from posttrain.lab.evaluations import SETTINGS_FILE, evaluated_tasks
from posttrain.lab.plan import Plan, Row
from posttrain.lab.recipe import Judging, Recipe
from posttrain.reward_model.sources import resolve
from posttrain.reward_model.verifiers import Verifier

VERSION = 1
"""Raised when what is asked of the judges changes."""


@dataclass(frozen=True)
class Answer:
    """What a policy wrote on an item."""

    text: str
    cut: bool
    """Whether it ends only because it was as long as it may be."""


def answers_of(row: Row, plan: Plan) -> dict[str, Answer]:
    """A row's answers to the judged task by item; none where it has none, or not yet."""
    judging = plan.recipe.judge
    if judging is None or judging.task not in evaluated_tasks(row, plan.recipe.evaluation):
        return {}
    path = row.run.eval / f"{judging.task}.jsonl"
    if not path.exists() or not (row.run.eval / SETTINGS_FILE).exists():
        return {}
    answered = [item for item in read_jsonl(path) if "text" in item]
    return {item["id"]: Answer(item["text"], item["finish_reason"] == "length") for item in answered}


def judged_items(row: Row, plan: Plan) -> Path | None:
    """The file of a match's preferences by item, which is there when it is judged; None where there is no match: for
    the SFT policy itself, and where one of the two has no answers."""
    judging = plan.recipe.judge
    if judging is None or row.identity == plan.reference.identity:
        return None
    theirs, own = answers_of(plan.reference, plan), answers_of(row, plan)
    both = [item for item in theirs if item in own]
    if not both:
        return None
    definition = {
        "version": VERSION,
        "task": [judging.task, task_version(judging.task, plan.recipe.evaluation.include_path)],
        "judges": dict(plan.judges),
        "answers": [[item, *vars(theirs[item]).values(), *vars(own[item]).values()] for item in both],
    }
    return row.run.eval / f"judge-{digest_json(definition)[:12]}.jsonl"


def records_file(items: Path) -> Path:
    """Beside a match's preferences: by judge the record that they are from, an object of names and ids."""
    return items.with_suffix(".json")


def matches_done(runs: Iterable[tuple[Row, Plan]]) -> tuple[int, int]:
    """How many matches of these rows are judged, and how many there are or will be."""
    matches = [
        (row, plan)
        for row, plan in runs
        if plan.recipe.judge
        and row.identity != plan.reference.identity
        and plan.recipe.judge.task in evaluated_tasks(row, plan.recipe.evaluation)
    ]
    places = [judged_items(row, plan) for row, plan in matches]
    return sum(place is not None and place.exists() for place in places), len(matches)


def gold_of(recipe: Recipe) -> str | None:
    """The judge that the others are held against; None where the recipe's gold is no judge."""
    return recipe.gold if recipe.judge and recipe.gold in recipe.judge.judges else None


def scale_of(recipe: Recipe, judge: str) -> Literal["model", "verifier"]:
    """How a judge's scores become a preference. What only a running service of somebody else's knows counts as a
    verifier: of what its scores are log-odds, nobody says."""
    return "model" if judge == LEARNED or judge in resolve(recipe.sources)[1] else "verifier"


def refuse_unjudgeable(plans: Sequence[Plan]) -> None:
    """RequestError, before anything is done, where the recipe of the plans says nothing that could be judged."""
    recipe = plans[0].recipe
    judging = recipe.judge
    if judging is None:
        raise RequestError(
            f"--judge: recipe {recipe.name} does not say what is judged; add to it `judge: {{task: TASK, judges: "
            f"[rm, {recipe.gold}]}}` with a task of evaluation.tasks that generates answers"
        )
    evaluation = recipe.evaluation
    generated = generation_tasks(evaluation.tasks, evaluation.include_path)
    if judging.task not in generated:
        raise RequestError(
            f"judge.task {judging.task} is none of the tasks that are evaluated and generate answers "
            f"{suggest(judging.task, generated)}"
        )
    for judge in judging.judges:
        _refuse_judge(judge, judging, plans)


def _refuse_judge(judge: str, judging: Judging, plans: Sequence[Plan]) -> None:
    recipe = plans[0].recipe
    if any(plan.judges[judge] is None for plan in plans):
        raise RequestError(f"judge.judges names {judge}, and there is no reward model here; leave it out")
    if isinstance(resolve(recipe.sources)[0].get(judge), Verifier) and not has_references(judging.task):
        raise RequestError(
            f"judge.judges names {judge}, a verifier, and what it needs to score answers to {judging.task} is not "
            "known; leave it out"
        )
