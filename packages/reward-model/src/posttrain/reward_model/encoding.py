"""What a reward model reads, many items at once: the ids of `posttrain.data.chat.render_completion`, faster.

The same ids, item by item, in a fraction of the time: a prompt that several items share is rendered once, all texts go
through the tokenizer in one call (which runs on every core and lets other Python threads run), and the lab's own
ChatML is written without its template. Whatever is not that simple (another template, an assistant's turn in the
prompt, control tokens typed into a text) takes the way of `posttrain.data.chat`. Nothing is truncated.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError
from tokenizers import Tokenizer

from posttrain.core.errors import RequestError
from posttrain.data.chat import encode_text, end_token_id, render_prompt
from posttrain.data.control_tokens import neutralise
from posttrain.data.rows import Message
from posttrain.data.tokenizer import CHATML_TEMPLATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NORMALISATION_SHRINKS = 4
"""Composing characters (NFC) shortens text at most this much; it keeps the quick length check on the safe side."""


class Answer(NamedTuple):
    """A prompt, a completion of it, and whether that ended by itself. A text as prompt is one user's message."""

    prompt: str | Sequence[Message]
    completion: str
    finished: bool


class RefusedItem(RequestError):
    """An item that a source cannot take; `index` is its place among those given."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


class Encoder:
    """Encodes for one tokenizer and a context of `max_tokens`. Not safe for several threads at once."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", max_tokens: int) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self._end = end_token_id(tokenizer)
        # A copy of our own, so that nobody else's settings of truncation or padding apply.
        self._raw = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._raw.no_truncation()
        self._raw.no_padding()

    def encode(self, answers: Sequence[Answer]) -> list[list[int]]:
        """The ids of each answer.

        RefusedItem (without a word of the texts) for the first that is longer than the context or whose roles the
        template refuses.
        """
        for index, answer in enumerate(answers):
            self._check_characters(index, answer)
        first: dict[object, int] = {}
        prompt_of = [first.setdefault(_key(answer.prompt), index) for index, answer in enumerate(answers)]
        prompts = self._prompts(answers, list(first.values()))
        completions = self._texts([answer.completion for answer in answers])
        encoded = []
        for index, answer in enumerate(answers):
            ids = prompts[prompt_of[index]] + completions[index]
            if answer.finished:
                ids.append(self._end)
            if len(ids) > self.max_tokens:
                raise RefusedItem(
                    index,
                    f"it has {len(ids)} tokens with the reward model's template, which reads at most {self.max_tokens}",
                )
            encoded.append(ids)
        return encoded

    def _check_characters(self, index: int, answer: Answer) -> None:
        """Encoding what cannot fit anyway would make a request of many megabytes slow."""
        prompt = answer.prompt
        characters = len(answer.completion)
        characters += len(prompt) if isinstance(prompt, str) else sum(len(message["content"]) for message in prompt)
        if characters > self.max_tokens * self._longest_token * NORMALISATION_SHRINKS:
            raise RefusedItem(
                index, f"its {characters} characters are more than the reward model's {self.max_tokens} tokens hold"
            )

    def _prompts(self, answers: Sequence[Answer], indices: Sequence[int]) -> dict[int, list[int]]:
        """The ids of the prompts of the answers at `indices`."""
        prompts = {index: _messages(answers[index].prompt) for index in indices}
        simple = {index: _chatml(messages) for index, messages in prompts.items()} if self._is_chatml else {}
        clean = self._without_control_tokens([m["content"] for i in simple for m in prompts[i]])
        fast = [index for index, text in simple.items() if text is not None and clean]
        found = dict(zip(fast, self._batch([simple[index] or "" for index in fast]), strict=True))
        for index, messages in prompts.items():
            if index not in found:
                found[index] = self._render(index, messages)
        return found

    def _render(self, index: int, messages: Sequence[Message]) -> list[int]:
        try:
            return render_prompt(self.tokenizer, messages)
        except TemplateError as error:
            raise RefusedItem(
                index, f"the reward model's chat template refuses the messages: {error.message}"
            ) from None
        except RequestError as error:
            raise RefusedItem(index, str(error)) from None

    def _texts(self, texts: Sequence[str]) -> list[list[int]]:
        if self._without_control_tokens(texts):
            return self._batch(texts)
        encoded = []
        for index, text in enumerate(texts):
            try:
                encoded.append(encode_text(self.tokenizer, text))
            except RequestError as error:
                raise RefusedItem(index, str(error)) from None
        return encoded

    def _without_control_tokens(self, texts: Sequence[str]) -> bool:
        try:
            return neutralise(self.tokenizer, texts)[1] is None
        except RequestError:
            return False

    def _batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._raw.encode_batch_fast(list(texts), add_special_tokens=False)]

    @cached_property
    def _is_chatml(self) -> bool:
        return self.tokenizer.get_chat_template() == CHATML_TEMPLATE

    @cached_property
    def _longest_token(self) -> int:
        return max(len(token) for token in self.tokenizer.get_vocab())


def _messages(prompt: str | Sequence[Message]) -> Sequence[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _key(prompt: str | Sequence[Message]) -> object:
    return tuple((message["role"], message["content"]) for message in _messages(prompt))


def _chatml(messages: Sequence[Message]) -> str | None:
    """What CHATML_TEMPLATE makes of messages before an answer; None where it would cut them at an assistant's turn."""
    if not messages or any(message["role"] not in ("system", "user") for message in messages):
        return None
    turns = [f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>" for message in messages]
    return "\n".join([*turns, "<|im_start|>assistant\n"])
