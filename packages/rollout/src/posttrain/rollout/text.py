"""From token ids to text while they come: whole characters only, stop strings found, nothing of them let out.

It follows one sample. It knows nothing of models or HTTP.
"""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"
"""What a decoder gives for the first bytes of a character whose last bytes are still to come."""


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
    """The text of token ids, without special tokens and without clean-up of spaces."""
    text = tokenizer.decode(list(token_ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
    return str(text)


class TextWatcher:
    """Follows a sample: `text` is what it says so far, cut before a stop string; `push` is True where one appeared.

    `on_token` is called after every token with (token id, text that has become certain). Text that may still turn
    out to begin a stop string is held back; `finish` lets it out.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: Sequence[str] = (),
        on_token: Callable[[int, str], None] | None = None,
    ) -> None:
        self.tokenizer, self.stop, self.on_token = tokenizer, tuple(stop), on_token
        self.text = ""
        self.stopped = False
        self._longest = max((len(s) for s in self.stop), default=0)
        self._ids: list[int] = []
        # Decoding starts at `_begin`, one piece before what is new at `_read`, since some tokenizers write a token
        # differently at the start of a text.
        self._begin = self._read = 0
        self._given = 0

    def push(self, token_id: int) -> bool:
        """Takes the next token of the sample."""
        self._ids.append(token_id)
        before = decode(self.tokenizer, self._ids[self._begin : self._read])
        after = decode(self.tokenizer, self._ids[self._begin :])
        if len(after) > len(before) and not after.endswith(UNFINISHED):
            self._extend(after[len(before) :])
            self._begin, self._read = self._read, len(self._ids)
        if self.on_token is not None:
            self.on_token(token_id, self._release(held=not self.stopped))
        return self.stopped

    def finish(self) -> str:
        """The rest of the text, when no token follows."""
        if not self.stopped:
            before = decode(self.tokenizer, self._ids[self._begin : self._read])
            self._extend(decode(self.tokenizer, self._ids[self._begin :])[len(before) :])
            self._begin = self._read = len(self._ids)
        return self._release(held=False)

    def _extend(self, piece: str) -> None:
        searched = max(0, len(self.text) - self._longest + 1)
        self.text += piece
        found = [at for s in self.stop if (at := self.text.find(s, searched)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _release(self, held: bool) -> str:
        end = len(self.text)
        if held:
            end -= max((_overlap(self.text, s) for s in self.stop), default=0)
        piece = self.text[self._given : end]
        self._given = max(self._given, end)
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
