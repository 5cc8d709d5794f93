"""The model card of an exported run: metadata in the Hub's form, its row of the table, recipe, cost and provenance.

Pure: from what a run recorded to text. Folders of the machine that it ran on are named without their place there.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from posttrain.lab.costs import RowCost

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_RUN_PLACE = re.compile(r"^.*/([^/]+/[^/]+/[0-9a-f]{12})(?:/checkpoint)?/?$")
_SNAPSHOT = re.compile(r"^.*/models--([^/]+?)--([^/]+)/snapshots/([^/]+)/?$")
_LOADED = {
    "checkpoint": """from transformers import {kind}, AutoTokenizer

model = {kind}.from_pretrained("FOLDER_OR_HUB_ID")
tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_HUB_ID")""",
    "adapter": """from peft import PeftModel
from transformers import {kind}, AutoTokenizer

model = PeftModel.from_pretrained({kind}.from_pretrained("{base}"{more}), "FOLDER_OR_HUB_ID")
tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_HUB_ID")""",
}


@dataclass(frozen=True)
class Exported:
    """What a card is made of."""

    recipe: str
    provenance: Mapping[str, Any]
    config: Mapping[str, Any]
    """The run's resolved config.yaml."""
    results: Sequence[Mapping[str, Any]]
    """Its rows of the results store."""
    before: Sequence[Mapping[str, Any]]
    """Provenance of the stages before it, in order."""
    cost: "RowCost"
    kind: str
    """Transformers' class to load it with: AutoModelForCausalLM, AutoModelForSequenceClassification."""
    base: str | None
    """The base model's Hub id; of an adapter that of the model which it is put onto. None where it has none."""
    base_name: str
    """What the records call the model that everything began with."""
    license: str | None = None
    adapter_only: bool = False


def hub_card(run: Exported) -> str:
    """README.md of an exported folder."""
    from huggingface_hub import ModelCardData

    method = run.provenance["method"]
    causal = run.kind == "AutoModelForCausalLM"
    data = ModelCardData(
        base_model=run.base,
        datasets=sorted(set(_hub_ids(run.provenance.get("conditions", {})))) or None,
        library_name="peft" if run.adapter_only else "transformers",
        license=run.license,
        pipeline_tag="text-generation" if causal else "text-classification",
        tags=["posttrain", method] + ([] if causal else ["reward-model"]),
    )
    return f"---\n{data.to_yaml()}\n---\n" + "\n\n".join(_sections(run)) + "\n"


