"""evaluate(): any checkpoint on any lm-eval tasks, with standard errors and every item's outcome.

Runs lm-eval's evaluator with our model and task loading, then reads its samples into plain results. Greedy unless a
task file says otherwise; the chat template is applied and few-shot examples are turns of the conversation.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.core.errors import RequestError, WorkError
from posttrain.core.results import append_result
from posttrain.eval_harness.backends import refuse_backend
from posttrain.eval_harness.catalog import load_tasks
from posttrain.eval_harness.generation_tasks import refuse_likelihood_tasks
from posttrain.eval_harness.posing import Posing
from posttrain.eval_harness.quiet import quiet
from posttrain.eval_harness.raw_results import read_group, read_task
from posttrain.eval_harness.result import EvaluationResult, TaskResult, write_items
from posttrain.eval_harness.sample_results import with_samples
from posttrain.eval_harness.samples import Samples

if TYPE_CHECKING:
    from posttrain.eval_harness.best_of_n import BestOf
    from posttrain.eval_harness.service_lm import Service


def evaluate(
    checkpoint: str | Path,
    tasks: Sequence[str],
    *,
    few_shot: int | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    posing: Posing | None = None,
    backend: str = "hf",
    service_url: str | None = None,
    best_of: "BestOf | None" = None,
    samples: Samples | None = None,
    include_path: Path | None = None,
    apply_chat_template: bool = True,
    max_gen_toks: int | None = None,
    revision: str | None = None,
    device: str | None = None,
    push: bool = True,
    out_dir: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    results_path: Path | None = None,
    on_result: Callable[[TaskResult], None] | None = None,
) -> EvaluationResult:
    """Evaluates a checkpoint folder or Hub id on named tasks, groups or tags.

    posing: how items are put, all of it; or, for what is asked most, few_shot, apply_chat_template and max_gen_toks.
    limit: only the first so many items of a task.
    backend: `hf` computes here; `service` asks the policy endpoint at `service_url`, which is given the checkpoint's
    weights if it holds others, unless `push` is false; `vllm` starts such an endpoint in vLLM's environment.
    device: of `hf`; default cuda if there is one, else cpu.
    best_of: instead of one greedy answer, the best of n samples of a policy service that holds this checkpoint;
    generation tasks only, under the backend `best_of_<n>`. `identity` should then tell apart what picks, too.
    samples: instead of one greedy answer, several, told by pass@k and maj@k; generation tasks only.
    out_dir: writes `<task>.jsonl`, an object an item. results_path: appends one row a task to that results store;
    `identity` is merged into the rows and must then hold "fingerprint". Both as soon as a task is done (the tasks of
    groups: all of them), so that who is interrupted keeps the tasks before; then `on_result` is called with it.

    RequestError for a wrong request: unknown task or backend, no items, no checkpoint or tokenizer, missing data, a
    task that asks for likelihoods with `best_of` or `samples`.
    """
    started = time.monotonic()
    posing = posing or Posing(few_shot, apply_chat_template, max_gen_toks=max_gen_toks)
    _check(limit, batch_size, backend, service_url, best_of, samples, results_path, identity)
    with quiet(), ExitStack() as stack:
        from lm_eval import evaluator

        loaded = load_tasks(tasks, include_path)
        if best_of is not None or samples is not None:
            refuse_likelihood_tasks(loaded["tasks"], "a sampled answer" if samples else "best of n")
        if samples is not None and loaded["groups"]:
            raise RequestError(f"--samples tells of tasks; {next(iter(loaded['groups']))} is a group: name its tasks")
        label = posing.label(best_of.backend if best_of else backend, samples)
        for task in loaded["tasks"].values():
            _configure(task, posing, samples)
        service = stack.enter_context(_service(backend, str(checkpoint), service_url, push, posing.dtype))
        model = _model(str(checkpoint), batch_size, device, revision, best_of, service, posing.dtype)
        model.samples = samples
        results: dict[str, TaskResult] = {}
        for part in _parts(loaded):
            try:
                raw = evaluator.evaluate(
                    lm=model,
                    task_dict=part,
                    limit=limit,
                    log_samples=True,
                    apply_chat_template=posing.apply_chat_template,
                    fewshot_as_multiturn=posing.as_turns,
                )
            except WorkError as error:
                kept = ", ".join(name for name in results if out_dir is not None or results_path is not None)
                raise WorkError(f"{error} (what was done before is kept: {kept})" if kept else str(error)) from error
            done = _read(part, raw, model, limit, label, samples)
            for task_result in done.values():
                if out_dir is not None:
                    write_items(task_result, Path(out_dir))
                if results_path is not None:
                    append_result(results_path, task_result.row(identity or {}))
                if on_result is not None:
                    on_result(task_result)
            results |= done
    return EvaluationResult(
        checkpoint=str(checkpoint),
        tasks=results,
        requested=_requested(tasks, loaded),
        seconds=time.monotonic() - started,
        notes=(*([best_of.note] if best_of else []), *_notes(model)),
    )


def backend_label(backend: str, apply_chat_template: bool = True, max_gen_toks: int | None = None) -> str:
    """The backend part of a result's key: its name, and what departs from the standard evaluation."""
    return Posing(apply_chat_template=apply_chat_template, max_gen_toks=max_gen_toks).label(backend)


