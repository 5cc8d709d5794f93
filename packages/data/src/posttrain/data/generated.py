"""The generated corpora as a source: which splits there are, and the generators behind them.

The rows of a split are the same for every seed, as a dataset's are; a run's seed only orders and selects them.
"""

from posttrain.core.errors import RequestError, suggest
from posttrain.data.rows import Conversation, Prompt

CORPUS_SEED = 0


def conversations(split: str) -> list[Conversation]:
    """The demonstrations, whose only split is `train`."""
    from posttrain.data.nano.corpus import sft_conversations

    if split != "train":
        raise RequestError(f"nano has no demonstrations of split '{split}' {suggest(split, ['train'])}")
    return sft_conversations(CORPUS_SEED)


def prompts(split: str) -> list[Prompt]:
    """The prompts of one of the splits train, preference, validation and test."""
    from posttrain.data.nano.corpus import PROMPTS
    from posttrain.data.nano.corpus import prompts as generate

    if split not in PROMPTS:
        raise RequestError(f"nano has no prompts of split '{split}' {suggest(split, PROMPTS)}")
    return generate(split, seed=CORPUS_SEED)  # type: ignore[arg-type]


def version() -> int:
    """Raised when the generators give other rows."""
    from posttrain.data.nano import GENERATOR_VERSION

    return GENERATOR_VERSION
