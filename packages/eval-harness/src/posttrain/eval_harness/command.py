"""`posttrain eval CHECKPOINT`: a table of tasks with standard errors for any checkpoint.

Writes every item's outcome and appends to the results store; prints for people, or one JSON object with --json.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from posttrain.core.errors import RequestError
from posttrain.core.files import read_json
from posttrain.core.hashing import digest_checkpoint, digest_json
from posttrain.eval_harness.catalog import NANO_TASKS

if TYPE_CHECKING:
    from posttrain.eval_harness.result import EvaluationResult

RUNS = Path("runs")


def evaluate_checkpoint(
    checkpoint: Annotated[str, typer.Argument(help="A Hugging Face folder or Hub id.")],
    tasks: Annotated[str, typer.Option(help="Names, comma-separated.")] = ",".join(NANO_TASKS),
    include_path: Annotated[Path | None, typer.Option(help="Folder of your own lm-eval task files.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many items of each task.")] = None,
    few_shot: Annotated[int | None, typer.Option(help="Examples in the prompt; default: each task's own.")] = None,
    max_gen_toks: Annotated[int | None, typer.Option(help="New tokens an answer; default: each task's own.")] = None,
    batch_size: Annotated[int, typer.Option(help="Items a forward pass.")] = 64,
    chat_template: Annotated[bool, typer.Option(help="Pose items as a conversation.")] = True,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if there is one.")] = None,
    best_of: Annotated[int | None, typer.Option(help="Pick the best of so many samples; generation tasks.")] = None,
    policy_url: Annotated[str | None, typer.Option(help="Policy service that samples.", envvar="POLICY_URL")] = None,
    reward_url: Annotated[str | None, typer.Option(help="Reward service that picks.", envvar="REWARD_URL")] = None,
    reward: Annotated[list[str] | None, typer.Option(help="source=weight that picks; default: rm=1.")] = None,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Where to write; default: under runs/.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Evaluate a checkpoint on lm-eval tasks: value, standard error and every item's outcome."""
    # A wrong checkpoint is told before the five seconds that lm-eval takes to import.
    identity = checkpoint_identity(checkpoint, revision)
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    choice, left_out = None, []
    if best_of is not None:
        from posttrain.eval_harness.best_of_n_command import connect, picking_identity
        from posttrain.eval_harness.generation_tasks import generation_tasks

        choice = connect(checkpoint, best_of, policy_url, reward_url, reward, seed)
        identity = picking_identity(identity, choice)
        generated = generation_tasks(names, include_path)
        left_out = [name for name in names if name not in generated]
        names = generated or names  # if none is left, evaluate() says what is wrong with them
    from posttrain.eval_harness.evaluation import evaluate

    folder = out or RUNS / "eval" / identity["fingerprint"][:12]
    store = (out or RUNS) / "metrics.jsonl"
    result = evaluate(
        checkpoint,
        names,
        few_shot=few_shot,
        limit=limit,
        batch_size=batch_size,
        best_of=choice,
        include_path=include_path,
        apply_chat_template=chat_template,
        max_gen_toks=max_gen_toks,
        revision=revision,
        device=device,
        out_dir=folder,
        identity=identity,
        results_path=store,
    )
    console = Console(stderr=as_json)
    _print(result, folder, store, console)
    if left_out:
        console.print(f"note: left out, for best of n has no likelihoods: {', '.join(left_out)}")
    if as_json:
        print(json.dumps(_as_json(result, identity, folder), ensure_ascii=False))


def checkpoint_identity(checkpoint: str, revision: str | None) -> dict[str, Any]:
    """`{"checkpoint", "fingerprint"}`: the run's fingerprint where there is one, else a digest of the weights.

    RequestError for what is neither a checkpoint folder nor can be a Hub id.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        if folder.exists():
            raise RequestError(f"{checkpoint} is a file; give the checkpoint's folder")
        if checkpoint.count("/") > 1 or checkpoint.startswith((".", "/", "~")):
            raise RequestError(f"checkpoint folder {checkpoint} does not exist")
        return {"checkpoint": checkpoint, "fingerprint": digest_json([checkpoint, revision or "main"])}
    if not any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        raise RequestError(f"{checkpoint} is not a checkpoint: it has no config.json")
    of_the_run = folder.parent if folder.name == "checkpoint" else folder
    for place in (folder, of_the_run):
        path = place / "provenance.json"
        if path.exists() and (fingerprint := read_json(path).get("fingerprint")):
            return {"checkpoint": checkpoint, "fingerprint": fingerprint}
    return {"checkpoint": checkpoint, "fingerprint": digest_checkpoint(folder)}


def _print(result: "EvaluationResult", folder: Path, store: Path, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("task and metric", no_wrap=True)
    table.add_column("value", justify="right")
    table.add_column("± SE", justify="right")
    for name in result.requested:
        task = result[name]
        table.add_row(f"{name}  [dim]v{task.version}, {task.few_shot}-shot, {task.n} items[/]")
        for metric, estimate in task.metrics.items():
            error = "" if estimate.standard_error is None else f"{estimate.standard_error:.4f}"
            table.add_row(f"  {metric}", f"{estimate.value:.4f}", error)
    console.print(result.checkpoint, highlight=False, soft_wrap=True)
    console.print(table)
    for note in result.notes:
        console.print(f"note: {note}")
    console.print(f"{result.seconds:.1f} s; items in {folder}/, results in {store}", highlight=False, soft_wrap=True)


def _as_json(result: "EvaluationResult", identity: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {
        **identity,
        "seconds": round(result.seconds, 3),
        "notes": list(result.notes),
        "out": str(folder),
        "results": [result[name].row({}) for name in result.requested],
    }
