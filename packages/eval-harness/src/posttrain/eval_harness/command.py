"""`posttrain eval CHECKPOINT`: a table of tasks with standard errors for any checkpoint.

Writes every item's outcome and appends to the results store; prints for people, or one JSON object with --json.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from posttrain.core.errors import Interrupted, RequestError
from posttrain.core.files import read_json
from posttrain.core.hashing import digest_checkpoint, digest_json
from posttrain.eval_harness.backends import refuse_backend
from posttrain.eval_harness.catalog import NANO_TASKS
from posttrain.eval_harness.options import posed, print_stages, refuse_half_a_stage, sampled
from posttrain.eval_harness.presets import preset as find_preset
from posttrain.eval_harness.printing import as_object, print_result
from posttrain.eval_harness.stage_table import append_stage, read_stages, stage_table

RUNS = Path("runs")


def evaluate_checkpoint(
    checkpoint: Annotated[str | None, typer.Argument(help="A Hugging Face folder or Hub id.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Names, comma-separated; default: the nano tasks.")] = None,
    preset: Annotated[str | None, typer.Option(help="A named evaluation: lab, the reference lab's.")] = None,
    include_path: Annotated[Path | None, typer.Option(help="Folder of your own lm-eval task files.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many items of each task.")] = None,
    few_shot: Annotated[int | None, typer.Option(help="Examples in the prompt; default: each task's own.")] = None,
    few_shot_seed: Annotated[int | None, typer.Option(help="Which examples; default: lm-eval's 1234.")] = None,
    max_gen_toks: Annotated[int | None, typer.Option(help="New tokens an answer; default: each task's own.")] = None,
    batch_size: Annotated[int, typer.Option(help="Items a forward pass.")] = 64,
    chat_template: Annotated[bool | None, typer.Option(help="Pose items as a conversation; default: yes.")] = None,
    fewshot_as_multiturn: Annotated[
        bool | None, typer.Option(help="Examples as turns of it; default: as the chat template.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: float32 on a CPU.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if there is one.")] = None,
    backend: Annotated[str, typer.Option(help="What computes: hf (here), vllm (its environment), service.")] = "hf",
    tokenizer: Annotated[
        str | None, typer.Option(help="With --backend service and no checkpoint: that of what the service holds.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Answers an item, for pass@k and maj@k.")] = None,
    temperature: Annotated[float, typer.Option(help="Of the samples.")] = 1.0,
    pass_at: Annotated[str, typer.Option(help="k of pass@k, comma-separated; needs --samples.")] = "1",
    maj_at: Annotated[str, typer.Option(help="k of maj@k, comma-separated; needs --samples.")] = "",
    best_of: Annotated[int | None, typer.Option(help="Pick the best of so many samples; generation tasks.")] = None,
    policy_url: Annotated[str | None, typer.Option(help="Policy service that answers.", envvar="POLICY_URL")] = None,
    reward_url: Annotated[str | None, typer.Option(help="Reward service that picks.", envvar="REWARD_URL")] = None,
    reward: Annotated[list[str] | None, typer.Option(help="source=weight that picks; default: rm=1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the samples; default 0.")] = None,
    append: Annotated[Path | None, typer.Option(help="Append a row to this table of stages (JSONL).")] = None,
    stage: Annotated[str | None, typer.Option(help="The row's name; needs --append.")] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Print the table of --append; alone without a checkpoint.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Where to write; default: under runs/.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Evaluate a checkpoint on lm-eval tasks: value, standard error and every item's outcome.

    `posttrain eval show DIR` pages through the items of an evaluation, `--wrong` the wrong ones.
    """
    console = Console(stderr=as_json)
    refuse_half_a_stage(checkpoint or tokenizer, append, stage, table)
    if checkpoint is None and tokenizer is None:
        assert append is not None
        print_stages(append, console, as_json)
        return
    chosen = find_preset(preset) if preset is not None else None
    # What is wrong is told before the five seconds that lm-eval takes to import.
    if best_of is None:
        refuse_backend(backend)
    identity = _identity(checkpoint, tokenizer, revision, backend, policy_url)
    named = tasks if tasks is not None else ",".join(chosen.tasks if chosen else NANO_TASKS)
    names = [name.strip() for name in named.split(",") if name.strip()]
    seed = seed if seed is not None else chosen.seed if chosen else 0
    sampling = sampled(samples, temperature, pass_at, maj_at, seed)
    choice, left_out = None, []
    if best_of is not None:
        from posttrain.eval_harness.best_of_n_command import connect, picking_identity
        from posttrain.eval_harness.generation_tasks import generation_tasks

        if checkpoint is None:
            raise RequestError("--best-of picks among the answers of a CHECKPOINT; name it")
        choice = connect(checkpoint, best_of, policy_url, reward_url, reward, seed)
        identity = picking_identity(identity, choice)
        generated = generation_tasks(names, include_path)
        left_out = [name for name in names if name not in generated]
        names = generated or names  # if none is left, evaluate() says what is wrong with them
    from posttrain.eval_harness.evaluation import evaluate

    here = backend == "hf" and best_of is None
    posing = posed(
        chosen, few_shot, chat_template, fewshot_as_multiturn, few_shot_seed, max_gen_toks, dtype, device, here
    )
    label = posing.label(choice.backend if choice else backend, sampling)
    folder = out or RUNS / "eval" / identity["fingerprint"][:12] / posing.folder(label, limit)
    store = (out or RUNS) / "metrics.jsonl"
    done: list[str] = []
    try:
        result = evaluate(
            checkpoint or str(tokenizer),
            names,
            limit=limit,
            batch_size=batch_size,
            backend=backend,
            service_url=policy_url,
            best_of=choice,
            samples=sampling,
            include_path=include_path,
            posing=posing,
            revision=revision,
            device=device,
            push=checkpoint is not None,
            out_dir=folder,
            identity=identity,
            results_path=store,
            on_result=lambda of_task: done.append(of_task.task),
        )
    except KeyboardInterrupt as stopped:
        kept = f"kept: {', '.join(done)}; the same command starts anew" if done else "no task was done, nothing is kept"
        raise Interrupted(f"interrupted; {kept}") from stopped
    print_result(result, folder, store, console, chosen)
    if left_out:
        console.print(f"note: left out, for best of n has no likelihoods: {', '.join(left_out)}")
    rows = []
    if append is not None:
        assert stage is not None
        rows = [append_stage(append, stage, identity["checkpoint"], result[name]) for name in result.requested]
        if table:
            console.print(stage_table(read_stages(append)))
    if as_json:
        print(json.dumps(as_object(result, identity, folder, chosen, rows), ensure_ascii=False))


def _identity(
    checkpoint: str | None, tokenizer: str | None, revision: str | None, backend: str, policy_url: str | None
) -> dict[str, Any]:
    """Whose results these are: the checkpoint's, or those of whatever a service holds."""
    if checkpoint is not None:
        if tokenizer is not None:
            raise RequestError("--tokenizer is for a service whose checkpoint is not here; leave it or CHECKPOINT out")
        return checkpoint_identity(checkpoint, revision)
    if backend != "service" or policy_url is None:
        raise RequestError("--tokenizer without CHECKPOINT needs --backend service and --policy-url")
    from posttrain.eval_harness.service_backend import held_identity

    assert tokenizer is not None
    return held_identity(policy_url, checkpoint_identity(tokenizer, revision)["fingerprint"])


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
