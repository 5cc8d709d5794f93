"""The stage graph: which stages a method needs, in which order, and what identifies each of them.

Pure planning: nothing is trained, started or written here. Every stage's definition holds all that changes its
result, so that its directory can be reused when and only when the result would be the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.core.config import Settings
from posttrain.core.errors import RequestError, suggest
from posttrain.core.hashing import digest_checkpoint
from posttrain.core.runs import RunDirectory, StageIdentity
from posttrain.data.sources import Source, describe_source
from posttrain.lab.models import BaseModel, resolve_model
from posttrain.lab.recipe import LEARNED, Recipe
from posttrain.reward_model.sources import resolve
from posttrain.trainers.registry import get_method

BASE_VERSION = 1
PAIRS_FILE = "pairs.jsonl"
HELD_OUT_PAIRS_FILE = "heldout.jsonl"
REFERENCE = "sft"
TRAINABLE = ("sft", "preferences", "rm", "ppo")
"""What `posttrain train` can be asked for; all but `ppo` are also stages on the way to it."""


@dataclass(frozen=True)
class Stage:
    """One node: a method with its settings, where it starts, its data, and its directory."""

    method: str
    settings: Settings
    identity: StageIdentity
    run: RunDirectory
    start: Path
    reference: Path | None = None
    source: Source | None = None
    validation: Source | None = None
    samples: bool = False
    """Whether it samples from the policy service, which must then hold the checkpoint in `start`."""
    reward_sources: tuple[str, ...] = ()
    """The reward sources it asks for; none: it needs no reward service."""


@dataclass(frozen=True)
class Row:
    """A checkpoint that stands in the table."""

    name: str
    identity: StageIdentity
    run: RunDirectory
    checkpoint: Path


@dataclass(frozen=True)
class Plan:
    """All stages in the order they run, and the rows of the table."""

    recipe: Recipe
    method: str
    seed: int
    base: BaseModel
    rows: tuple[Row, ...]
    stages: tuple[Stage, ...] = field(default=())
    reward_model: Path | None = None
    """The checkpoint of the recipe's own reward model, where the plan has one."""
    reward_identity: str | None = None
    """What identifies the learned reward: that model's fingerprint, or the digest that a running service gives."""
    gold_identity: str | None = None
    """The version or digest of the gold source."""
    external_rewards: Mapping[str, str] = field(default_factory=dict)
    """The sources of the running reward service that is used instead of an own one; empty without one."""

    @property
    def reference(self) -> Row:
        """What KL is measured from: the SFT policy."""
        return next(row for row in self.rows if row.name == REFERENCE)

    @property
    def last(self) -> Stage:
        """The stage that was asked for."""
        return self.stages[-1]


def plan_training(
    recipe: Recipe, method: str, seed: int, root: Path, external_rewards: Mapping[str, str] | None = None
) -> Plan:
    """The plan for one method and seed, directories below `root`.

    `external_rewards` maps the sources of a running reward service to their digests: a reward model found there is
    used as it is and not trained. RequestError for an unknown method, source, model or data set.
    """
    if method not in TRAINABLE:
        raise RequestError(f"unknown method '{method}' {suggest(method, TRAINABLE)}")
    return _Planner(recipe, seed, root, external_rewards or {}).plan(method)


