"""What a recipe's stages will take on a GPU: memory part by part, steps, tokens, hours. A forecast, nothing is run.

Memory is that of the largest moment: every sequence at its longest allowed, on one card that trainer and services
share; of a longest sequence so much is prompt, which has no logits, as `expected` says, else nothing. Tokens and hours
are of mean lengths where the recipe's `expected` has them, else of the longest, which is more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.lab.gpus import Gpu
from posttrain.lab.memory_model import (
    BF16,
    CONTEXT,
    FP32,
    FRAGMENTATION,
    Training,
    activation_bytes,
    gradient_bytes,
    kv_cache_bytes,
    optimizer_bytes,
    scoring_bytes,
    step_bytes,
    trained_parameters,
    weight_bytes,
)
from posttrain.lab.model_shapes import ModelShape
from posttrain.lab.recipe import Expected, Recipe
from posttrain.lab.stage_walk import NeededStage, data_source
from posttrain.lab.time_model import LAUNCH, compute_seconds, decode_seconds, forward_flops, training_flops
from posttrain.rollout.settings import PolicyServiceSettings
from posttrain.trainers.logit_batches import MOST_LOGITS
from posttrain.trainers.model_settings import ModelSettings
from posttrain.trainers.offline import OfflineSettings
from posttrain.trainers.online_settings import OnlineSettings

LONGEST_PROMPT = 512
"""Tokens, where neither the settings nor the recipe's `expected` say how long a prompt is."""
ANSWERS = {"sft": 1, "kto": 1}
"""Sequences of an example of an offline method that are trained, where they are not two, both answers of a pair. KTO's
examples are single answers, two a pair."""
NO_HEAD = frozenset({"rm"})
"""Methods that make no logits."""
MAX_BATCH = PolicyServiceSettings.model_fields["max_batch"].default


@dataclass(frozen=True)
class Work:
    """How much a stage does. None where the number of rows is not known."""

    steps: int | None
    trained: int | None
    """Tokens through forward and backward passes, all epochs."""
    generated: int | None
    """Tokens sampled."""
    seconds: float | None


@dataclass(frozen=True)
class StageForecast:
    """One stage on a card."""

    stage: NeededStage
    how: Training | None
    """None for a stage that only samples."""
    trained_parameters: int
    memory: Mapping[str, int]
    """Bytes by part."""
    work: Work

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.memory.values())


def training_of(settings: ModelSettings, method: str) -> Training:
    """How a method's settings have the model held, on a GPU."""
    adapter, online = settings.adapter, isinstance(settings, OnlineSettings)
    return Training(
        adapter=adapter.kind if adapter else "full",
        rank=adapter.r if adapter else 0,
        targets=tuple(adapter.target_modules) if adapter else (),
        dropout=adapter.dropout if adapter and not online else 0.0,  # off online: old and new are of one function
        bf16=settings.precision == "bf16",
        checkpointing=settings.gradient_checkpointing,
        muon=getattr(settings, "optimizer", "adamw") == "muon",
        entropy=online,
        tiled_head=method == "sft",
    )


def forecast(recipe: Recipe, stage: NeededStage, shape: ModelShape, gpu: Gpu, rows: int | None) -> StageForecast:
    """`stage` on `gpu`, learning from `rows` rows (None: not known)."""
    settings = stage.settings
    how = training_of(settings, stage.method) if isinstance(settings, ModelSettings) else None
    memory: dict[str, int] = {}
    if how:
        memory |= _trainer(recipe.expected, shape, how, stage, settings)
    memory |= _services(recipe, shape, gpu, stage)
    work = _work(recipe, stage, shape, gpu, how, rows)
    return StageForecast(stage, how, trained_parameters(shape, how) if how else 0, memory, work)


def rows_of(recipe: Recipe, stage: NeededStage, stages: Mapping[str, NeededStage]) -> int | None:
    """Rows that a stage learns from: what its source says, what the recipe expects, or the pairs that are made of
    prompts; None where nothing says it."""
    if stage.field == "made":
        maker = stages[stage.pairs_of]
        prompts = rows_of(recipe, maker, stages)
        made: Any = maker.settings
        each = 1 if made.select == "extremes" else made.pairs_per_prompt
        return None if prompts is None else round(prompts * (1 - made.held_out)) * each
    if stage.field == "measured":
        return recipe.evaluation.policy_prompts
    source = data_source(recipe, stage.field)
    said = source.rows if source else None
    return said or recipe.expected.rows.get(stage.field)


