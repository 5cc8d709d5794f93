"""What the rows of one table must share, and what happens where they do not.

Base and revision, adapter, prompt template, data, evaluation, seeds; and, of a row that joins from other runs, the SFT
policy that it started from, the pairs of its kind, the reward model that it learnt from. The same conditions are
compared twice: as planned, before anything is trained, and as recorded by what was done, when a table is made. A
difference is refused with the field, both values and what to do; a field that was allowed to differ marks the row
instead.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.core.errors import RequestError, suggest
from posttrain.core.files import read_json
from posttrain.core.hashing import digest_json
from posttrain.data.sources import describe_source
from posttrain.data.tokenizer import load_tokenizer
from posttrain.lab.arms import LEARNED, PAIRS, Arm
from posttrain.lab.evaluations import POSED, SETTINGS_FILE, evaluation_settings, standard
from posttrain.lab.plan import BASE, REFERENCE, Plan, Row, Stage
from posttrain.lab.recipe import Recipe
from posttrain.trainers.model_settings import Adapter

Conditions = Mapping[str, Any]
"""Field to value, for example `evaluation.limit` to 600."""

REMEDY = {
    "base": "train it from the same base",
    "adapter": "train it with the same adapter settings",
    "template": "save the checkpoint with the base's chat template and evaluate it again",
    "evaluation": "evaluate it with the recipe's tasks, few-shot and limit",
    "data": "train it on the same rows",
    "made_from": "train it from the table's SFT policy, on its pairs and its reward model",
    "seeds": "train the missing seeds",
}
"""What to do, by the first part of a field's name."""

FIELDS = (
    "base.revision", "base.digest", "adapter", "template", "seeds",
    "evaluation.tasks", "evaluation.few_shot", "evaluation.limit", "evaluation.max_gen_toks",
    *(f"evaluation.{name}" for name in POSED),
    "data.sft", "data.pairs", "data.preference_prompts", "data.prompts", "data.validation", "data.measured",
    "made_from.sft", "made_from.offline_pairs", "made_from.on_policy_pairs", "made_from.rm",
)  # fmt: skip
"""Every condition there is."""


@dataclass(frozen=True)
class Deviation:
    """A condition in which a row differs from the others, and was allowed to."""

    row: str
    field: str
    value: Any
    expected: Any

    def sentence(self) -> str:
        """The row's footnote."""
        return f"{self.field} is {_shown(self.value)}, the other rows have {_shown(self.expected)}"


def recipe_conditions(plans: Sequence[Plan], seeds: Sequence[int]) -> Conditions:
    """What the rows of a recipe's own plans share: known before training."""
    recipe, base = plans[0].recipe, plans[0].base
    data = recipe.data
    sources = {
        "sft": data.sft,
        "pairs": data.pairs,
        "preference_prompts": data.preference_prompts,
        "prompts": data.prompts,
        "validation": data.validation,
        "measured": data.measured_prompts,
    }
    settings = evaluation_settings(recipe.evaluation)
    return {
        "base.revision": base.revision,
        "base.digest": base.digest,
        "adapter": planned_adapter(plans),
        "template": template_digest(base.folder),
        "seeds": sorted(seeds),
        **_evaluation_conditions(settings),
        **{f"data.{name}": describe_source(source) if source else None for name, source in sources.items()},
        **{name: value for plan in plans for name, value in _plan_made_from(plan).items()},
    }


def moving_data(recipe: Recipe, conditions: Conditions) -> list[str]:
    """A sentence for each of the recipe's data sets on the Hub without a commit, with the one that it is taken at now:
    another day's comparison would be of other rows, which its config hashes then say."""
    told = []
    for field, described in conditions.items():
        group, _, name = field.partition(".")
        source = getattr(recipe.data, name) if group == "data" else None
        if source is not None and "revision" in (described or {}) and described["revision"] != source.revision:
            told.append(
                f"data.{name}: {source.path} has no fixed commit and is taken at {described['revision']}; set "
                f"data.{name}.revision to that to compare on the same rows another day"
            )
    return told


def _evaluation_conditions(settings: Mapping[str, Any]) -> Conditions:
    """Of an evaluation's settings, those that change what is measured."""
    names = ("tasks", "few_shot", "limit", "max_gen_toks")
    posing = {name: standard(name) for name in POSED} | settings.get("posing", {})
    return {f"evaluation.{name}": value for name, value in ({name: settings[name] for name in names} | posing).items()}


def stage_conditions(plan: Plan, stage: Stage) -> Conditions:
    """Of what a recipe's rows share, the part that a stage and those before it depend on; kept in its provenance."""
    used = {f"data.{field}" for each in plan.needed(stage.identity) for field in each.data}
    shared = recipe_conditions([plan], [plan.seed])
    return {name: value for name, value in shared.items() if name.startswith("base.") or name in used}


def recorded_conditions(row: Row, seeds: Sequence[int]) -> Conditions:
    """What was in force when a finished row was made: from provenance, evaluation record and the checkpoint itself.

    RequestError for a row that joins from other runs and does not say it.
    """
    provenance, marker = row.run.provenance(), row.run.eval / SETTINGS_FILE
    if row.before and "conditions" not in provenance:
        raise RequestError(
            f"{row.name} ({row.run.path}) does not say of which base and data it was made; train it again"
        )
    if row.before and not marker.exists():
        raise RequestError(f"{row.name} ({row.run.path}) is not evaluated; run the command that trained it to its end")
    recorded = dict(provenance.get("conditions", {}))
    if marker.exists():
        used = read_json(marker)["settings"]
        recorded |= _evaluation_conditions(used)
    recorded["template"] = template_digest(row.checkpoint)
    if _compared(row):
        recorded["adapter"] = adapter_of(row)
    recorded["seeds"] = sorted(seeds)
    return {**recorded, **_row_made_from(row)}


