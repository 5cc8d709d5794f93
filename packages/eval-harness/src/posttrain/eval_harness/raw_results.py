"""Reads what lm-eval's evaluator returns into plain results: metrics, standard errors, and each item's outcome."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.eval_harness.clusters import KEY, cluster_of
from posttrain.eval_harness.result import Metric, TaskResult, clustered_standard_error, finite

Raw = Mapping[str, Any]
"""What `lm_eval.evaluator.evaluate` returns."""


def read_task(
    name: str, task: Any, raw: Raw, limit: int | None, backend: str, finish_reasons: Mapping[tuple[str, int], str]
) -> TaskResult:
    """One task's result; `finish_reasons` are by task and item number, of generated answers."""
    values = raw["results"][name]
    metrics: dict[str, Metric] = {}
    scores: dict[str, list[Any]] = {}
    for key in _in_file_order(task, values):
        metric, _, filter_name = key.partition(",")
        of_filter = [sample for sample in raw["samples"][name] if sample["filter"] == filter_name]
        of_items = [sample[metric] for sample in of_filter]
        clusters = [cluster_of(_identity(sample)) for sample in of_filter]
        value, error = float(values[key]), _standard_error(values, key)
        if (error is None or len(set(clusters)) < len(clusters)) and _is_mean(value, of_items):
            error = clustered_standard_error(of_items, clusters)
        metrics[_shown(key)] = Metric(value, error)
        scores[_shown(key)] = of_items
    headline = next(iter(metrics))
    return TaskResult(
        task=name,
        version=raw["versions"][name],
        few_shot=raw["n-shot"][name],
        limit=limit,
        n=len(scores[headline]),
        backend=backend,
        headline=headline,
        metrics=metrics,
        items=_items(task, raw["samples"][name], headline, scores, finish_reasons),
    )


def read_group(
    name: str, group: Any, raw: Raw, limit: int | None, backend: str, results: Mapping[str, TaskResult]
) -> TaskResult:
    """A group's result, whose items are those of its tasks, with the task's name before their ids."""
    values = raw["results"][name]
    members = [results[task.task_name] for task in group.get_all_tasks()]
    metrics = {_shown(key): Metric(float(values[key]), _standard_error(values, key)) for key in _metric_keys(values)}
    return TaskResult(
        task=name,
        version=raw["versions"].get(name),
        few_shot=members[0].few_shot,
        limit=limit,
        n=sum(member.n for member in members),
        backend=backend,
        headline=next(iter(metrics), members[0].headline),
        metrics=metrics,
        items=[_of_task(m.task, item) for m in members for item in m.items],
    )


def _of_task(task: str, item: Mapping[str, Any]) -> dict[str, Any]:
    """An item with its task's name before its id and its cluster, for tasks may use the same ones."""
    return {**item, **{key: f"{task}/{item[key]}" for key in ("id", KEY) if key in item}}


def _metric_keys(values: Mapping[str, Any]) -> list[str]:
    """`metric,filter` of every reported value."""
    return [key for key in values if "," in key and not key.partition(",")[0].endswith("_stderr")]


def _in_file_order(task: Any, values: Mapping[str, Any]) -> list[str]:
    """The metric keys, metrics and then filters in the order of the task file: the first is the headline."""
    order = {metric: place for place, metric in enumerate(task.aggregation())}
    return sorted(_metric_keys(values), key=lambda key: order.get(key.partition(",")[0], len(order)))


def _standard_error(values: Mapping[str, Any], key: str) -> float | None:
    """What lm-eval reports; it writes "N/A" where it knows none."""
    metric, _, filter_name = key.partition(",")
    error = values.get(f"{metric}_stderr,{filter_name}")
    return error if isinstance(error, float) else None


def _is_mean(value: float, scores: Sequence[Any]) -> bool:
    """Whether a metric is the mean of its items' scores (numbers, or lists of them), as accuracies are."""
    flat = [part for score in scores for part in (score if isinstance(score, list) else [score])]
    numbers = bool(flat) and all(isinstance(part, (int, float)) for part in flat)
    return numbers and math.isclose(sum(flat) / len(flat), value, rel_tol=1e-9, abs_tol=1e-12)


def _identity(sample: Mapping[str, Any]) -> dict[str, str]:
    """What tells an item from others, and ties it to some, in its item file."""
    doc = sample["doc"]
    cluster = {} if doc.get(KEY) is None else {KEY: str(doc[KEY])}
    return {"id": item_id(doc, sample["doc_id"]), **cluster}


def item_id(doc: Mapping[str, Any], number: int) -> str:
    """What an item is called in item files; `number` is its place in the task."""
    return str(doc.get("id", doc.get("key", number)))


def _shown(key: str) -> str:
    return key.removesuffix(",none")


def _items(
    task: Any,
    samples: Sequence[Mapping[str, Any]],
    headline: str,
    scores: Mapping[str, list[Any]],
    finish_reasons: Mapping[tuple[str, int], str],
) -> list[dict[str, Any]]:
    filter_name = headline.partition(",")[2] or "none"
    items = []
    for number, sample in enumerate(sample for sample in samples if sample["filter"] == filter_name):
        of_item = {metric: _plain(values[number]) for metric, values in scores.items()}
        item = {
            **_identity(sample),
            "prediction": _prediction(task, sample),
            "score": of_item[headline],
            "scores": of_item,
        }
        if task.OUTPUT_TYPE == "generate_until":
            finish_reason = finish_reasons[task.config.task, sample["doc_id"]]
            item |= {"text": sample["resps"][0][0], "finish_reason": finish_reason}
        items.append(item)
    return items


def _prediction(task: Any, sample: Mapping[str, Any]) -> Any:
    """The index of the likeliest choice, or what the headline's filter took from the text."""
    if task.OUTPUT_TYPE == "multiple_choice":
        likelihoods = [response[0] for response in sample["filtered_resps"]]
        return max(range(len(likelihoods)), key=likelihoods.__getitem__)
    return _plain(sample["filtered_resps"][0])


def _plain(value: Any) -> Any:
    """Values as JSON has them: numbers become floats, what is not finite becomes null."""
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, str) or value is None:
        return value
    return finite(float(value))
