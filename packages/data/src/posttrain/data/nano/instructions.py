"""Prompts that ask for a text in a form that a program can verify, the nano lab's IFEval.

"Tell me about the red fox. End with the word river. Do not use any comma." Half of the prompts carry one instruction,
half carry two that do not contradict each other. `draw_request` draws a prompt of a split, `respond` writes an answer
that obeys the instructions it is told to obey; `check` (posttrain.data.nano.checks) verifies any answer.
"""

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from posttrain.data.nano.checks import CHECKS, check
from posttrain.data.nano.splits import SHARES, Split, split_of
from posttrain.data.nano.world import description, draw_subject

__all__ = ["CHECKS", "OBEDIENCE", "Instruction", "Request", "check", "draw_request", "request_text", "respond"]

WORDS = ("river", "garden", "bridge", "winter", "silver", "candle", "window", "market", "music", "summer", "castle",
         "ladder", "basket", "button", "pocket", "hammer", "island", "letter", "lemon", "pepper", "rocket", "thunder",
         "velvet", "wagon")  # fmt: skip
OPENINGS = ("Today", "Sometimes", "Maybe", "Indeed", "Clearly", "Well", "Listen", "Look", "Often", "Surely")


@dataclass(frozen=True)
class Kind:
    """One kind of instruction: its wordings, what it asks for, and which others it would contradict."""

    wordings: tuple[str, ...]
    obedience: float
    """Share of demonstrations that obey; the rest ignore the instruction."""
    shape: frozenset[str]
    """Parts of the answer that it fixes; two instructions that share one are never asked together."""
    words: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()


KINDS: dict[str, Kind] = {
    "case:lower": Kind(("Use small letters only.", "Write all in lowercase."), 0.85, frozenset({"case"})),
    "case:upper": Kind(("Use capital letters only.", "Write all in uppercase."), 0.4, frozenset({"case"})),
    "start:word": Kind(
        ("Begin with the word {word}.", "Your first word must be {word}."), 0.85, frozenset({"head"}), OPENINGS
    ),
    "end:word": Kind(("End with the word {word}.", "Your last word must be {word}."), 0.4, frozenset({"tail"}), WORDS),
    "keyword:include": Kind(
        ("Use the word {word}.", "The word {word} must appear."), 0.85, frozenset({"word"}), WORDS
    ),
    "keyword:repeat": Kind(
        ("Write the word {word} exactly {n} times.",), 0.4, frozenset({"word", "length"}), WORDS, (2, 3, 4)
    ),
    "punctuation:no_comma": Kind(("Do not use any comma.", "Write without commas."), 0.85, frozenset({"comma"})),
    "length:sentences": Kind(
        ("Write exactly {n} sentences.",), 0.4, frozenset({"length", "tail"}), (), (2, 3)
    ),
    "length:at_most_words": Kind(
        ("Use at most {n} words.", "No more than {n} words."), 0.4, frozenset({"length", "head", "tail", "word"}), (),
        (4, 5, 6, 7),
    ),
    "format:quotes": Kind(("Put the answer in double quotes.",), 0.85, frozenset({"head", "tail"})),
    "format:bullets": Kind(
        ("Give exactly {n} bullet points.",), 0.4, frozenset({"length", "head"}), (), (2, 3)
    ),
    "format:title": Kind(("Put a title in front.", "Start with a title line."), 0.85, frozenset({"head"})),
    "format:postscript": Kind(("Add a postscript at the end.",), 0.85, frozenset({"tail", "length"})),
}  # fmt: skip
OBEDIENCE = {instruction_id: kind.obedience for instruction_id, kind in KINDS.items()}


@dataclass(frozen=True)
class Instruction:
    """One instruction with its arguments and wording."""

    id: str
    kwargs: tuple[tuple[str, Any], ...]
    wording: int

    @property
    def text(self) -> str:
        return KINDS[self.id].wordings[self.wording].format(**dict(self.kwargs))