def _plan_made_from(plan: Plan) -> Conditions:
    """The stages behind a plan's rows that rows of their kind have in common, as far as the plan has them."""
    trained = next((stage.identity.config_hash for stage in plan.stages if stage.method == LEARNED), None)
    return _made_from(
        {
            REFERENCE: plan.reference.identity.config_hash,
            LEARNED: trained or plan.external_rewards.get(LEARNED),
            **{f"{kind}_pairs": identity.config_hash for kind, identity in plan.pairs.items()},
        }
    )


def _row_made_from(row: Row) -> Conditions:
    """The same of a row that joins from other runs, through all that it started from: of each kind the nearest."""
    records = [run.provenance() for run in row.before]
    learns_from = {record["fingerprint"]: record["arm"]["learns_from"] for record in records if "arm" in record}
    found: dict[str, str | None] = {}
    identity = row.identity if row.before else None
    while identity and identity.parents:
        start, *others = identity.parents
        on_policy = learns_from.get(identity.fingerprint) == PAIRS["on_policy"]
        kinds = {"preferences": "on_policy_pairs" if on_policy else "offline_pairs", LEARNED: LEARNED}
        nearest: dict[str, str | None] = {kinds[other.stage]: other.config_hash for other in others}
        if start.stage == REFERENCE:
            nearest[REFERENCE] = start.config_hash
        if digest := identity.definition.get("rewards", {}).get(LEARNED):  # of a service that somebody else ran
            nearest[LEARNED] = digest
        found = nearest | found
        identity = start
    return _made_from(found)


def _made_from(hashes: Mapping[str, str | None]) -> Conditions:
    """Fields with the beginnings of hashes; SFT first, of which the others are made."""
    names = (REFERENCE, "offline_pairs", LEARNED, "on_policy_pairs")
    return {f"made_from.{name}": value[:12] for name in names if (value := hashes.get(name))}


def template_digest(checkpoint: Any) -> str:
    """The chat template that prompts are rendered with, as the beginning of its digest."""
    return digest_json(load_tokenizer(checkpoint).chat_template)[:12]


def planned_adapter(plans: Sequence[Plan]) -> dict[str, Any] | None:
    """The adapter of the first compared arm, which the others are to have too; of SFT where there is no other arm."""
    arms = [row.arm for plan in plans for row in plan.rows if row.arm and _compared(row)]
    return _asked_adapter(arms[0] if arms else plans[0].recipe.arm(REFERENCE))


def planned_conditions(row: Row) -> Conditions:
    """Of what is recorded of a row that is trained, the part that its own settings say beforehand."""
    return {"adapter": _asked_adapter(row.arm)} if row.arm and _compared(row) else {}


def _asked_adapter(arm: Arm) -> dict[str, Any] | None:
    adapter: Adapter | None = getattr(arm.settings, "adapter", None)
    if adapter is None:
        return None
    return {
        "kind": adapter.kind,
        "type": "LORA",
        "r": adapter.r,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": sorted(adapter.target_modules),
    }


def adapter_of(row: Row) -> dict[str, Any] | None:
    """Rank, scale, dropout, target, kind of the PEFT adapter that a row's checkpoint is, or that lies merged in it and
    by itself beside it; None for full weights."""
    for folder in (row.checkpoint, row.checkpoint.parent / "adapter"):
        path = folder / "adapter_config.json"
        if path.exists():
            break
    else:
        return None
    config = read_json(path)
    modules = config.get("target_modules")
    trained = row.identity.definition.get("settings", {}).get("adapter") or {}
    return {
        **{key: trained[key] for key in ("kind",) if key in trained},
        "type": config.get("peft_type"),
        "r": config.get("r"),
        "lora_alpha": config.get("lora_alpha"),
        "lora_dropout": config.get("lora_dropout"),
        "target_modules": sorted(modules) if isinstance(modules, list) else modules,
    }


def _compared(row: Row) -> bool:
    """Whether a row was trained to be compared. Base, SFT and the best of SFT's samples are what the others are made
    from, in 4 bits say where those are not; that it is the same for all is `made_from`'s."""
    return not row.choice and row.identity.stage not in (BASE, REFERENCE)


def check_conditions(
    expected: Conditions, rows: Mapping[str, Conditions], allowed: Collection[str] = ()
) -> list[Deviation]:
    """The allowed deviations of the named rows; RequestError for the first that was not allowed.

    `allowed` are fields, or the first part of their names (`evaluation`). A field that a row does not have is not
    compared: a base was trained on no data. RequestError also for an unknown name among them.
    """
    check_names(allowed)
    deviations = []
    for row, conditions in rows.items():
        for field, value in conditions.items():
            wanted = expected.get(field, value)
            if _plain(value) == _plain(wanted):
                continue
            if field not in allowed and field.partition(".")[0] not in allowed:
                raise RequestError(
                    f"{row} cannot stand in this table: {field} is {_shown(value)}, the table's is {_shown(wanted)}; "
                    f"{REMEDY[field.partition('.')[0]]}, or let it through, marked, with --allow {field}"
                )
            deviations.append(Deviation(row, field, value, wanted))
    return deviations


def check_names(allowed: Collection[str]) -> None:
    """RequestError for a name that is no condition."""
    groups = {field.partition(".")[0] for field in FIELDS}
    for name in allowed:
        if name not in FIELDS and name not in groups:
            raise RequestError(f"--allow {name}: there is no such condition {suggest(name, [*FIELDS, *groups])}")


def _plain(value: Any) -> Any:
    """As JSON gives it back, so that what was recorded compares with what is planned."""
    return json.loads(json.dumps(value))


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}…"
