"""`posttrain runs export`: a finished run as a folder for the Hub: weights, tokenizer, card, recipe, provenance."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from posttrain.core.config import read_yaml
from posttrain.core.errors import RequestError
from posttrain.core.files import atomic_directory, atomic_write_json, atomic_write_text, read_json
from posttrain.core.results import read_results
from posttrain.core.runs import RunDirectory
from posttrain.lab.hub_card import HUB_ID, Exported, hub_card, hub_id_of, named_plainly
from posttrain.lab.runs_command import RUNS, Json, RunsFolder, find_runs, one_run

OWN = ("README.md", "provenance.json")
"""Files of a checkpoint that an export makes anew."""
MARKS = (*OWN, "config.yaml")
"""They tell an export from any other folder: a run's checkpoint has no config.yaml, a run's folder no README.md."""
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json")
ADAPTER = "adapter"


def export(
    fingerprint: Annotated[str, typer.Argument(help="The run's folder, or its fingerprint or the beginning of it.")],
    destination: Annotated[Path, typer.Argument(help="The folder to write.")],
    adapter: Annotated[bool, typer.Option("--adapter", help="The adapter alone, without merged weights.")] = False,
    license: Annotated[str | None, typer.Option(help="The Hub's name of a licence, for the card.")] = None,
    base_model: Annotated[
        str | None,
        typer.Option(help="Hub id of what it was made from, or, with --adapter, is put onto.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    runs: RunsFolder = RUNS,
    as_json: Json = False,
) -> None:
    """Write a finished run's checkpoint as a folder ready for the Hub, with a card that says all about it."""
    found = one_run(runs, fingerprint)
    source = found.run.path / ADAPTER if adapter else found.run.checkpoint
    if found.state != "finished":
        raise RequestError(f"run {found.fingerprint} ({found.stage}) is {found.state}; only a finished one is exported")
    if not source.is_dir():
        what = "adapter: it trained all weights" if adapter else "checkpoint of its own"
        raise RequestError(f"run {found.fingerprint} ({found.stage}) has no {what}")
    if base_model is not None and not HUB_ID.fullmatch(base_model):
        raise RequestError(f"--base-model '{base_model}' is no Hub id (owner/name)")
    _refuse_to_lose(destination, force)
    exported = describe_run(found.run, found.recipe, runs, base_model, license, adapter)
    card = hub_card(exported)
    with atomic_directory(destination) as new:
        _copy(source, new)
        if adapter:
            _copy(found.run.checkpoint, new, without=WEIGHTS)
        elif (found.run.path / ADAPTER).is_dir():
            _copy(found.run.path / ADAPTER, new / ADAPTER)
        for config in new.rglob("adapter_config.json"):
            start = exported.config["start"]
            on = exported.base if adapter and exported.base else hub_id_of(start) or named_plainly(start)
            atomic_write_json(config, read_json(config) | {"base_model_name_or_path": on})
        atomic_write_text(new / "README.md", card)
        shown = yaml.safe_dump(named_plainly(dict(exported.config)), sort_keys=False, allow_unicode=True)
        atomic_write_text(new / "config.yaml", shown)
        atomic_write_json(new / "provenance.json", named_plainly(dict(exported.provenance)))
    files = sorted(str(path.relative_to(destination)) for path in destination.rglob("*") if path.is_file())
    if as_json:
        print(
            json.dumps(
                {
                    "directory": str(destination),
                    "fingerprint": exported.provenance["fingerprint"],
                    "base_model": exported.base,
                    "evaluations": len(exported.results),
                    "files": files,
                }
            )
        )
    else:
        print(f"{found.stage} {found.fingerprint}: {len(files)} files in {destination}")
    if not exported.results:
        print(f"note: no evaluation of this run is in {runs / 'metrics.jsonl'}; its card says so", file=sys.stderr)
    if license is None:
        print("note: the card names no licence; give --license, which the base model's may decide", file=sys.stderr)


