"""The stage graph: which stages an arm needs, in which order, and what identifies each of them.

Pure planning: nothing is trained, started or written here. Every stage's definition holds all that changes its
result, so that its directory can be reused when and only when the result would be the same.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.core.config import Settings
from posttrain.core.errors import RequestError, suggest
from posttrain.core.hashing import digest_checkpoint
from posttrain.core.runs import RunDirectory, StageIdentity
from posttrain.data.sources import Source, describe_source
from posttrain.lab.arms import LEARNED, Arm, PairsKind, refuse_budget_twice
from posttrain.lab.models import resolve_model
from posttrain.lab.plan import BASE, REFERENCE, Plan, Row, Stage
from posttrain.lab.recipe import Recipe
from posttrain.reward_model.sources import resolve
from posttrain.trainers.preferences import Settings as PreferenceSettings
from posttrain.trainers.registry import get_method

BASE_VERSION = 1
PAIRS_FILE = "pairs.jsonl"
HELD_OUT_PAIRS_FILE = "heldout.jsonl"


def plan_training(
    recipe: Recipe,
    name: str,
    seed: int,
    root: Path,
    external_rewards: Mapping[str, str] | None = None,
    with_reward_model: bool = False,
) -> Plan:
    """The plan for one arm and seed, directories below `root`.

    `external_rewards` maps the sources of a running reward service to their digests: a reward model found there is
    used as it is and not trained; where that service has none there is no learned reward. `with_reward_model`: where
    the recipe has anything to train it on, plan it also for an arm that does not learn from it, so that its learned
    reward can be measured. RequestError for an unknown arm, source, model or data set.
    """
    return _Planner(recipe, seed, root, external_rewards or {}).plan(name, with_reward_model)


class _Planner:
    """The stages of one seed. Each is made once, after what it needs."""

    def __init__(self, recipe: Recipe, seed: int, root: Path, external: Mapping[str, str]) -> None:
        self.recipe, self.seed, self.root, self.external = recipe, seed, root, external
        self.base = resolve_model(recipe.model, recipe.revision)
        # The base does not depend on the run's seed: one directory and one evaluation serve all seeds.
        self.base_identity = StageIdentity(BASE, BASE_VERSION, self.base.definition(), seed=0)
        self.stages: dict[str, Stage] = {}
        self.pairs: dict[PairsKind, StageIdentity] = {}
        self.rows: list[Row] = [Row(BASE, self.base_identity, self._run(self.base_identity), self.base.folder)]

    def plan(self, name: str, with_reward_model: bool) -> Plan:
        arm = self.recipe.arm(name)
        self._policy(REFERENCE, ())  # every table has it: KL is measured from it
        data = self.recipe.data
        if with_reward_model and not self.external and (data.pairs or data.preference_prompts):
            self._reward_model()
        if arm.described.makes == "pairs":
            if self.recipe.data.pairs:
                raise RequestError("this recipe's pairs are data (data.pairs); there is no preferences stage to run")
            asked = self._pairs("offline")[2]
        elif arm.described.makes == "reward model":
            asked = self._reward_model()
        else:
            asked = self.stages[self._policy(name, ())[0].fingerprint]
        assert asked is not None, "pairs that are data have no stage"
        # A service that somebody else runs does not score with the one that is trained here.
        trained = (stage for stage in self.stages.values() if stage.method == LEARNED and not self.external)
        reward_model = next(trained, None)
        reward_identity = reward_model.identity.fingerprint if reward_model else self.external.get(LEARNED)
        judges = self.recipe.judge.judges if self.recipe.judge else ()
        return Plan(
            self.recipe,
            name,
            self.seed,
            self.base,
            tuple(self.rows),
            tuple(self.stages.values()),
            asked,
            reward_model=reward_model.run.checkpoint if reward_model else None,
            reward_identity=reward_identity,
            gold_identity=source_identity(self.recipe, self.external, self.recipe.gold),
            judges={
                name: reward_identity if name == LEARNED else source_identity(self.recipe, self.external, name)
                for name in judges
            },
            pairs=self.pairs,
            external_rewards=self.external,
        )

    def _policy(self, name: str, chain: tuple[str, ...]) -> tuple[StageIdentity, Path]:
        """What identifies the policy called `name`, and its checkpoint; plans its stages and its row first."""
        if name == BASE:
            return self.base_identity, self.base.folder
        if name in chain:
            raise RequestError(f"'from' goes in a circle: {' → '.join((*chain, name))}; let one of them start at sft")
        known = [BASE, *self.recipe.arm_names()]
        if chain and name not in known:
            raise RequestError(f"{self._said(chain[-1])}.from: unknown start '{name}' {suggest(name, known)}")
        arm = self.recipe.arm(name)
        if chain and arm.described.makes != "policy":
            what = f"{self._said(chain[-1])}.from: '{name}' is no policy to start from"
            raise RequestError(f"{what}; name base, sft or a method that trains one")
        refuse_budget_twice(self.recipe, name)
        begin, checkpoint = self._policy(arm.start, (*chain, name))
        stage = self._stage_of(arm, begin, checkpoint)
        if all(row.identity != stage.identity for row in self.rows):
            weights = checkpoint if arm.described.makes == "choice" else stage.run.checkpoint
            self.rows.append(Row(arm.row_name, stage.identity, stage.run, weights, arm))
        return stage.identity, stage.run.checkpoint

    def _said(self, name: str) -> str:
        """Where the recipe says what an arm is."""
        return f"variants.{name}" if name in self.recipe.variants else name

    def _stage_of(self, arm: Arm, begin: StageIdentity, checkpoint: Path) -> Stage:
        method, data = arm.described, self.recipe.data
        parents: list[StageIdentity] = [begin]
        source: Source | None
        validation: Source | None
        described: dict[str, Any] | None = None
        fields: tuple[str, ...]
        if method.trains_on == "demonstrations":
            source, validation, fields = data.sft, data.sft_validation, ("sft",)
        elif method.trains_on == "prompts":
            source, validation, fields = data.prompts, data.validation, ("prompts", "validation")
            if method.makes == "choice":  # it is measured on what it picks for the prompts that others are measured on
                source = validation = self._measured_prompts()
                fields = ("measured",)
        else:
            source, validation, made_by, described = self._pairs(arm.pairs)
            parents += [made_by.identity] if made_by else []
            fields = () if made_by else ("pairs",)
        sources: tuple[str, ...] = ()
        if method.scores:
            sources = tuple(dict.fromkeys((*arm.reward, self.recipe.gold)))
            if LEARNED in arm.reward and LEARNED not in self.external:
                parents.append(self._reward_model().identity)
        return self._add(
            arm.method,
            arm.settings,
            parents=tuple(parents),
            start=checkpoint,
            reference=checkpoint,
            source=source,
            validation=validation,
            samples=method.samples,
            reward_sources=sources,
            data=described,
            fields=fields,
        )

    def _measured_prompts(self) -> Source:
        """The prompts on which KL, gold and learned reward are measured."""
        measured, limit = self.recipe.data.measured_prompts, self.recipe.evaluation.policy_prompts
        return measured.model_copy(update={"rows": min(limit, measured.rows or limit)})

    def _pairs(self, kind: PairsKind) -> tuple[Source, Source | None, Stage | None, dict[str, Any] | None]:
        """Training and held-out pairs, the stage that makes them, and what describes them where none does."""
        if kind == "offline" and (pairs := self.recipe.data.pairs):
            return pairs, None, None, {"source": describe_source(pairs)}
        prompts = self.recipe.data.preference_prompts
        if prompts is None:
            need = "data.preference_prompts" if kind == "on_policy" else "data.pairs or data.preference_prompts"
            raise RequestError(f"recipe {self.recipe.name} has nothing to make {kind} pairs from; set {need}")
        sft, checkpoint = self._policy(REFERENCE, ())
        settings = self.recipe.on_policy if kind == "on_policy" else self.recipe.arm("preferences").settings
        assert isinstance(settings, PreferenceSettings)
        parents = [sft]
        if settings.source == LEARNED and LEARNED not in self.external:
            if kind == "offline":
                raise RequestError("preferences.source is rm, which is trained on these pairs; name a verifier")
            parents.append(self._reward_model().identity)
        stage = self._add(
            "preferences",
            settings,
            parents=tuple(parents),
            start=checkpoint,
            source=prompts,
            samples=True,
            reward_sources=(settings.source,),
            fields=("preference_prompts",),
        )
        self.pairs[kind] = stage.identity
        folder = stage.run.path
        held_out = Source(path=str(folder / HELD_OUT_PAIRS_FILE))
        return Source(path=str(folder / PAIRS_FILE)), held_out, stage, {}

    def _reward_model(self) -> Stage:
        sft, checkpoint = self._policy(REFERENCE, ())
        source, validation, made_by, described = self._pairs("offline")
        return self._add(
            LEARNED,
            self.recipe.arm(LEARNED).settings,
            parents=(sft, made_by.identity) if made_by else (sft,),
            start=checkpoint,
            source=source,
            validation=validation,
            samples=True,
            data=described,
            fields=() if made_by else ("pairs",),
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
        fields: tuple[str, ...] = (),
    ) -> Stage:
        """The stage, planned before or now. `data` describes its data where the parents do not; `fields` are those of
        the recipe's data that it reads."""
        if data is None:
            data = {"source": _described(source), "validation": _described(validation)}
        definition = {
            "settings": settings.definition(),
            "data": data,
            "rewards": {name: source_identity(self.recipe, self.external, name) for name in sorted(reward_sources)},
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
            fields,
        )
        return self.stages.setdefault(identity.fingerprint, stage)

    def _run(self, identity: StageIdentity) -> RunDirectory:
        return RunDirectory.of(self.root, self.recipe.name, identity)


def source_identity(recipe: Recipe, external: Mapping[str, str], name: str) -> str | None:
    """What defines a reward source; None for the recipe's own reward model, whose stage does. RequestError for a source
    that neither the recipe nor the running service with the sources `external` has."""
    if external:
        if name not in external:
            raise RequestError(f"the service in REWARD_URL has no source '{name}' {suggest(name, external)}")
        return external[name]
    verifiers, models = resolve(recipe.sources)
    if name in verifiers:
        verifier = verifiers[name]
        # Under another name it is still the same verifier, and another one of the same version is not.
        return verifier.version if verifier.name == name else f"{verifier.name} {verifier.version}"
    if name in models:
        return digest_checkpoint(resolve_model(models[name]).folder)
    if name == LEARNED:
        return None
    raise RequestError(f"unknown reward source '{name}' {suggest(name, [*verifiers, *models, LEARNED])}")


def _described(source: Source | None) -> dict[str, Any] | None:
    return describe_source(source) if source else None
