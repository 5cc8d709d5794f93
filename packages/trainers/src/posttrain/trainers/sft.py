"""Supervised fine-tuning: maximum likelihood of the assistant's tokens, by TRL's SFTTrainer.

Takes demonstrations, gives a policy checkpoint. The loss of a step is the mean over all its assistant tokens, end
tokens included, whatever the split into micro batches (Ouyang et al. 2022, section 3.5, trains the first stage so).
The data order and resuming are resumable_trainer's, reports training_report's; the loss mask is made in demonstrations.
"""

import math
from typing import Any, Literal

import torch
from datasets import Dataset
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from posttrain.core.errors import RequestError
from posttrain.core.metrics import MetricsLog
from posttrain.data.sources import load_conversations
from posttrain.trainers.adapters import save_trained
from posttrain.trainers.demonstrations import IGNORED, Demonstrations, accounts, demonstrations
from posttrain.trainers.held_out import split_held_out
from posttrain.trainers.logit_batches import logit_batches
from posttrain.trainers.offline import OfflineSettings
from posttrain.trainers.offline_inputs import load_start
from posttrain.trainers.quiet import quiet
from posttrain.trainers.registry import Method
from posttrain.trainers.resumable_trainer import ResumableTrainer
from posttrain.trainers.stage import StageInputs
from posttrain.trainers.start_model import ready_to_train
from posttrain.trainers.trainer_arguments import one_device, stage_optimizer, stage_order, training_arguments
from posttrain.trainers.training_report import Evaluation, train_and_report


class Settings(OfflineSettings):
    """SFT. The nano lab's: Muon .01, AdamW 2e-3, 32 conversations a step, two epochs, linear decay."""

    optimizer: Literal["adamw", "muon"] = "muon"
    lr: float = Field(2e-3, gt=0)
    packing: bool = False
    """Several conversations a row of max_length tokens ("bfd", best fit decreasing), without attention between them.
    Off here: on a CPU attention over a whole packed batch costs more than padding (README)."""


class _Trainer(ResumableTrainer, SFTTrainer):
    """TRL's SFTTrainer in a fixed order, with its checkpoints marked when complete."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # Without a GPU kernel TRL's fused head also scores the positions without loss: much of a step on a CPU.
        if self.args.device.type != "cpu" or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")[:, 1:]
        spoken = labels != IGNORED
        with self.accelerator.autocast():
            hidden = model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
            logits = model.get_output_embeddings()(hidden[spoken]).float()
        losses = torch.nn.functional.cross_entropy(logits, labels[spoken], reduction="sum")
        right = (logits.detach().argmax(-1) == labels[spoken]).float().mean()
        self._metrics["train"]["mean_token_accuracy"].append(right.item())
        return losses / (spoken.sum() if num_items_in_batch is None else num_items_in_batch)


def train(settings: Settings, inputs: StageInputs) -> dict[str, Any]:
    """Trains from `inputs.start` on `inputs.source` to `inputs.run.checkpoint`; resumes from `inputs.run.state`.

    RequestError for missing or useless data, a checkpoint that cannot be loaded, or lengths beyond its context.
    """
    if inputs.source is None:
        raise RequestError("sft needs training data: give a source of conversations")
    with quiet():
        tokenizer, model = load_start("sft", settings, inputs)
        ready_to_train(model, settings, inputs.seed)
        conversations = load_conversations(inputs.source, inputs.seed)
        if inputs.validation:
            held_out = load_conversations(inputs.validation, inputs.seed)
        else:
            conversations, held_out = split_held_out(
                conversations, settings.held_out, inputs.seed, key=lambda row: row["id"]
            )
        data = demonstrations(tokenizer, conversations, settings.max_length)
        test = demonstrations(tokenizer, held_out, settings.max_length)
        metrics = MetricsLog(inputs.run.metrics_path, inputs.trackers, name=inputs.run.path.name)
        trainer, batch_size = build_trainer(settings, inputs, model, tokenizer, data)
        evaluation = Evaluation(lambda: held_out_loss(model, tokenizer, test, settings.batch_size), dict)
        rows = accounts(trainer.train_dataset)
        trained = train_and_report(trainer, "sft", metrics, rows, batch_size, evaluation, settings)
        saved = save_trained(model, tokenizer, inputs.run, inputs.start)
    return {
        **trained.summary,
        **trained.held_out,
        **saved,
        "examples": len(data.rows),
        "held_out_examples": len(test.rows),
        "truncated": data.truncated,
        "dropped_long_prompts": data.dropped,
    }


def build_trainer(
    settings: Settings,
    inputs: StageInputs,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    data: Demonstrations,
) -> tuple[_Trainer, int]:
    """The trainer, and its rows a step (packed, a row is several conversations)."""
    dataset = Dataset.from_list(data.rows)
    batch_size, micro_batch_size = settings.batch_size, settings.micro_batch_size
    if settings.packing:
        dataset = pack_dataset(dataset, settings.max_length, "bfd")
        rows_an_example = len(dataset) / len(data.rows)
        batch_size = max(1, round(settings.batch_size * rows_an_example))
        if micro_batch_size:
            micro_batch_size = math.gcd(batch_size, max(1, round(micro_batch_size * rows_an_example)))
    arguments = SFTConfig(
        **training_arguments(inputs, "sft", settings, batch_size, micro_batch_size),
        packing=settings.packing,
        max_length=settings.max_length,
        # The rows come tokenised, masked, truncated and packed: TRL's own preparation is left out.
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    one_device(arguments)
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        optimizers=(stage_optimizer(model, settings), None),
    )
    lengths = [len(ids) for ids in dataset["input_ids"]]
    bucket = 1 if settings.packing else settings.bucket
    trainer.order = stage_order(settings, inputs.seed, lengths, accounts(dataset), batch_size, bucket)
    return trainer, batch_size


@torch.no_grad()
def held_out_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, data: Demonstrations, batch_size: int
) -> dict[str, float]:
    """Mean negative log-likelihood an assistant token (nats) over all of `data`, and its exponential.

    `batch_size` rows at once, fewer where their logits would be too many. Leaves the model in the mode that it was in,
    and all generators untouched.
    """
    collate = DataCollatorForLanguageModeling(tokenizer.pad_token_id)
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    rows = sorted(data.rows, key=lambda row: len(row["input_ids"]))
    total, count = 0.0, 0
    lengths = [len(row["input_ids"]) for row in rows]
    for few in logit_batches(lengths, model.config.get_text_config().vocab_size, batch_size):
        batch = {key: value.to(device) for key, value in collate(rows[few.start : few.stop]).items()}
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch, use_cache=False).logits[:, :-1].float()
        spoken = labels != IGNORED
        total += torch.nn.functional.cross_entropy(logits[spoken], labels[spoken], reduction="sum").item()
        count += int(spoken.sum())
    model.train(was_training)
    loss = total / count
    return {"held_out_loss": loss, "held_out_perplexity": math.exp(min(loss, 700))}


METHOD = Method(Settings, version=1, train=train, trains_on="demonstrations", start="base")
