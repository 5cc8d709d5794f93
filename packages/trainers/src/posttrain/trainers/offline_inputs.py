"""What an offline stage reads before it trains: the start checkpoint, and comparisons with some of them held out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from posttrain.core.errors import RequestError
from posttrain.data.rows import Ranking
from posttrain.data.sources import Source, load_pairs
from posttrain.data.tokenizer import load_tokenizer
from posttrain.trainers.comparisons import Comparison, comparisons, from_pair
from posttrain.trainers.held_out import split_held_out
from posttrain.trainers.models import align_special_tokens, check_max_length, load_policy
from posttrain.trainers.offline import OfflineSettings
from posttrain.trainers.stage import StageInputs
from posttrain.trainers.start_model import load_options


@dataclass(frozen=True)
class SplitComparisons:
    """Tokenised comparisons of a stage."""

    rows: list[Comparison]
    """To train on."""
    held_out: list[Comparison]
    dropped: int
    """Of the training data, those too long."""


def load_start(
    method: str, settings: OfflineSettings, inputs: StageInputs
) -> tuple[PreTrainedTokenizerFast, PreTrainedModel]:
    """Tokenizer and policy of the start, not `ready_to_train` yet; RequestError when it cannot be loaded or held as the
    settings say, or `max_length` exceeds its context."""
    options = load_options(settings)
    tokenizer = load_tokenizer(inputs.start)
    model = load_policy(inputs.start, **options)
    check_max_length(model, settings.max_length, f"{method}.max_length")
    align_special_tokens(model, tokenizer)
    return tokenizer, model


def rankings_of_pairs(source: Source, seed: int) -> list[Ranking]:
    """The pairs of a source as the rankings of two that they are."""
    return [from_pair(pair) for pair in load_pairs(source, seed)]


def split_comparisons(
    method: str,
    settings: OfflineSettings,
    inputs: StageInputs,
    tokenizer: PreTrainedTokenizerFast,
    load: Callable[[Source, int], Sequence[Ranking]] = rankings_of_pairs,
) -> SplitComparisons:
    """The comparisons of `inputs.source`, and those of `inputs.validation` or else a share of the former's prompts.

    RequestError for no source, or when nothing is left of one.
    """
    if inputs.source is None:
        raise RequestError(f"{method} needs training data: give a source of pairs")

    def tokenised(source: Source) -> tuple[list[Comparison], int]:
        data = comparisons(tokenizer, load(source, inputs.seed), settings.max_length, f"{method}.max_length")
        return data.rows, data.dropped

    rows, dropped = tokenised(inputs.source)
    if inputs.validation:
        return SplitComparisons(rows, tokenised(inputs.validation)[0], dropped)
    train, test = split_held_out(rows, settings.held_out, inputs.seed, key=lambda row: row.prompt_key)
    return SplitComparisons(train, test, dropped)