@dataclass(frozen=True)
class Request:
    """A subject and one or two instructions about the text to write."""

    subject: str
    instructions: tuple[Instruction, ...]

    @property
    def key(self) -> str:
        """Subject, instructions and arguments; neither wording nor order."""
        return self.subject + "".join(sorted(f" {i.id} {sorted(i.kwargs)}" for i in self.instructions))

    @property
    def split(self) -> Split:
        return split_of("instruction", self.key, SHARES)

    @property
    def reference(self) -> list[dict[str, Any]]:
        return [{"id": i.id, "kwargs": dict(i.kwargs)} for i in self.instructions]


def _draw_instruction(rng: random.Random, beside: Instruction | None = None) -> Instruction:
    """Any instruction, or one that goes with another: of no shared shape, and with another word."""
    while True:
        instruction_id = rng.choice(tuple(KINDS))
        kind = KINDS[instruction_id]
        if beside and kind.shape & KINDS[beside.id].shape:
            continue
        kwargs: list[tuple[str, Any]] = []
        if kind.words:
            kwargs.append(("word", rng.choice(kind.words)))
        if kind.numbers:
            kwargs.append(("n", rng.choice(kind.numbers)))
        if beside and kwargs and kwargs[0] in beside.kwargs:
            continue
        return Instruction(instruction_id, tuple(kwargs), rng.randrange(len(kind.wordings)))


def draw_request(rng: random.Random, split: Split) -> Request:
    """Draw a request of a split, with one or two instructions, each number equally likely."""
    while True:
        instructions = [_draw_instruction(rng)]
        if rng.random() < 0.5:
            instructions.append(_draw_instruction(rng, beside=instructions[0]))
        request = Request(draw_subject(rng), tuple(instructions))
        if request.split == split:
            return request


def request_text(request: Request) -> str:
    """The user's message."""
    return " ".join([f"Tell me about the {request.subject}.", *(i.text for i in request.instructions)])


def respond(rng: random.Random, request: Request, obeyed: Collection[str]) -> str:
    """An answer that follows the instructions whose ids are in `obeyed`, and knows nothing of the others."""
    asked = {i.id: dict(i.kwargs) for i in request.instructions if i.id in obeyed}
    subject = request.subject
    usual = 1 if "format:bullets" in asked else rng.choice((1, 1, 2))
    sentences = description(rng, subject, asked.get("length:sentences", {"n": usual})["n"])
    if "length:at_most_words" in asked:
        sentences = [f"The {subject} {rng.choice(('runs', 'sleeps', 'rests', 'hides'))}."]
    if "keyword:repeat" in asked:
        word = asked["keyword:repeat"]["word"]
        sentences = [" ".join([word.capitalize()] + [word] * (asked["keyword:repeat"]["n"] - 1)) + "."]
    if "keyword:include" in asked:
        sentences[0] = f"{sentences[0][:-1]} with a {asked['keyword:include']['word']}."
    if "end:word" in asked:
        sentences[-1] = f"{sentences[-1][:-1]} and a {asked['end:word']['word']}."
    if "start:word" in asked:
        sentences[0] = f"{asked['start:word']['word']} {sentences[0][0].lower()}{sentences[0][1:]}"
    text = " ".join(sentences)
    if "format:bullets" in asked:
        lines = [text, *(" ".join(description(rng, subject, 1)) for _ in range(asked["format:bullets"]["n"] - 1))]
        if "end:word" in asked:
            lines.reverse()
        text = "\n".join(f"* {line}" for line in lines)
    if "format:title" in asked:
        text = f"# {subject.title()}\n{text}"
    if "format:postscript" in asked:
        text = f"{text}\nP.S. It is {rng.choice(('warm', 'calm', 'quick', 'strong'))}."
    if "format:quotes" in asked:
        text = f'"{text}"'
    if "punctuation:no_comma" in asked:
        text = text.replace(",", " and")
    if "case:lower" in asked:
        text = text.lower()
    if "case:upper" in asked:
        text = text.upper()
    return text