def named_plainly(value: Any) -> Any:
    """The same JSON with every absolute path as what it stands for: a run, a Hub id with its commit, or a name."""
    if isinstance(value, Mapping):
        return {key: named_plainly(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [named_plainly(each) for each in value]
    if not isinstance(value, str) or not value.startswith("/"):
        return value
    if found := _SNAPSHOT.match(value):
        return f"{found[1]}/{found[2]}@{found[3]}"
    if value.endswith("posttrain/data/nano/base"):
        return "nano"
    if found := _RUN_PLACE.match(value):
        return found[1]
    return PurePosixPath(value).name


def hub_id_of(path: str) -> str | None:
    """The Hub id whose snapshot a folder is, None for any other folder."""
    found = _SNAPSHOT.match(path)
    return f"{found[1]}/{found[2]}" if found else None


def _sections(run: Exported) -> Iterator[str]:
    provenance = run.provenance
    name = provenance.get("arm", {}).get("name", provenance["method"])
    start = named_plainly(run.config["start"])
    what = "An adapter" if run.adapter_only else "A model"
    learnt = provenance.get("arm", {}).get("learns_from")
    yield f"# {name} ({run.recipe}, seed {provenance['seed']})"
    yield (
        f"{what} trained by posttrain with the method `{provenance['method']}` of the recipe `{run.recipe}`, from "
        f"`{start}`{f', learning from {learnt}' if learnt else ''}."
    )
    yield "## Results\n\n" + _results(run.results)
    yield "## Use\n\n" + _use(run, start)
    settings = yaml.safe_dump(named_plainly(run.config["settings"]), sort_keys=False, allow_unicode=True)
    data = {key: run.config[key] for key in ("source", "validation") if run.config.get(key)}
    shown = yaml.safe_dump(named_plainly(data), sort_keys=False, allow_unicode=True) if data else ""
    yield f"## Recipe\n\nThe whole of it is in `config.yaml`.\n\n```yaml\n{shown}settings:\n{_indented(settings)}```"
    yield "## Cost\n\n" + _cost(run)
    yield "## Provenance\n\n" + _provenance(run)


def _use(run: Exported, start: str) -> str:
    loaded = _LOADED["adapter" if run.adapter_only else "checkpoint"]
    scores = run.kind == "AutoModelForSequenceClassification"
    more = ", num_labels=1" if scores else ""  # as many as its head has; the base has no head
    parts = [f"```python\n{loaded.format(kind=run.kind, base=run.base or start, more=more)}\n```"]
    if scores and (offset := run.provenance.get("summary", {}).get("reward_offset")):
        parts.append(
            f"A reward is the logit less `reward_offset`, {offset:.6g}: the mean score of the policy's own answers."
        )
    if run.adapter_only and not run.base:
        parts.append(f"The adapter belongs on the checkpoint of `{start}`, which has no Hub id in the run's records.")
    return "\n\n".join(parts)


def _results(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "Not evaluated."
    cells = [
        (_task(row["task"]), metric, _value(value), row["n"], row["few_shot"], row["limit"] or "all", row["backend"])
        for row in rows
        for metric, value in row["metrics"].items()
    ]
    head = ("task", "metric", "value ± standard error", "n", "few-shot", "items", "backend")
    return _table(head, cells)


def _task(task: str) -> str:
    # KL and rewards of a policy are stored under a digest of how it was sampled.
    return "prompts, sampled" if task.startswith("policy-") else task


def _value(value: Mapping[str, Any]) -> str:
    error = value.get("standard_error")
    return f"{value['value']:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _cost(run: Exported) -> str:
    stages = [*run.before, run.provenance]
    cells = [
        (
            stage["method"],
            f"`{stage['fingerprint'][:12]}`",
            f"{stage['cost']['wall_seconds']:.0f}",
            f"{stage['cost']['core_seconds'] / 3600:.3f}",
            f"{stage['cost']['gpu_hours']:.3f}" if "gpu_hours" in stage["cost"] else "—",
            f"{stage['cost']['peak_memory_bytes'] / 2**20:.0f}",
        )
        for stage in stages
        if "cost" in stage
    ]
    cost = run.cost
    gpu = "" if cost.all_gpu_hours is None else f", {cost.all_gpu_hours:.3f} GPU-hours"
    bound = " A stage was killed and resumed without its account: a lower bound." if cost.any_resumed else ""
    tokens = f"{cost.tokens_trained:,.0f} tokens trained and {cost.tokens_generated:,.0f} generated in the last stage"
    head = ("stage", "run", "seconds", "core-hours", "GPU-hours", "peak memory, MiB")
    return f"{_table(head, cells)}\n\nIn all {cost.all_core_hours:.3f} core-hours{gpu}; {tokens}.{bound}"


def _provenance(run: Exported) -> str:
    provenance, environment = run.provenance, run.provenance["environment"]
    conditions, hardware = provenance.get("conditions", {}), environment["hardware"]
    accelerators = ", ".join(map(str, hardware.get("accelerators") or [])) or "no accelerator"
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    base = f"revision {conditions.get('base.revision') or '—'}, digest `{conditions.get('base.digest', '—')}`"
    lines = [
        f"config hash `{provenance['config_hash']}`",
        f"fingerprint `{provenance['fingerprint']}`, seed {provenance['seed']}",
        f"base: {run.base_name}, {base}",
        f"code: commit `{environment['git_commit'] or 'unknown'}`, Python {environment['python']}",
        f"machine: {hardware['processor'] or hardware['machine']}, {hardware['cores']} cores, {accelerators}",
        f"packages: {packages}",
    ]
    return "\n".join(f"- {line}" for line in lines) + "\n\n`provenance.json` has all of it."


def _table(head: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())


def _hub_ids(value: Any) -> Iterator[str]:
    """The Hub ids of all data sets named in what a run was conditioned on."""
    if isinstance(value, Mapping):
        path = value.get("path")
        if isinstance(path, str) and HUB_ID.fullmatch(path):
            yield path
        for each in value.values():
            yield from _hub_ids(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _hub_ids(each)