def describe_run(
    run: RunDirectory, recipe: str, runs: Path, base: str | None, license: str | None, adapter: bool
) -> Exported:
    """What the card of a finished run is made of; `base` goes before the Hub id that the records name."""
    from posttrain.lab.costs import row_cost  # which imports what trains

    provenance, config = run.provenance(), read_yaml(run.path / "config.yaml")
    before = list(_before(provenance, runs))
    stages = [stage for stage in (*before, provenance) if "cost" in stage]
    cost = row_cost([stages], None)
    assert cost is not None, "a run with a checkpoint is a stage"
    architecture = (read_json(run.checkpoint / "config.json").get("architectures") or [""])[0]
    root, named = _root(config, before, runs)
    stored = read_results(runs / "metrics.jsonl")
    return Exported(
        recipe=recipe,
        provenance=provenance,
        config=config,
        results=[*(row for row in stored if row["fingerprint"] == provenance["fingerprint"]), *_held_out(provenance)],
        before=[stage for stage in before if "cost" in stage],
        cost=cost,
        kind=f"AutoModelFor{'SequenceClassification' if 'SequenceClassification' in architecture else 'CausalLM'}",
        base=base or (hub_id_of(config["start"]) if adapter else root),
        base_name=named,
        license=license,
        adapter_only=adapter,
    )


def _held_out(provenance: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The accuracy on held-out pairs, of a reward model or implied by a policy, in the form of a stored result."""
    summary = provenance.get("summary", {})
    explicit, implied = summary.get("accuracy"), summary.get("held_out")
    found = dict(explicit) if isinstance(explicit, dict) else {}
    if isinstance(implied, dict) and "accuracy" in implied:
        found["implied"] = implied | {"standard_error": implied["accuracy_standard_error"]}
    for kind, accuracy in found.items():
        value = {"value": accuracy["accuracy"], "standard_error": accuracy["standard_error"]}
        yield {
            "task": f"held-out pairs, {kind}",
            "metrics": {"reward accuracy": value},
            "n": accuracy["n"],
            "few_shot": "—",
            "limit": None,
            "backend": "—",
        }


def _before(provenance: dict[str, Any], runs: Path) -> Iterator[dict[str, Any]]:
    """Provenance of all that a run needed and that still lies under runs/, each once, earlier stages first."""
    places = {found.fingerprint: found.run for found in find_runs(runs) if found.state == "finished"}
    seen: set[str] = set()

    def walk(of: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for parent in of.get("parents", []):
            if parent not in seen and parent[:12] in places:
                seen.add(parent)
                record = places[parent[:12]].provenance()
                yield from walk(record)
                yield record

    return walk(provenance)


def _root(config: dict[str, Any], before: list[dict[str, Any]], runs: Path) -> tuple[str | None, str]:
    """The model that everything began with: its Hub id, where the records have one, and what they call it."""
    for record in before:
        if record["stage"] == "base":
            return (record["model"] if record["revision"] else None), record["model"]
    starts = [config["start"]]
    for record in reversed(before):
        starts += [read_yaml(path)["start"] for path in runs.glob(f"*/*/{record['fingerprint'][:12]}/config.yaml")]
    return next((found for start in starts if (found := hub_id_of(start))), None), named_plainly(starts[-1])


def _refuse_to_lose(destination: Path, force: bool) -> None:
    if not destination.exists():
        return
    if not force:
        raise RequestError(
            f"{destination} is there already; name another folder, or replace an earlier export: --force"
        )
    if not all((destination / name).is_file() for name in MARKS):
        raise RequestError(f"{destination} is no earlier export, so --force does not replace it; name another folder")
    # A clone of the Hub's repository, say, whose .git would be lost.
    if more := sorted(path.name for path in destination.iterdir() if path.is_dir() and path.name != ADAPTER):
        raise RequestError(f"{destination} holds {more[0]}/, which no export has, so --force does not replace it")


def _copy(source: Path, target: Path, without: tuple[str, ...] = ()) -> None:
    target.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in OWN and not any(path.match(pattern) for pattern in without):
            shutil.copyfile(path, target / path.name)  # with the usual permissions, whatever the run's are
