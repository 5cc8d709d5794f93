"""Equal tuning effort: every arm's declared grid, the same number of trials, judged on the validation split alone.

A trial is a run of part of the length with one combination of settings, measured by its gold reward on the validation
prompts. Test items are never looked at. What was chosen goes into the recipe's section `tuned`, every trial into a
record that is committed, so that another day can go on from it: a trial that is recorded is not made again.
"""

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from posttrain.core.errors import Diverged, RequestError
from posttrain.core.files import atomic_write_json, disk_errors, read_json, read_jsonl
from posttrain.core.hashing import digest_json
from posttrain.core.seeds import derive_seed
from posttrain.core.statistics import Estimate, mean_and_se
from posttrain.lab.arms import Arm, Tuned, adapter_kind
from posttrain.lab.pipeline import is_finished
from posttrain.lab.plan import Plan
from posttrain.lab.policy_measures import policy_items
from posttrain.lab.recipe import Recipe
from posttrain.lab.tasks import Task

METRIC = "gold reward on the validation prompts"

Recorded = Mapping[str, Any]
"""A trial as its record has it: its values, length, seed, fingerprint, setup, and `gold`, or why it `failed`."""


@dataclass(frozen=True)
class Trial:
    """One combination of settings, and where it stands in the recipe."""

    arm: str
    values: Mapping[str, Any]
    overrides: tuple[str, ...]
    """As `--set` takes them."""


def trials_of(recipe: Recipe, name: str, count: int | None, length: float) -> list[Trial]:
    """The trials of an arm: its whole grid, or `count` combinations drawn from it, the same ones each time.

    RequestError for an arm without a grid, with a smaller one, or with one that would change nothing.
    """
    arm = recipe.arm(name)
    grid = arm.grid
    if not grid:
        raise RequestError(f"{name} has nothing to tune: method {arm.method} declares no grid, nor does the recipe")
    prefix = f"variants.{name}" if name in recipe.variants else name
    _refuse_vain(recipe, arm, prefix)
    combinations = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    if count is not None and count > len(combinations):
        raise RequestError(f"{name} has a grid of {len(combinations)} combinations; ask for at most as many --trials")
    if count is not None and count < len(combinations):
        random.Random(derive_seed(0, "tuning", name)).shuffle(combinations)
        combinations = combinations[:count]
    return [
        Trial(
            name,
            values,
            (
                "data.measured=null",  # on the validation prompts, not on those of the table
                *(f"{prefix}.{key}={as_yaml(value)}" for key, value in values.items()),
                f"{prefix}.length={length}",
            ),
        )
        for values in combinations
    ]


