"""From token ids to text while they come: whole characters only, stop strings found, nothing of them let out.

It follows one sample, at a cost a token that does not grow with what came before, whatever the tokens and the stop
strings are. It knows nothing of models or HTTP.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerFast

UNFINISHED = "\ufffd"
"""What a decoder gives for the first bytes of a character whose last bytes are still to come."""
LONGEST_CHARACTER = 4
"""Bytes, and so tokens, that a character may take."""
MOST_UNFINISHED = 16
"""After so many tokens without a whole character at the end, what comes is no text."""


def decode(tokenizer: PreTrainedTokenizerFast, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
    """The text of token ids, without special tokens and without clean-up of spaces."""
    # `tokenizer.decode` gives the same and takes twice as long.
    return tokenizer.backend_tokenizer.decode(token_ids, skip_special_tokens=skip_special)


def decode_all(tokenizer: PreTrainedTokenizerFast, token_ids: Sequence[Sequence[int]]) -> list[str]:
    """`decode` of each."""
    return tokenizer.backend_tokenizer.decode_batch(token_ids, skip_special_tokens=True)


class TextWatcher:
    """Follows a sample: `text` is what it says so far, cut before a stop string; `push` is True where one appeared.

    `on_token` is called after every token with (token id, text that has become certain). Text that may still turn
    out to begin a stop string is held back; `finish` lets it out.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        stop: Sequence[str] = (),
        on_token: Callable[[int, str], None] | None = None,
    ) -> None:
        self.tokenizer, self.stop, self.on_token = tokenizer, tuple(stop), on_token
        self.text = ""
        self.stopped = False
        self._longest = max((len(s) for s in self.stop), default=0)
        # How much of each stop string the text ends with.
        self._matched = [0] * len(self.stop)
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
        elif len(self._ids) - self._read > MOST_UNFINISHED:
            self._let_go(before, after)
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

    def _let_go(self, before: str, after: str) -> None:
        """Takes unfinished bytes as they are, up to where a character that is still to be completed may begin."""
        for end in range(len(self._ids) - LONGEST_CHARACTER, len(self._ids)):
            head = decode(self.tokenizer, self._ids[self._begin : end])
            if head + decode(self.tokenizer, self._ids[end:]) == after and len(head) >= len(before):
                self._extend(head[len(before) :])
                self._begin = self._read = end
                return

    def _extend(self, piece: str) -> None:
        searched = max(0, len(self.text) - self._longest + 1)
        self.text += piece
        self._matched = [_matched(s, n, piece) for s, n in zip(self.stop, self._matched, strict=True)]
        found = [at for s in self.stop if (at := self.text.find(s, searched)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _release(self, held: bool) -> str:
        end = len(self.text)
        if held:
            end -= max(self._matched, default=0)
        piece = self.text[self._given : end]
        self._given = max(self._given, end)
        return piece


def _matched(stop: str, matched: int, piece: str) -> int:
    """Length of the longest end of a text that begins `stop`, after `piece` was added to a text where it was `matched`.

    Knuth, Morris and Pratt 1977. A whole `stop` inside counts as none: the text ends there.
    """
    borders = _borders(stop)
    for character in piece:
        while matched and stop[matched] != character:
            matched = borders[matched - 1]
        matched += stop[matched] == character
        if matched == len(stop):
            return 0
    return matched


@lru_cache(maxsize=1024)
def _borders(stop: str) -> list[int]:
    """For each beginning of `stop` the length of the longest shorter beginning that also ends it."""
    borders = [0] * len(stop)
    length = 0
    for place in range(1, len(stop)):
        while length and stop[place] != stop[length]:
            length = borders[length - 1]
        length += stop[place] == stop[length]
        borders[place] = length
    return borders
