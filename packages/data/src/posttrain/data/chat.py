"""Conversations to token ids: the one place where text meets the chat template and the loss mask is made.

What SFT trains on, what the reward model reads and what the policy is asked to continue must be the same ids. So the
text is cut where the assistant begins to speak and each part is encoded by itself:

    render_conversation(prompt + answer)  ==  render_prompt(prompt) + encode_text(answer) + [end token]

also where a tokenizer would have merged the template's newline with one that the answer begins with. Text inside a
message can never become a control token: `<|im_end|>` typed by a user is encoded as ordinary characters.

Takes tokenizers of byte-level BPE (Qwen, Llama 3 and later, GPT-2). Gives lists of ids; nothing is padded, truncated
or made a tensor here, and torch is not needed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from posttrain.core.errors import RequestError
from posttrain.data.control_tokens import encode_with_seams, neutralise
from posttrain.data.rows import Message
from posttrain.data.tokenizer import CHATML_TEMPLATE, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "CHATML_TEMPLATE",
    "check_prompt_length",
    "encode_text",
    "end_token_id",
    "load_tokenizer",
    "render_completion",
    "render_conversation",
    "render_prompt",
]


def render_prompt(tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Message]) -> list[int]:
    """The ids that the policy continues: all messages and the opening of the assistant's turn."""
    parts = _render(tokenizer, messages, add_generation_prompt=True)
    return [token for part in _encode(tokenizer, parts) for token in part]


def render_conversation(
    tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Message]
) -> tuple[list[int], list[int]]:
    """Ids and loss mask (1 where the assistant speaks, its end token included) of a whole conversation.

    Ends with the last assistant turn's end token. RequestError when the mask would be all zeros or all ones, since
    such a row teaches nothing or teaches the question.
    """
    parts = _render(tokenizer, messages, add_generation_prompt=False)
    while parts and not parts[-1].spoken:
        parts.pop()  # what a template writes after the last answer (Qwen's newline) is never sampled
    ids: list[int] = []
    mask: list[int] = []
    for part, tokens in zip(parts, _encode(tokenizer, parts), strict=True):
        ids += tokens
        mask += [int(part.spoken)] * len(tokens)
    if not any(mask):
        raise RequestError(
            "the loss mask is empty: no message has the role 'assistant', or the chat template marks none of it "
            "with {% generation %}; give the conversation an answer and load the tokenizer by load_tokenizer"
        )
    if all(mask):
        raise RequestError(
            "the loss mask covers every token: the chat template marks the whole conversation with "
            "{% generation %}; mark only what the assistant says"
        )
    return ids, mask


def render_completion(
    tokenizer: "PreTrainedTokenizerFast", prompt_messages: Sequence[Message], completion_text: str, finished: bool
) -> list[int]:
    """What a reward model reads: the prompt's ids, the completion's, and the end token only when it `finished`.

    No newline follows, so that the last token of a finished completion is the end token, as the policy samples it.
    """
    ids = render_prompt(tokenizer, prompt_messages) + encode_text(tokenizer, completion_text)
    return [*ids, end_token_id(tokenizer)] if finished else ids


def encode_text(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[int]:
    """The ids of text that somebody wrote: no special tokens are added and none are recognised in it."""
    neutral, seam = neutralise(tokenizer, [text])
    return encode_with_seams(tokenizer, neutral[0], seam)


def end_token_id(tokenizer: "PreTrainedTokenizerFast") -> int:
    """The id that ends an assistant's turn; RequestError when the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise RequestError(f"tokenizer {tokenizer.name_or_path} has no end token; load it by load_tokenizer")
    return int(tokenizer.eos_token_id)


def check_prompt_length(
    tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Message], context: int, max_new_tokens: int
) -> list[int]:
    """The prompt's ids, or RequestError when prompt and answer together (both in tokens) do not fit the context."""
    ids = render_prompt(tokenizer, messages)
    if len(ids) + max_new_tokens > context:
        start = " ".join(messages[-1]["content"].split())[:60]
        raise RequestError(
            f"prompt '{start}…' has {len(ids)} tokens, and with {max_new_tokens} new ones exceeds the context of "
            f"{context}; shorten it, lower max_new_tokens or take a model with a longer context"
        )
    return ids


class _Part:
    """A stretch of rendered text; `spoken` when the assistant said it."""

    def __init__(self, text: str, spoken: bool, seam: str | None) -> None:
        self.text, self.spoken, self.seam = text, spoken, seam


def _render(
    tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Message], add_generation_prompt: bool
) -> list[_Part]:
    from transformers.utils.chat_template_utils import render_jinja_template

    _check_messages(messages)
    contents, seam = neutralise(tokenizer, [message["content"] for message in messages])
    chat = [{"role": m["role"], "content": content} for m, content in zip(messages, contents, strict=True)]
    template = tokenizer.get_chat_template()
    special: dict[str, Any] = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
    rendered, spans = render_jinja_template(
        conversations=[chat],
        chat_template=template,
        return_assistant_tokens_mask=True,
        add_generation_prompt=add_generation_prompt,
        **special,
    )
    text, parts, end = rendered[0], [], 0
    for start, stop in spans[0]:
        parts += [_Part(text[end:start], False, seam), _Part(text[start:stop], True, seam)]
        end = stop
    parts.append(_Part(text[end:], False, seam))
    return [part for part in parts if part.text]


def _encode(tokenizer: "PreTrainedTokenizerFast", parts: Sequence[_Part]) -> list[list[int]]:
    return [encode_with_seams(tokenizer, part.text, part.seam) for part in parts]


def _check_messages(messages: Sequence[Message]) -> None:
    if not messages:
        raise RequestError("a conversation has no messages; give at least one")
    for number, message in enumerate(messages):
        if message.get("role") not in ("system", "user", "assistant"):
            raise RequestError(f"message {number} has the role {message.get('role')!r}; use system, user or assistant")
        if not isinstance(message.get("content"), str):
            raise RequestError(f"message {number} has no text in 'content' (it is {message.get('content')!r})")