class _Planner:
    def __init__(self, recipe: Recipe, seed: int, root: Path, external: Mapping[str, str]) -> None:
        self.recipe, self.seed, self.root, self.external = recipe, seed, root, external
        self.base = resolve_model(recipe.model, recipe.revision)
        # The base does not depend on the run's seed: one directory and one evaluation serve all seeds.
        self.base_identity = StageIdentity("base", BASE_VERSION, self.base.definition(), seed=0)
        self.base_row = Row("base", self.base_identity, self._run(self.base_identity), self.base.folder)
        self.stages: list[Stage] = []

    def plan(self, method: str) -> Plan:
        sft = self._sft()
        rows = [self.base_row, _row("sft", sft)]
        reward_model: Stage | None = None
        wants_learned = method == "ppo" and self.recipe.uses_reward_model and LEARNED not in self.external
        if method in ("preferences", "rm") or wants_learned:
            preferences = None if self.recipe.data.pairs else self._preferences(sft)
            if method != "preferences":
                reward_model = self._reward_model(sft, preferences)
            elif preferences is None:
                raise RequestError("this recipe's pairs are data (data.pairs); there is no preferences stage to run")
        if method == "ppo":
            ppo = self._ppo(sft, reward_model)
            rows.append(_row(self._row_name("ppo"), ppo))
        return Plan(
            self.recipe,
            method,
            self.seed,
            self.base,
            tuple(rows),
            tuple(self.stages),
            reward_model=reward_model.run.checkpoint if reward_model else None,
            reward_identity=reward_model.identity.fingerprint if reward_model else self.external.get(LEARNED),
            gold_identity=self._reward_definition(self.recipe.gold),
            external_rewards=self.external,
        )

    def _sft(self) -> Stage:
        data = self.recipe.data
        return self._add(
            "sft",
            self.recipe.sft,
            parents=(self.base_identity,),
            start=self.base.folder,
            source=data.sft,
            validation=data.sft_validation,
        )

    def _preferences(self, sft: Stage) -> Stage:
        prompts = self.recipe.data.preference_prompts
        if prompts is None:
            raise RequestError(
                f"recipe {self.recipe.name} gives the reward model no data; set data.pairs or data.preference_prompts"
            )
        return self._add(
            "preferences",
            self.recipe.preferences,
            parents=(sft.identity,),
            start=sft.run.checkpoint,
            source=prompts,
            samples=True,
            reward_sources=(self.recipe.preferences.source,),
        )

    def _reward_model(self, sft: Stage, preferences: Stage | None) -> Stage:
        if preferences:
            folder = preferences.run.path
            source = Source(path=str(folder / PAIRS_FILE))
            validation: Source | None = Source(path=str(folder / HELD_OUT_PAIRS_FILE))
            parents: tuple[StageIdentity, ...] = (sft.identity, preferences.identity)
            data = {}
        else:
            pairs = self.recipe.data.pairs
            assert pairs is not None, "without sampled preferences the recipe has pairs"
            source, validation, parents = pairs, None, (sft.identity,)
            data = {"source": describe_source(pairs)}
        return self._add(
            "rm",
            self.recipe.rm,
            parents=parents,
            start=sft.run.checkpoint,
            source=source,
            validation=validation,
            samples=True,
            data=data,
        )

    def _ppo(self, sft: Stage, reward_model: Stage | None) -> Stage:
        parents = (sft.identity, reward_model.identity) if reward_model else (sft.identity,)
        settings = self.recipe.ppo.model_copy(update={"rewards": self.recipe.reward, "gold_source": self.recipe.gold})
        return self._add(
            "ppo",
            settings,
            parents=parents,
            start=sft.run.checkpoint,
            reference=sft.run.checkpoint,
            source=self.recipe.data.prompts,
            validation=self.recipe.data.validation,
            samples=True,
            reward_sources=tuple(dict.fromkeys((*self.recipe.reward, self.recipe.gold))),
        )

    def _add(
        self,
        method: str,
        settings: Settings,
        *,
        parents: tuple[StageIdentity, ...],
        start: Path,
        reference: Path | None = None,
        source: Source | None = None,
        validation: Source | None = None,
        samples: bool = False,
        reward_sources: tuple[str, ...] = (),
        data: dict[str, Any] | None = None,
    ) -> Stage:
        if data is None:
            data = {"source": _described(source), "validation": _described(validation)}
        definition = {
            "settings": settings.definition(),
            "data": data,
            "rewards": {name: self._reward_definition(name) for name in sorted(reward_sources)},
        }
        identity = StageIdentity(method, get_method(method).version, definition, self.seed, parents)
        stage = Stage(
            method,
            settings,
            identity,
            self._run(identity),
            start,
            reference,
            source,
            validation,
            samples,
            reward_sources,
        )
        self.stages.append(stage)
        return stage

    def _reward_definition(self, name: str) -> str | None:
        """What defines a reward source; None for the recipe's own reward model, whose stage is a parent."""
        if self.external:
            if name not in self.external:
                raise RequestError(f"the service in REWARD_URL has no source '{name}' {suggest(name, self.external)}")
            return self.external[name]
        verifiers, models = resolve(self.recipe.sources)
        if name in verifiers:
            verifier = verifiers[name]
            # Under another name it is still the same verifier, and another one of the same version is not.
            return verifier.version if verifier.name == name else f"{verifier.name} {verifier.version}"
        if name in models:
            return digest_checkpoint(resolve_model(models[name]).folder)
        if name == LEARNED:
            return None
        raise RequestError(f"unknown reward source '{name}' {suggest(name, [*verifiers, *models, LEARNED])}")

    def _row_name(self, method: str) -> str:
        """The method and, where it does not learn from the reward model alone, what it learns from."""
        if self.recipe.reward == {LEARNED: 1.0}:
            return method
        parts = [name if weight == 1 else f"{weight:g}·{name}" for name, weight in self.recipe.reward.items()]
        return f"{method} ({' + '.join(parts)})"

    def _run(self, identity: StageIdentity) -> RunDirectory:
        return RunDirectory.of(self.root, self.recipe.name, identity)


def _described(source: Source | None) -> dict[str, Any] | None:
    return describe_source(source) if source else None


def _row(name: str, stage: Stage) -> Row:
    return Row(name, stage.identity, stage.run, stage.run.checkpoint)
