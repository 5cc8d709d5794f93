"""A protocol: which games decide a comparison, how a judge is asked about one, and what its reply means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from posttrain.core.config import read_yaml, validate
from posttrain.core.errors import RequestError, suggest
from posttrain.core.hashing import digest_json
from posttrain.core.wire import Message
from posttrain.llm_judge.comparisons import Comparison, Game, Order
from posttrain.llm_judge.protocols import quoting
from posttrain.llm_judge.protocols.naming import OPTIONAL, WORDS, answer_name, game_of, question_name, texts_of
from posttrain.llm_judge.protocols.template import ENVIRONMENT, Template
from posttrain.llm_judge.protocols.verdicts import Token, Verdict, read_first_token, read_last_line, verdict_line

NAMES = ("alpaca", "arena_hard", "mt_bench", "mt_bench_grade")
"""The protocols that come with the package; any other is a template file."""

TEMPLATE_FAULTS = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError)


@dataclass(frozen=True)
class Prompt:
    """One game as a judge is asked about it."""

    messages: tuple[Message, ...]
    nonce: str
    """What the marks of this game's quotations and its verdict carry."""
    protocol: "Protocol"

    def read(self, text: str, tokens: Sequence[Token] = (), *, cut: bool = False) -> Verdict | None:
        """The verdict of a reply, None where the place for it holds none or two. `tokens`: those of the reply, with
        log-probabilities. `cut`: the reply ended at its limit, so its last line may be half a line."""
        template = self.protocol.template
        if template.place == "first_token":
            return read_first_token(text, template.scale, tokens)
        return None if cut else read_last_line(text, template.scale, self.nonce)

    def reminded(self, reply: str) -> tuple[Message, ...]:
        """What to ask, once, after a reply without a verdict."""
        said = Message(role="assistant", content=reply if reply.strip() else "(nothing)")
        return (*self.messages, said, Message(role="user", content=self.protocol.reminder(self.nonce)))


