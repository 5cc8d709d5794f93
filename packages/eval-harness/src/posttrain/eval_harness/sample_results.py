"""A task's result when each item has several sampled answers: each is graded as a greedy one would be."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lm_eval.api.instance import Instance

from posttrain.core.errors import RequestError
from posttrain.eval_harness.clusters import cluster_of
from posttrain.eval_harness.raw_results import Raw
from posttrain.eval_harness.result import Metric, TaskResult, clustered_standard_error
from posttrain.eval_harness.samples import Samples, maj_at_k, pass_at_k

INVALID = "[invalid]"
"""What lm-eval's extracting filters give where there is no answer."""


def with_samples(
    result: TaskResult, task: Any, raw: Raw, samples: Samples, reasons: Mapping[tuple[str, int], Sequence[str]]
) -> TaskResult:
    """The result with `<headline>` as the mean over all samples, pass@k and maj@k in place of one answer's metrics.

    An item's `samples` hold each one's text, prediction, score and finish reason; its `score` is their mean. A sample
    is right when its score is 1. RequestError for a task whose headline is no number an answer.
    """
    metric, _, filter_name = result.headline.partition(",")
    name = filter_name or "none"
    logged = [sample for sample in raw["samples"][result.task] if sample["filter"] == name]
    items = []
    for item, sample in zip(result.items, logged, strict=True):
        (texts,) = sample["resps"]
        predictions = _filtered(task, name, sample, texts)
        scores = [task.process_results(sample["doc"], [prediction])[metric] for prediction in predictions]
        if not all(isinstance(score, (bool, int, float)) or hasattr(score, "item") for score in scores):
            raise RequestError(f"task {result.task}: {result.headline} is no number an answer; it cannot be sampled")
        numbers = [float(score) for score in scores]
        right = [number == 1.0 for number in numbers]
        votes = [None if prediction in (INVALID, "", None) else str(prediction) for prediction in predictions]
        of_item = {result.headline: sum(numbers) / samples.n}
        of_item |= {f"pass@{k}": pass_at_k(samples.n, sum(right), k) for k in samples.pass_at}
        of_item |= {f"maj@{k}": maj_at_k(votes, right, k) for k in samples.maj_at}
        told = zip(texts, predictions, numbers, reasons[task.config.task, sample["doc_id"]], strict=True)
        kept = {key: value for key, value in item.items() if key not in ("text", "finish_reason", "prediction")}
        items.append(
            kept
            | {
                "score": of_item[result.headline],
                "scores": of_item,
                "samples": [
                    {"text": text, "prediction": prediction, "score": score, "finish_reason": reason}
                    for text, prediction, score, reason in told
                ],
            }
        )
    clusters = [cluster_of(item) for item in items]
    metrics = {}
    for key in items[0]["scores"]:
        values = [item["scores"][key] for item in items]
        metrics[key] = Metric(sum(values) / len(values), clustered_standard_error(values, clusters))
    return replace(result, metrics=metrics, items=items)


def _filtered(task: Any, name: str, sample: Mapping[str, Any], texts: Sequence[str]) -> list[Any]:
    """What the task's filter of that name takes from each text."""
    ensemble = next(filters for filters in task._filters if filters.name == name)
    answers = [Instance(task.OUTPUT_TYPE, sample["doc"], (), 0, resps=[text]) for text in texts]
    ensemble.apply(answers)
    return [answer.filtered_resps[name] for answer in answers]