def _trainer(expected: Expected, shape: ModelShape, how: Training, stage: NeededStage, settings: Any) -> dict[str, int]:
    online, scored = isinstance(settings, OnlineSettings), 0
    if isinstance(settings, OnlineSettings):
        tokens, positions = _online_micro_batch(expected, settings)
    elif isinstance(settings, OfflineSettings):
        tokens, positions, scored = _offline_micro_batch(expected, settings, stage.method, shape)
    else:
        return {}
    if stage.method in NO_HEAD:
        positions = scored = 0
    weights, gradients, moments = (count(shape, how) for count in (weight_bytes, gradient_bytes, optimizer_bytes))
    tensors = {
        "weights": weights,
        "gradients": gradients,
        "optimiser state": moments,
        "activations and logits": max(
            activation_bytes(shape, how, tokens, positions),
            scoring_bytes(shape, how, scored),
            step_bytes(shape, how, online),
        ),
    }
    if online and getattr(settings, "kl_coef", 0.0) > 0:
        # Under an adapter the reference is the policy with the adapter off.
        tensors["reference model"] = FP32 * shape.parameters if how.adapter == "full" else 0
    if stage.method == "ppo":
        # Its weights are its own; under an adapter it shares the frozen ones. Its pass follows the policy's.
        own = FP32 * (shape.body_parameters if how.adapter == "full" else trained_parameters(shape, how))
        tensors["critic"] = own + gradients + moments
    reserve = round(FRAGMENTATION * sum(tensors.values()))
    return {**tensors, "allocator (10 %)": reserve, "CUDA context, trainer": CONTEXT}


