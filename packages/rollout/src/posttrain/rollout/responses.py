"""Finished or running samples as OpenAI's JSON, with vLLM's token ids.

Pure functions from samples to dictionaries. Texts are decoded here, so large answers should be made off the event
loop.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from transformers import PreTrainedTokenizerFast

from posttrain.rollout.sample import Sample, TopLogprobs
from posttrain.rollout.text import TextWatcher, decode, decode_all

TokenText = Callable[[int], str]


class TokenTexts(dict[int, str]):
    """How single tokens are shown in log-probabilities, special ones included; each is decoded once."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, token_id: int) -> str:
        text = self[token_id] = decode(self._tokenizer, [token_id], skip_special=False)
        return text


def sample_texts(tokenizer: PreTrainedTokenizerFast, samples: Sequence[Sample]) -> list[str]:
    """What each sample says, cut before its stop string."""
    if not any(isinstance(sample.watcher, TextWatcher) for sample in samples):
        return decode_all(tokenizer, [sample.token_ids for sample in samples])
    return [_watched_text(tokenizer, sample) for sample in samples]


def _watched_text(tokenizer: PreTrainedTokenizerFast, sample: Sample) -> str:
    if isinstance(sample.watcher, TextWatcher):
        sample.watcher.finish()
        return sample.watcher.text
    return decode(tokenizer, sample.token_ids)


def usage(samples: Sequence[Sample], n: int) -> dict[str, int]:
    """Token counts of a request; each prompt counts once."""
    prompt = sum(len(sample.prompt) for sample in samples[::n])
    completion = sum(len(sample.token_ids) for sample in samples)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def completion_choice(
    tokenizer: PreTrainedTokenizerFast,
    sample: Sample,
    index: int,
    text: str,
    *,
    token_text: TokenText,
    logprobs: bool,
    tokens: bool = True,
    token_ids: bool,
) -> dict[str, Any]:
    """One choice of `/v1/completions`; with `echo` the prompt comes first, in text and in log-probabilities.

    `tokens`: whether log-probabilities show their tokens' texts, by `token_text`.
    """
    echo = sample.sampling.echo
    if echo:
        text = decode(tokenizer, sample.prompt) + text
    choice: dict[str, Any] = {"index": index, "text": text, "logprobs": None, "finish_reason": sample.finish_reason}
    if logprobs:
        ids, values, tops = sample.token_ids, sample.logprobs, sample.top_logprobs
        if echo and sample.prompt_logprobs is not None:
            ids = [*sample.prompt, *ids]
            # Nothing predicts the first token of a prompt.
            values = [None, *sample.prompt_logprobs.logprobs, *values]  # type: ignore[list-item]
            tops = [None, *sample.prompt_logprobs.top, *tops] if sample.sampling.top_logprobs else []  # type: ignore[list-item]
        choice["logprobs"] = completion_logprobs(token_text, ids, values, tops, tokens=tokens)
    if token_ids:
        choice["prompt_token_ids"] = sample.prompt
        choice["token_ids"] = sample.token_ids
    return choice


def completion_logprobs(
    token_text: TokenText,
    ids: Sequence[int],
    values: Sequence[float | None],
    tops: Sequence[TopLogprobs | None],
    offset: int = 0,
    tokens: bool = True,
) -> dict[str, Any]:
    """The completions form: parallel lists; null for texts and where they begin, from `offset` on, without `tokens`."""
    texts = [token_text(token) for token in ids] if tokens else None
    # Each begins where those before it end, the first at `offset`.
    offsets = [*accumulate((len(text) for text in texts), initial=offset)][:-1] if texts is not None else None
    shown = (
        [
            None if top is None else _named(token_text, [*top, (token, value)])  # type: ignore[list-item]
            for top, token, value in zip(tops, ids, values, strict=True)
        ]
        if tops
        else None
    )
    return {"tokens": texts, "token_logprobs": values, "top_logprobs": shown, "text_offset": offsets}


def _named(token_text: TokenText, pairs: TopLogprobs) -> dict[str, float]:
    named: dict[str, float] = {}
    for token, value in pairs:
        named.setdefault(token_text(token), value)  # pieces of characters may share a text
    return named


def chat_logprobs(
    token_text: TokenText, ids: Sequence[int], values: Sequence[float], tops: Sequence[TopLogprobs]
) -> dict[str, Any]:
    """The chat form: an object a token."""

    def entry(token: int, value: float) -> dict[str, Any]:
        text = token_text(token)
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    places = zip(ids, values, tops or [[]] * len(ids), strict=True)
    content = [{**entry(i, v), "top_logprobs": [entry(*pair) for pair in top]} for i, v, top in places]
    return {"content": content, "refusal": None}


def chat_choice(
    tokenizer: PreTrainedTokenizerFast,
    sample: Sample,
    index: int,
    text: str,
    *,
    token_text: TokenText,
    logprobs: bool,
    token_ids: bool,
) -> dict[str, Any]:
    """One choice of `/v1/chat/completions`."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice: dict[str, Any] = {"index": index, "message": message, "logprobs": None}
    if logprobs:
        choice["logprobs"] = chat_logprobs(token_text, sample.token_ids, sample.logprobs, sample.top_logprobs)
    choice["finish_reason"] = sample.finish_reason
    if token_ids:
        choice["token_ids"] = sample.token_ids
    return choice