def as_yaml(value: Any) -> str:
    """A value as `--set` takes it; RequestError for one that YAML would not give back."""
    plain = json.loads(json.dumps(value))  # a tuple is a list there
    text = yaml.safe_dump(plain, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()
    if yaml.safe_load(text) != plain:
        raise RequestError(f"{value!r} cannot be tried: YAML reads it otherwise")
    return text


def _refuse_vain(recipe: Recipe, arm: Arm, prefix: str) -> None:
    """RequestError for a grid's key that the recipe sets itself, or that the arm's settings make no use of."""
    said = recipe.variants.get(arm.name, {}) if arm.name in recipe.variants else recipe.blocks.get(arm.name, {})
    for key in arm.grid:
        if key in said:
            raise RequestError(
                f"{prefix}.{key} is set, and would go before what tuning chooses; leave it out, or make it the first "
                f"value of grids.{arm.name}.{key}"
            )
        if key in getattr(arm.settings, "unread", ()):
            raise RequestError(
                f"the grid of {arm.name} varies {key}, of which its settings make no use; give it another one in the "
                f"recipe, grids.{arm.name}"
            )


def setup_of(trial: Trial, plan: Plan) -> str:
    """Digest of all that a trial's result depends on but the values tried: only trials of one setup compete."""
    row = plan.rows[-1]
    identity = row.identity
    settings = {key: value for key, value in identity.definition["settings"].items() if key not in trial.values}
    definition = {**identity.definition, "settings": settings}
    parents = [parent.fingerprint for parent in identity.parents]
    measured = policy_items(row, plan).stem
    return digest_json(
        [identity.stage, identity.version, definition, identity.seed, parents, measured, [*trial.values]]
    )


def outcome(plan: Plan) -> dict[str, Any]:
    """What a finished trial came to: gold and learned reward and KL with standard errors, and its cost.

    Core-seconds of a trial that was killed and resumed count from its last start.
    """
    row = plan.rows[-1]
    items = read_jsonl(policy_items(row, plan))
    names = [name for name in ("gold", "learned", "kl") if all(name in item["scores"] for item in items)]
    measured = {name: _estimate(mean_and_se([item["scores"][name] for item in items])) for name in names}
    record = row.run.provenance()
    return {
        **measured,
        "n": len(items),
        "totals": record["summary"].get("totals", {}),
        "core_seconds": record["cost"]["core_seconds"],
        "resumed": record.get("resumed", False),
    }


def chosen(trials: Sequence[Recorded]) -> Recorded | None:
    """The trial with the highest gold reward; of equals the first; None where all failed."""
    return max((trial for trial in trials if "gold" in trial), key=lambda trial: trial["gold"]["value"], default=None)


@dataclass(frozen=True)
class ArmTuning:
    """The trials of one arm that are asked for, and its record, `<recipe>-<arm>.json`."""

    recipe: Recipe
    arm: Arm
    planned: Sequence[tuple[Trial, Plan]]
    length: float
    folder: Path
    """Where records are kept."""
    made_by: Mapping[str, Any]
    """What the record says of the newest trial's command and environment."""

    @property
    def path(self) -> Path:
        """Its record."""
        return self.folder / f"{self.recipe.name}-{self.arm.name}.json"

    @cached_property
    def setup(self) -> str:
        """What all its trials share."""
        return setup_of(*self.planned[0])

    def recorded(self) -> list[Recorded]:
        """All trials of its setup in the record, those that were not asked for now among them: all compete."""
        if not self.path.exists():
            return []
        return [trial for trial in read_json(self.path)["trials"] if trial.get("setup") == self.setup]

    def missing(self) -> list[tuple[Trial, Plan]]:
        """What was asked for and is not recorded."""
        there = {trial["fingerprint"] for trial in self.recorded()}
        return [(trial, plan) for trial, plan in self.planned if plan.rows[-1].identity.fingerprint not in there]

    def record_finished(self) -> None:
        """Records the trials that are finished under runs/."""
        for trial, plan in self.missing():
            if is_finished(plan, plan.rows[-1], on_tasks=False):
                self._record(trial, plan, outcome(plan))

    def ended(self, task: Task, problem: str | None) -> None:
        """Records what a task that ended was the last of. One that diverged is a trial that failed, and would fail
        again; what failed for another reason is no trial, and is made again."""
        if problem is None:
            self.record_finished()
        elif problem.startswith(Diverged.SAYS):
            for trial, plan in self.missing():
                if task.stage == plan.rows[-1].identity.fingerprint:
                    # What it took until then nobody measured: the costs are a lower bound, as of a run that was killed.
                    self._record(trial, plan, {"failed": problem, "core_seconds": 0.0, "resumed": True})

    def tuned(self) -> Tuned | None:
        """What the recipe's section `tuned` is to say: the choice among all that is recorded. None where all failed."""
        trials = self.recorded()
        best = chosen(trials)
        return self.as_tuned(best["values"], len(trials)) if best else None

    def as_tuned(self, values: Mapping[str, Any], trials: int) -> Tuned:
        """These values as a choice of that many trials."""
        return Tuned(
            values=dict(values),
            learns_from=self.arm.learns_from,
            start=self.arm.start,
            trials=trials,
            metric=METRIC,
            record=self.path.as_posix(),
            variant=getattr(self.arm.settings, "variant", None),
            adapter=adapter_kind(self.arm.settings),
        )

    def _record(self, trial: Trial, plan: Plan, came_to: Mapping[str, Any]) -> None:
        """Adds a trial to the record. Trials of another setup leave it."""
        identity = plan.rows[-1].identity
        new = {
            "values": _plain(trial.values),
            "length": self.length,
            "seed": plan.seed,
            "fingerprint": identity.fingerprint,
            "config_hash": identity.config_hash,
            "setup": self.setup,
            **came_to,
        }
        place = {"learns_from": self.arm.learns_from, "start": self.arm.start}
        if variant := getattr(self.arm.settings, "variant", None):
            place["variant"] = variant
        if kind := adapter_kind(self.arm.settings):
            place["adapter"] = kind
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f".{self.path.name}.lock")):
                every = list({each["fingerprint"]: each for each in [*self.recorded(), new]}.values())
                best = chosen(every)
                record = {
                    "recipe": self.recipe.name,
                    "arm": self.arm.name,
                    **place,
                    "metric": METRIC,
                    "grid": _plain(self.arm.grid),
                    "trials": every,
                    "chosen": best["values"] if best else None,
                    **self.made_by,
                }
                atomic_write_json(self.path, record)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples are lists."""
    return dict(json.loads(json.dumps(dict(values))))


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {key: value for key, value in asdict(estimate).items() if key != "n"}
