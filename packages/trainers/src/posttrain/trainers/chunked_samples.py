"""Samples of one fixed policy for many prompts, in chunks that a killed run need not repeat.

For stages that sample and score but train nothing. Each finished chunk is a file in the run's state, written after its
row of metrics.jsonl. What a chunk's rows hold is the stage's; the chunk's number enters its seeds.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from posttrain.core.clients import Completion, RewardClient
from posttrain.core.files import read_jsonl, write_jsonl
from posttrain.core.metrics import MetricsLog, Progress
from posttrain.data.chat import load_tokenizer
from posttrain.data.sources import Source
from posttrain.trainers.models import context_length, load_policy
from posttrain.trainers.online_inputs import read_prompts, services
from posttrain.trainers.quiet import quiet
from posttrain.trainers.rollouts import RenderedPrompt, VersionedPolicy, fixed_policy
from posttrain.trainers.stage import StageInputs


class SamplingSettings(Protocol):
    """What a stage that samples is told of lengths and chunks."""

    @property
    def max_new_tokens(self) -> int: ...
    @property
    def max_prompt_tokens(self) -> int | None: ...
    @property
    def chunk_prompts(self) -> int: ...


SampleChunk = Callable[
    [VersionedPolicy, RewardClient, Sequence[RenderedPrompt], int], tuple[Sequence[Any], dict[str, Any]]
]
"""(policy, reward service, prompts, number of the chunk) to a row a prompt, and numbers to log."""


def prompts_to_sample(settings: SamplingSettings, inputs: StageInputs, source: Source | None) -> list[RenderedPrompt]:
    """The prompts of a source that fit the start's context; RequestError for none, or a missing service."""
    services(inputs)
    with quiet():
        context = context_length(load_policy(inputs.start))
    return read_prompts(
        source,
        inputs.seed,
        load_tokenizer(inputs.start),
        context=context,
        max_new_tokens=settings.max_new_tokens,
        max_prompt_tokens=settings.max_prompt_tokens,
    )


def sample_in_chunks(
    label: str,
    settings: SamplingSettings,
    inputs: StageInputs,
    prompts: Sequence[RenderedPrompt],
    sample: SampleChunk,
) -> tuple[list[Any], dict[str, float]]:
    """A row a prompt, in order, and totals of what sampling took (tokens generated, seconds by phase)."""
    client, reward = services(inputs)
    policy = fixed_policy(client, inputs.start)
    size = settings.chunk_prompts
    chunks = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    files = [inputs.run.state / f"chunk-{number:05d}.jsonl" for number in range(len(chunks))]
    log = MetricsLog(inputs.run.metrics_path, inputs.trackers, inputs.run.path.name)
    log.truncate(after_step=sum(file.exists() for file in files) - 1)
    rows: list[Any] = []
    with Progress(len(prompts), label) as progress:
        for number, (chunk, file) in enumerate(zip(chunks, files, strict=True)):
            if not file.exists():
                sampled, metrics = sample(policy, reward, chunk, number)
                log.log(number, **metrics)
                # Last: the file says that the chunk is done, and a row that was logged too early is cut off again.
                write_jsonl(file, sampled)
            rows += read_jsonl(file)
            progress.advance(len(rows))
    logged = log.rows()
    seconds = sorted({name for row in logged for name in row if name.startswith("seconds")})
    return rows, {name: sum(row.get(name) or 0.0 for row in logged) for name in ("tokens_generated", *seconds)}


def completion_metrics(completions: Sequence[Completion]) -> dict[str, float]:
    """Mean length in tokens, share cut at the length limit, and tokens in all."""
    tokens = sum(len(completion.token_ids) for completion in completions)
    return {
        "completion/length": tokens / len(completions),
        "completion/truncated": sum(c.finish_reason == "length" for c in completions) / len(completions),
        "tokens_generated": float(tokens),
    }