def _online_micro_batch(expected: Expected, settings: OnlineSettings) -> tuple[int, int]:
    """Tokens of a micro-batch and those of them whose logits are made: a prompt once for its completions, and a single
    completion that exceeds the limit alone."""
    prompt, completion = expected.tokens.prompt or 0, settings.max_new_tokens
    tokens = max(settings.micro_batch_tokens, prompt + completion)
    together = min(settings.samples_per_prompt, (tokens - prompt) // completion)
    return tokens, round(tokens * together * completion / (prompt + together * completion))


def _offline_micro_batch(
    expected: Expected, settings: OfflineSettings, method: str, shape: ModelShape
) -> tuple[int, int, int]:
    """Tokens of a micro-batch, those of them whose logits are made, and as many at most in a pass without gradients
    (posttrain.trainers.logit_batches). The two answers of a pair have their prompt once."""
    examples, answers = settings.micro_batch_size or settings.batch_size, ANSWERS.get(method, 2)
    prompt = 0 if method == "sft" else min(expected.tokens.pair_prompt or 0, settings.max_length - 1)
    answer = settings.max_length - prompt
    alone = answer * (1 if method == "sft" else 2)
    scored = max(alone, min(settings.batch_size * alone, MOST_LOGITS // shape.vocab_size))
    return examples * (prompt + answers * answer), examples * answers * answer, scored


def _services(recipe: Recipe, shape: ModelShape, gpu: Gpu, stage: NeededStage) -> dict[str, int]:
    """The processes beside the trainer: the policy in the recipe's precision, a reward model in fp32 as it is saved."""
    memory: dict[str, int] = {}
    sampled = _sampled(recipe, stage)
    if sampled:
        sequences, prompt, completion = sampled
        if recipe.engine == "vllm":
            memory["policy service (vllm.memory_share)"] = round(recipe.vllm.memory_share * gpu.memory)
        else:
            at_once = min(sequences, MAX_BATCH)
            width = _served_width(recipe)
            memory["policy service: weights"] = width * shape.parameters
            memory["policy service: KV cache"] = kv_cache_bytes(shape, at_once * (prompt + completion), width)
            memory["CUDA context, policy service"] = CONTEXT
    if stage.learned_reward:
        memory["reward service: weights"] = FP32 * shape.body_parameters
        memory["CUDA context, reward service"] = CONTEXT
    return memory


def _sampled(recipe: Recipe, stage: NeededStage) -> tuple[int, int, int] | None:
    """Sequences of a request, tokens of their prompts and of their completions at most; None for no sampling."""
    settings: Any = stage.settings
    longest = getattr(settings, "max_prompt_tokens", None) or max(LONGEST_PROMPT, recipe.expected.tokens.prompt or 0)
    if isinstance(settings, OnlineSettings):
        return settings.prompts_per_step * settings.samples_per_prompt, longest, settings.max_new_tokens
    if stage.method == "rm":
        return settings.offset_prompts, longest, settings.offset_max_tokens
    if hasattr(settings, "samples_per_prompt"):
        chunk = getattr(settings, "chunk_prompts", MAX_BATCH)
        return chunk * settings.samples_per_prompt, longest, settings.max_new_tokens
    return None


def _work(
    recipe: Recipe, stage: NeededStage, shape: ModelShape, gpu: Gpu, how: Training | None, rows: int | None
) -> Work:
    settings: Any = stage.settings
    if how and isinstance(settings, OnlineSettings):
        return _online(recipe, settings, stage, shape, gpu, how)
    if how and isinstance(settings, OfflineSettings):
        return _offline(recipe.expected, settings, stage, shape, gpu, how, rows)
    sampled = _sampled(recipe, stage)
    if sampled is None or rows is None:
        return Work(None, None, None, None)
    prompt, completion = _lengths(recipe.expected, sampled)
    sequences = rows * settings.samples_per_prompt
    seconds = _decode(recipe, shape, gpu, sequences, prompt, completion)
    if stage.learned_reward:
        scored = sequences * (prompt + completion) * forward_flops(shape, prompt + completion)
        seconds += compute_seconds(scored, gpu, bf16=False)
    return Work(None, 0, sequences * completion, seconds)


def _offline(
    expected: Expected,
    settings: OfflineSettings,
    stage: NeededStage,
    shape: ModelShape,
    gpu: Gpu,
    how: Training,
    rows: int | None,
) -> Work:
    if rows is None:
        return Work(None, None, None, None)
    # Of made pairs the held-out ones lie in a file of their own.
    examples = rows if stage.field == "made" else round(rows * (1 - settings.held_out))
    if stage.method == "kto":
        examples *= 2
    steps = settings.share_of(-(-examples // settings.batch_size) * settings.epochs)
    answers = ANSWERS.get(stage.method, 2)
    of_pair = expected.tokens.pair and expected.tokens.pair * answers // 2
    mean = expected.tokens.sft if stage.field == "sft" else of_pair
    length = min(mean or settings.max_length * answers, settings.max_length * answers)
    tokens = steps * settings.batch_size * length
    flops = tokens * training_flops(shape, how, length // answers)
    forward = forward_flops(shape, length // answers)
    if stage.method in ("dpo", "kto"):  # the reference's log-probabilities, once
        flops += examples * length * forward
    if stage.method == "kto":  # the answer to another prompt: once by the reference, each time by the policy
        flops += (examples * length + tokens) * forward
    return Work(steps, tokens, 0, compute_seconds(flops, gpu, how.bf16))


def _online(
    recipe: Recipe, settings: OnlineSettings, stage: NeededStage, shape: ModelShape, gpu: Gpu, how: Training
) -> Work:
    steps = settings.share_of(settings.steps)
    sampled = _sampled(recipe, stage)
    assert sampled is not None
    prompt, completion = _lengths(recipe.expected, sampled)
    sequences, length = sampled[0], prompt + completion
    tokens = sequences * length
    models = 2 if stage.method == "ppo" else 1
    passes = models + (getattr(settings, "kl_coef", 0.0) > 0)
    flops = tokens * (
        passes * forward_flops(shape, length) + settings.epochs * models * training_flops(shape, how, length)
    )
    seconds = compute_seconds(flops, gpu, how.bf16) + _decode(recipe, shape, gpu, sequences, prompt, completion)
    if stage.learned_reward:
        seconds += compute_seconds(tokens * forward_flops(shape, length), gpu, bf16=False)
    updates = steps * settings.epochs * settings.minibatches
    return Work(updates, steps * settings.epochs * tokens, steps * sequences * completion, steps * seconds)


def _lengths(expected: Expected, sampled: tuple[int, int, int]) -> tuple[int, int]:
    """Tokens of a prompt and of a completion: means where they are expected, else the longest."""
    _, prompt, completion = sampled
    return min(expected.tokens.prompt or prompt, prompt), min(expected.tokens.completion or completion, completion)


def _decode(recipe: Recipe, shape: ModelShape, gpu: Gpu, sequences: int, prompt: int, completion: int) -> float:
    launch = 0.0 if recipe.engine == "vllm" else LAUNCH
    return decode_seconds(shape, gpu, sequences, prompt, completion, MAX_BATCH, _served_width(recipe), launch)


def _served_width(recipe: Recipe) -> int:
    """Bytes of a number of what the policy service computes in."""
    return BF16 if recipe.precision == "bf16" else FP32
