"""evaluate(): any checkpoint on any lm-eval tasks, with standard errors and every item's outcome.

Runs lm-eval's evaluator with our model and task loading, then reads its samples into plain results. Greedy unless a
task file says otherwise; the chat template is applied and few-shot examples are turns of the conversation.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.core.errors import RequestError, suggest
from posttrain.core.results import append_result
from posttrain.eval_harness.catalog import load_tasks
from posttrain.eval_harness.generation_tasks import refuse_likelihood_tasks
from posttrain.eval_harness.quiet import quiet
from posttrain.eval_harness.raw_results import read_group, read_task
from posttrain.eval_harness.result import EvaluationResult, write_items

if TYPE_CHECKING:
    from posttrain.eval_harness.best_of_n import BestOf

BACKENDS = ("hf",)

FEW_SHOT_SEED = 1234
"""lm-eval's own default, so that few-shot examples are those of its reports."""


def evaluate(
    checkpoint: str | Path,
    tasks: Sequence[str],
    *,
    few_shot: int | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    backend: str = "hf",
    best_of: "BestOf | None" = None,
    include_path: Path | None = None,
    apply_chat_template: bool = True,
    max_gen_toks: int | None = None,
    revision: str | None = None,
    device: str | None = None,
    out_dir: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    results_path: Path | None = None,
) -> EvaluationResult:
    """Evaluates a checkpoint folder or Hub id on named tasks, groups or tags.

    few_shot: number of examples in the prompt; None takes each task's own default, a task that fixes 0 keeps it.
    limit: only the first so many items of a task. max_gen_toks: replaces the tasks' number of new tokens.
    device: default cuda if there is one, else cpu; weights are float32 on the CPU, as saved on a GPU.
    best_of: instead of one greedy answer, the best of n samples of a policy service that holds this checkpoint;
    generation tasks only, under the backend `best_of_<n>`. `identity` should then tell apart what picks, too.
    out_dir: writes `<task>.jsonl`, an object an item. results_path: appends one row a task to that results store;
    `identity` is merged into the rows and must then hold "fingerprint".

    RequestError for a wrong request: unknown task or backend, no items, no checkpoint or tokenizer, missing data, a
    task that asks for likelihoods with `best_of`.
    """
    started = time.monotonic()
    _check(few_shot, limit, batch_size, backend, max_gen_toks, results_path, identity)
    with quiet():
        from lm_eval import evaluator

        loaded = load_tasks(tasks, include_path)
        if best_of is not None:
            refuse_likelihood_tasks(loaded["tasks"])
        for task in loaded["tasks"].values():
            _configure(task, few_shot, max_gen_toks)
        model = _model(str(checkpoint), batch_size, device, revision, best_of)
        raw = evaluator.evaluate(
            lm=model,
            task_dict=loaded,
            limit=limit,
            log_samples=True,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=apply_chat_template,
        )
    label = backend_label(best_of.backend if best_of else backend, apply_chat_template, max_gen_toks)
    results = {
        name: read_task(name, task, raw, limit, label, model.finish_reasons) for name, task in loaded["tasks"].items()
    }
    for name, group in loaded["groups"].items():
        results[name] = read_group(name, group, raw, limit, label, results)
    result = EvaluationResult(
        checkpoint=str(checkpoint),
        tasks=results,
        requested=_requested(tasks, loaded),
        seconds=time.monotonic() - started,
        notes=(*([best_of.note] if best_of else []), *_notes(model)),
    )
    for task_result in results.values():
        if out_dir is not None:
            write_items(task_result, Path(out_dir))
        if results_path is not None:
            append_result(results_path, task_result.row(identity or {}))
    return result


def backend_label(backend: str, apply_chat_template: bool = True, max_gen_toks: int | None = None) -> str:
    """The backend part of a result's key: its name, and what departs from the standard evaluation."""
    parts = [backend]
    if not apply_chat_template:
        parts.append("no chat template")
    if max_gen_toks is not None:
        parts.append(f"max_gen_toks {max_gen_toks}")
    return ", ".join(parts)


def _check(
    few_shot: int | None,
    limit: int | None,
    batch_size: int,
    backend: str,
    max_gen_toks: int | None,
    results_path: Path | None,
    identity: Mapping[str, Any] | None,
) -> None:
    if backend not in BACKENDS:
        raise RequestError(f"unknown backend '{backend}' {suggest(backend, BACKENDS)}")
    if limit is not None and limit < 1:
        raise RequestError(f"--limit {limit} leaves no items; give 1 or more, or leave it out for all")
    if few_shot is not None and few_shot < 0:
        raise RequestError(f"--few-shot {few_shot} is negative; give 0 or more")
    if batch_size < 1:
        raise RequestError(f"--batch-size {batch_size} holds no item; give 1 or more")
    if max_gen_toks is not None and max_gen_toks < 1:
        raise RequestError(f"--max-gen-toks {max_gen_toks} generates nothing; give 1 or more")
    if results_path is not None and "fingerprint" not in (identity or {}):
        raise ValueError("rows of the results store need identity['fingerprint']")


def _configure(task: Any, few_shot: int | None, max_gen_toks: int | None) -> None:
    """What lm-eval's simple_evaluate does between loading and running."""
    default = task.get_config("num_fewshot")
    if few_shot is not None and default != 0:
        task.set_config(key="num_fewshot", value=few_shot)
    elif default is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=FEW_SHOT_SEED)
    if max_gen_toks is not None and task.OUTPUT_TYPE == "generate_until":
        task.set_config(key="generation_kwargs", value={"max_gen_toks": max_gen_toks}, update=True)


def _model(checkpoint: str, batch_size: int, device: str | None, revision: str | None, best_of: "BestOf | None") -> Any:
    import torch

    from posttrain.eval_harness.best_of_n import BestOfLM
    from posttrain.eval_harness.model import CheckpointLM

    if best_of is not None:
        return BestOfLM(checkpoint, batch_size, revision, best_of)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return CheckpointLM(checkpoint, batch_size, device, torch.float32 if device == "cpu" else "auto", revision)


def _requested(tasks: Sequence[str], loaded: Mapping[str, Any]) -> tuple[str, ...]:
    known = {*loaded["tasks"], *loaded["groups"]}
    named = [name for name in dict.fromkeys(tasks) if name in known]
    if len(named) == len(set(tasks)):
        return tuple(named)
    in_groups = {task.task_name for group in loaded["groups"].values() for task in group.get_all_tasks()}
    return tuple(named + [name for name in loaded["tasks"] if name not in named and name not in in_groups])


def _notes(model: Any) -> tuple[str, ...]:
    return tuple(
        f"{count} prompts of {task} were cut on the left to the context of {model.max_length}"
        for task, count in model.prompts_cut.items()
        if count
    )
