"""The reward model: which of two answers a person prefers, from the SFT checkpoint, by TRL's RewardTrainer.

Takes pairs (Bradley-Terry) or rankings (InstructGPT's loss over all pairs of a prompt, Ouyang et al. 2022, eq. 1),
gives a sequence classifier with one score, its held-out pairwise accuracy, and the offset that centres its scores on
the SFT policy's samples. Scores mean something only as differences; the offset gives them a zero.
"""

from dataclasses import asdict
from typing import Any, Literal

import torch
from datasets import Dataset
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import RewardConfig, RewardTrainer

from posttrain.core.files import atomic_write_json
from posttrain.core.metrics import MetricsLog
from posttrain.data.sources import load_rankings
from posttrain.data.tokenizer import load_tokenizer
from posttrain.trainers.adapters import save_trained
from posttrain.trainers.comparisons import Comparison
from posttrain.trainers.models import align_special_tokens, check_max_length, load_sequence_classifier
from posttrain.trainers.offline import OfflineSettings
from posttrain.trainers.offline_inputs import rankings_of_pairs, split_comparisons
from posttrain.trainers.quiet import quiet
from posttrain.trainers.ranking_loss import ranking_loss
from posttrain.trainers.registry import Method
from posttrain.trainers.resumable_trainer import TokenisedTrainer
from posttrain.trainers.reward_accuracy import pairwise_accuracy, reward_offset
from posttrain.trainers.rollouts import fixed_policy
from posttrain.trainers.shared_prompt import SharedPromptCollator
from posttrain.trainers.stage import StageInputs
from posttrain.trainers.start_model import load_options, ready_to_train
from posttrain.trainers.trainer_arguments import one_device, stage_optimizer, stage_order, training_arguments
from posttrain.trainers.training_report import Evaluation, train_and_report


class Settings(OfflineSettings):
    """The reward model. The nano lab's: AdamW 5e-4, 32 pairs a step, two epochs."""

    attention: Literal["sdpa"] = "sdpa"
    """The answers to a prompt share its computation in one row, under a mask that the others do not take."""
    loss: Literal["bradley_terry", "kwise"] = "bradley_terry"
    """`bradley_terry` on pairs; `kwise` on rankings of K answers, one prompt an example."""
    held_out: float = Field(0.1, gt=0, lt=1)
    """Share of the prompts held out when no validation data is given."""
    offset_prompts: int = Field(200, ge=2)
    """Held-out prompts that the policy service answers for `reward_offset`."""
    offset_max_tokens: int = Field(96, ge=1)
    """Longest of these answers in tokens."""


class _Trainer(TokenisedTrainer, RewardTrainer):
    """TRL's RewardTrainer in a fixed order, on tokenised comparisons that share their prompt's computation.

    TRL's own loss takes pairs only and computes each prompt twice; on pairs this one equals it.
    """

    def examples_in(self, batch: dict[str, Any]) -> int:
        return len(batch["sizes"])

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        rows, ends, sizes = (inputs.pop(name) for name in ("rows", "ends", "sizes"))
        with self.accelerator.autocast():
            hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
        scores = model.score(hidden[rows, ends].float()).squeeze(-1)  # bf16 would tie scores that differ
        losses = [ranking_loss(of_prompt) for of_prompt in scores.split(sizes)]
        loss = torch.stack(losses).mean() * (len(losses) / (num_items_in_batch or len(losses)))
        first = torch.tensor(sizes).cumsum(0) - torch.tensor(sizes)
        seen = scores.detach()
        self._metrics["train"]["margin"].append((seen[first] - seen[first + 1]).mean().item())
        self._metrics["train"]["reward_mean"].append(seen.mean().item())
        self._metrics["train"]["reward_std"].append(seen.std().item())
        return (loss, scores) if return_outputs else loss


def train(settings: Settings, inputs: StageInputs) -> dict[str, Any]:
    """Trains from `inputs.start` on `inputs.source` to `inputs.run.checkpoint`; resumes from `inputs.run.state`.

    The held-out accuracy also goes to `rm/<fingerprint>.json` below the runs folder. RequestError for missing or
    useless data, a checkpoint that cannot be loaded, or lengths beyond its context.
    """
    with quiet():
        options = load_options(settings)
        tokenizer = load_tokenizer(inputs.start)
        model, new_head = load_sequence_classifier(inputs.start, inputs.seed, **options)
        check_max_length(model, settings.max_length, "rm.max_length")
        align_special_tokens(model, tokenizer)
        ready_to_train(model, settings, inputs.seed, new_modules=("score",))
        load = load_rankings if settings.loss == "kwise" else rankings_of_pairs
        data = split_comparisons("rm", settings, inputs, tokenizer, load)
        rows, test = data.rows, data.held_out
        metrics = MetricsLog(inputs.run.metrics_path, inputs.trackers, name=inputs.run.path.name)
        trainer = build_trainer(settings, inputs, model, tokenizer, rows)
        evaluation = Evaluation(
            lambda: pairwise_accuracy(model, tokenizer, test), lambda now: {"held_out_accuracy": now["all"].accuracy}
        )
        accounts = [row.account for row in rows]
        trained = train_and_report(trainer, "rm", metrics, accounts, settings.batch_size, evaluation, settings)
        accuracy = {kind: asdict(value) for kind, value in trained.held_out.items()}
        policy = fixed_policy(inputs.policy, inputs.start) if inputs.policy else None
        offset, samples = reward_offset(
            model, tokenizer, test, policy, settings.offset_prompts, settings.offset_max_tokens, inputs.seed
        )
        model.config.reward_offset = offset
        saved = save_trained(model, tokenizer, inputs.run, inputs.start)
    result = {"run": inputs.run.path.name, "accuracy": accuracy, "reward_offset": offset, "samples": samples}
    _publish(inputs, result)
    return {
        **trained.summary,
        **saved,
        "accuracy": accuracy,
        "reward_offset": offset,
        "reward_offset_samples": samples,
        "examples": len(rows),
        "held_out_examples": len(test),
        "dropped_too_long": data.dropped,
        "new_head": new_head,
    }


def build_trainer(
    settings: Settings,
    inputs: StageInputs,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[Comparison],
) -> _Trainer:
    """TRL's trainer over `rows`."""
    arguments = RewardConfig(
        **training_arguments(inputs, "rm", settings),
        max_length=settings.max_length,
    )
    one_device(arguments)
    dataset = Dataset.from_list([{"prompt_ids": row.prompt_ids, "answers": row.answers} for row in rows])
    trainer = _Trainer(
        model=model,
        args=arguments,
        data_collator=SharedPromptCollator(tokenizer.pad_token_id),
        train_dataset=dataset,
        processing_class=tokenizer,
        optimizers=(stage_optimizer(model, settings), None),
    )
    trainer.order = stage_order(settings, inputs.seed, [row.tokens for row in rows], [row.account for row in rows])
    return trainer


def _publish(inputs: StageInputs, result: dict[str, Any]) -> None:
    """Writes the result where the runs folder keeps them, or beside the run when it lies in no runs folder."""
    run = inputs.run
    in_runs_folder = run.path.parent.name == "rm"
    path = run.root / "rm" / f"{run.path.name}.json" if in_runs_folder else run.path / "rm.json"
    atomic_write_json(path, result)


METHOD = Method(Settings, version=1, train=train, trains_on="pairs", makes="reward model", samples=True)