def _check(
    limit: int | None,
    batch_size: int,
    backend: str,
    service_url: str | None,
    best_of: "BestOf | None",
    samples: Samples | None,
    results_path: Path | None,
    identity: Mapping[str, Any] | None,
) -> None:
    if best_of is None:
        refuse_backend(backend)
    if backend == "service" and service_url is None:
        raise RequestError("--backend service asks a policy endpoint; give its address by --policy-url")
    if best_of is not None and (samples is not None or backend != "hf"):
        raise RequestError("--best-of samples by itself; leave --samples and --backend out")
    if limit is not None and limit < 1:
        raise RequestError(f"--limit {limit} leaves no items; give 1 or more, or leave it out for all")
    if batch_size < 1:
        raise RequestError(f"--batch-size {batch_size} holds no item; give 1 or more")
    if results_path is not None and "fingerprint" not in (identity or {}):
        raise ValueError("rows of the results store need identity['fingerprint']")


def _parts(loaded: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is evaluated at a time: a task, since each is batched by itself anyway; the tasks of groups together."""
    grouped = {task.task_name for group in loaded["groups"].values() for task in group.get_all_tasks()}
    together = {name: task for name, task in loaded["tasks"].items() if name in grouped}
    parts = [{"tasks": {name: task}} for name, task in loaded["tasks"].items() if name not in grouped]
    return [*parts, *([{**loaded, "tasks": together}] if together else [])]


def _read(
    part: Mapping[str, Any], raw: Any, model: Any, limit: int | None, label: str, samples: Samples | None
) -> dict[str, TaskResult]:
    """The results of a part's tasks and groups by name."""
    results = {}
    for name, task in part["tasks"].items():
        results[name] = read_task(name, task, raw, limit, label, model.finish_reasons)
        if samples is not None:
            results[name] = with_samples(results[name], task, raw, samples, model.sample_reasons)
    for name, group in part.get("groups", {}).items():
        results[name] = read_group(name, group, raw, limit, label, results)
    return results


def _configure(task: Any, posing: Posing, samples: Samples | None) -> None:
    """What lm-eval's simple_evaluate does between loading and running."""
    default = task.get_config("num_fewshot")
    if posing.few_shot is not None and default != 0:
        task.set_config(key="num_fewshot", value=posing.few_shot)
    elif default is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=posing.few_shot_seed)
    if posing.max_gen_toks is not None and task.OUTPUT_TYPE == "generate_until":
        task.set_config(key="generation_kwargs", value={"max_gen_toks": posing.max_gen_toks}, update=True)
    if samples is not None:
        task.set_config(key="repeats", value=samples.n)


def _service(
    backend: str, checkpoint: str, url: str | None, push: bool, dtype: str | None
) -> AbstractContextManager["Service | None"]:
    from posttrain.eval_harness.service_backend import running_service, vllm_service

    if backend != "hf" and dtype is not None:
        raise RequestError(
            f"--dtype {dtype} is for --backend hf; {backend} computes in a precision of its own: leave it out"
        )
    if backend == "vllm":
        return vllm_service(checkpoint)
    return nullcontext() if url is None or backend == "hf" else running_service(url, checkpoint if push else None)


def _model(
    checkpoint: str,
    batch_size: int,
    device: str | None,
    revision: str | None,
    best_of: "BestOf | None",
    service: "Service | None",
    dtype: str | None,
) -> Any:
    # Each is imported alone: only the last of them needs torch.
    if best_of is not None:
        from posttrain.eval_harness.best_of_n import BestOfLM

        return BestOfLM(checkpoint, batch_size, revision, best_of)
    if service is not None:
        from posttrain.eval_harness.service_lm import ServiceLM

        return ServiceLM(checkpoint, batch_size, revision, service)
    import torch

    from posttrain.eval_harness.model import CheckpointLM

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    precision = getattr(torch, dtype) if dtype else torch.float32 if device == "cpu" else "auto"
    return CheckpointLM(checkpoint, batch_size, device, precision, revision)


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