@dataclass(frozen=True)
class Protocol:
    """A template at work. `where` is what errors call it."""

    template: Template
    where: str = field(default="template", compare=False)

    def __post_init__(self) -> None:
        plain = Comparison(questions=("q",), answers_a=("a",), answers_b=("b",))
        said = (Message(role="user", content="h"), Message(role="assistant", content="i"))
        full = {"questions": ("q", "r"), "answers_a": ("a", "c"), "answers_b": ("b", "d"), "history": said}
        for sample in (plain, Comparison(**full, reference="e", rubric="f")):
            for game in self.games(sample):
                self.reminder(self.render(game).nonce)

    @property
    def name(self) -> str:
        return self.template.name

    @property
    def max_tokens(self) -> int:
        """Of a reply."""
        return self.template.max_tokens

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the judge's identity holds of it: name, version and a digest of all that the prompt is made from."""
        made_from = [self.template.definition(), quoting.VERSION]
        return {"name": self.name, "version": self.template.version, "digest": digest_json(made_from)[:16]}

    @property
    def verdict_tokens(self) -> tuple[str, ...]:
        """The labels whose log-probabilities make a verdict a probability; none where verdicts are lines."""
        return tuple(self.template.scale) if self.template.place == "first_token" else ()

    def games(self, comparison: Comparison, replicate: int = 0) -> tuple[Game, ...]:
        """The games that decide a comparison: both orders, or a grade for each answer, after the last turn or each."""
        orders: tuple[Order, ...] = ("ab", "ba") if self.template.shows == "two" else ("a", "b")
        last = len(comparison.questions)
        turns = range(1, last + 1) if self.template.turns == "each" else (last,)
        return tuple(Game(comparison, order, turn, replicate) for turn in turns for order in orders)

    def render(self, game: Game, nonce: str | None = None) -> Prompt:
        """The prompt of a game, the same whenever it is asked for. `nonce`: another than the game's own.

        RequestError where the template fails or does not show the texts as they are.
        """
        texts = texts_of(game, self.template.shows)
        nonce = nonce or quoting.nonce_for(game.definition(sees_cut=False), texts.values())
        user = self._fill("user", self._variables(game, texts, nonce), nonce)
        self._check(user, texts, nonce)
        said = (Message(role="system", content=self.template.system), Message(role="user", content=user))
        return Prompt(said, nonce, self)

    def reminder(self, nonce: str) -> str:
        """What is said after a reply without a verdict to a prompt with this nonce; RequestError as by `render`."""
        return self._fill("reminder", self._answering(nonce), nonce)

    def parse(self, messages: Sequence[Message]) -> tuple[Game, str]:
        """The game that a prompt of this protocol asks about, and its nonce: what `render` was given, but for the
        replicate, and for what the template does not show. ValueError where it is no such prompt."""
        if len(messages) < 2 or messages[0].content != self.template.system:
            raise ValueError(f"this is no prompt of the protocol {self.name}")
        nonce, texts = quoting.quotations(messages[1].content)
        return game_of(texts, self.template.shows), nonce

    def _variables(self, game: Game, texts: dict[str, str], nonce: str) -> dict[str, Any]:
        quoted = {name: quoting.quote(name, text, nonce) for name, text in texts.items()}
        words = WORDS[self.template.shows]
        turns = [
            {"question": quoted[question_name(turn)]} | {word: quoted[answer_name(word, turn)] for word in words}
            for turn in range(1, game.turns + 1)
        ]
        history = [text for name, text in quoted.items() if name.startswith("earlier message ")]
        optional = {name: quoted.get(name, "") for name in OPTIONAL}
        return {"turns": turns, "history": history} | optional | self._answering(nonce)

    def _answering(self, nonce: str) -> dict[str, Any]:
        if self.template.place == "first_token":
            return {"verdict": "", "verdicts": list(self.template.scale)}
        return {
            "verdict": verdict_line(nonce),
            "verdicts": [verdict_line(nonce, label) for label in self.template.scale],
        }

    @cached_property
    def _compiled(self) -> dict[str, jinja2.Template]:
        return {name: ENVIRONMENT.from_string(getattr(self.template, name)) for name in ("user", "reminder")}

    def _fill(self, name: str, variables: Mapping[str, Any], nonce: str) -> str:
        try:
            text = self._compiled[name].render(variables)
        except TEMPLATE_FAULTS as error:
            raise RequestError(f"{self.where}: '{name}' cannot be filled: {' '.join(str(error).split())}") from None
        if self.template.place == "last_line" and verdict_line(nonce) not in text:
            raise RequestError(f"{self.where}: '{name}' does not say how to answer; put {{{{ verdict }}}} into it")
        return text

    def _check(self, user: str, texts: dict[str, str], nonce: str) -> None:
        try:
            found = quoting.quotations(user)
        except ValueError as error:
            raise RequestError(f"{self.where}: the prompt does not show the texts as they are: {error}") from None
        missing = [name for name in texts if name not in found[1] and name not in OPTIONAL]
        if missing:
            raise RequestError(f"{self.where}: the prompt does not show the {missing[0]}; put it into 'user'")
        if found[0] != nonce or any(texts.get(name) != text for name, text in found[1].items()):
            raise RequestError(f"{self.where}: the prompt changes a quoted text; put it into 'user' without a filter")


def load_protocol(name_or_path: str) -> Protocol:
    """A protocol by one of `NAMES` or the path of a template file; RequestError says what is wrong with it."""
    if name_or_path in NAMES:
        path = Path(str(files("posttrain.llm_judge") / "templates" / f"{name_or_path}.yaml"))
    elif name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
    else:
        hint = suggest(name_or_path, NAMES)
        raise RequestError(f"there is no protocol '{name_or_path}' {hint}; a template of your own is a .yaml file")
    return Protocol(validate(Template, read_yaml(path), str(path)), str(path))
