"""The stage around a preference method: pairs in, a policy out, and how often its implicit reward agrees with people.

The same for dpo, simpo, orpo and kto, each of which gives a `Learner`. Pairs are rendered as the reward model's are
(comparisons): one end token an answer, none cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from posttrain.core.metrics import MetricsLog
from posttrain.core.statistics import clustered_mean
from posttrain.trainers.accounts import RowAccount
from posttrain.trainers.adapters import save_trained
from posttrain.trainers.comparisons import Comparison
from posttrain.trainers.forward import Layout
from posttrain.trainers.offline_inputs import load_start, split_comparisons
from posttrain.trainers.pair_logps import PairLogps, all_pair_logps, pair_layout
from posttrain.trainers.preference_losses import preferred
from posttrain.trainers.preference_settings import PreferenceSettings
from posttrain.trainers.quiet import quiet
from posttrain.trainers.reference_logprobs import reference_logps
from posttrain.trainers.resumable_trainer import TokenisedTrainer
from posttrain.trainers.stage import StageInputs
from posttrain.trainers.start_model import ready_to_train
from posttrain.trainers.trainer_arguments import stage_order
from posttrain.trainers.training_report import Evaluation, train_and_report


@dataclass(frozen=True)
class Policy:
    """What is trained, and how it reads rows."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    layout: Layout


@dataclass(frozen=True)
class Examples:
    """What a method makes of P pairs: as many examples of each, pair after pair."""

    answers: tuple[Sequence[Comparison], ...]
    """Lists of P comparisons, with all answers whose log-probabilities the reference is asked for."""
    lengths: Sequence[int]
    """Of each example, that by which batches are sorted."""
    accounts: Sequence[RowAccount]
    """Of each example."""


class Learner(Protocol):
    """A preference method: its examples, its trainer, its implicit reward."""

    needs_reference: bool

    def examples(self, rows: Sequence[Comparison], seed: int) -> Examples:
        """What it learns from in these pairs."""

    def trainer(
        self,
        inputs: StageInputs,
        policy: Policy,
        examples: Examples,
        order: Sequence[int],
        ref_logps: Sequence[Float[Tensor, "pairs 2"]] | None,
    ) -> TokenisedTrainer:
        """A trainer over all examples, in an order of them. `ref_logps` are log π_ref of `examples.answers`, NaN for
        pairs that are not in the order, None where the method needs none."""

    def margins(self, pairs: PairLogps) -> Float[Tensor, " pairs"]:
        """The implicit reward of the chosen answer minus that of the rejected one."""


def train_preferences(
    method: str, settings: PreferenceSettings, inputs: StageInputs, learner: Learner
) -> dict[str, Any]:
    """Trains from `inputs.start` on pairs to `inputs.run.checkpoint`; resumes from `inputs.run.state`.

    The reference is `inputs.reference`, or else the start. RequestError for missing or useless data, a checkpoint that
    cannot be loaded, or lengths beyond its context.
    """
    with quiet():
        tokenizer, model = load_start(method, settings, inputs)
        data = split_comparisons(method, settings, inputs, tokenizer)
        examples = learner.examples(data.rows, inputs.seed)
        order = stage_order(settings, inputs.seed, examples.lengths, examples.accounts)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        policy = Policy(model, tokenizer, pair_layout(model, settings.attention))
        ready_to_train(model, settings, inputs.seed)
        ref_rows = ref_test = None
        before: dict[str, float] = {}
        if learner.needs_reference:
            ref_rows, ref_test, before["reference"] = _ask_reference(
                settings, inputs, policy, examples, order, data.held_out
            )
        trainer = learner.trainer(inputs, policy, examples, order, ref_rows)

        def held_out() -> dict[str, Any]:
            pairs = all_pair_logps(model, policy.layout, data.held_out, settings.precision, ref_test)
            return held_out_preferences(learner.margins(pairs), data.held_out)

        def logged(now: dict[str, Any]) -> dict[str, float]:
            return {"held_out_accuracy": now["accuracy"], "held_out_margin": now["margin"]}

        metrics = MetricsLog(inputs.run.metrics_path, inputs.trackers, name=inputs.run.path.name)
        evaluation = Evaluation(held_out, logged)
        trained = train_and_report(
            trainer, method, metrics, examples.accounts, settings.batch_size, evaluation, settings, before
        )
        saved = save_trained(model, tokenizer, inputs.run, inputs.start)
    return {
        **trained.summary,
        **saved,
        "held_out": trained.held_out,
        "examples": len(examples.accounts),
        "held_out_examples": len(data.held_out),
        "dropped_too_long": data.dropped,
    }


def _ask_reference(
    settings: PreferenceSettings,
    inputs: StageInputs,
    policy: Policy,
    examples: Examples,
    order: Sequence[int],
    test: Sequence[Comparison],
) -> tuple[list[Float[Tensor, "pairs 2"]], Float[Tensor, "test 2"], float]:
    """log π_ref of the answers that the run will see, by list and in place, and of the held-out pairs; seconds."""
    pairs = len(examples.answers[0])
    # Not all of them in a run that `length` or `max_tokens` shortens.
    trained = sorted({index * pairs // len(examples.accounts) for index in order})
    reference = reference_logps(
        inputs.run.state / "reference_logps.safetensors",
        inputs.reference or inputs.start,
        inputs.start,
        policy.model,
        policy.layout,
        [*(answers[index] for answers in examples.answers for index in trained), *test],
        settings.precision,
    )
    *parts, of_test = reference.values.split([*[len(trained)] * len(examples.answers), len(test)])
    in_place = [torch.full((pairs, 2), torch.nan) for _ in parts]
    for whole, part in zip(in_place, parts, strict=True):
        whole[trained] = part
    return in_place, of_test, reference.seconds


def held_out_preferences(margins: Float[Tensor, " pairs"], rows: Sequence[Comparison]) -> dict[str, Any]:
    """Share of pairs whose chosen answer has the higher implicit reward (a tie counts half), and the mean margin.

    Standard errors are clustered by prompt, None where there is one prompt only.
    """
    prompts = [row.prompt_key for row in rows]
    result: dict[str, Any] = {"n": len(rows)}
    for name, values in (("accuracy", preferred(margins)), ("margin", margins)):
        result[name] = float(np.mean(values.tolist()))
        result[f"{name}_standard_error"] = None
        if len(set(prompts)) > 1:
            result[f"{name}_standard_error"] = clustered_mean(values.tolist(), prompts).standard_error
    return result
