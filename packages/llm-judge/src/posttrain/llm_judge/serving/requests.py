"""What clients ask, in the export's columns: the bodies of `POST /judge` and `POST /runs`, and one clear line for what
is none.

`output_1` is A's answer and `output_2` B's. A missing one names a policy of the service's settings; nothing that a
client sends is ever used as an address or a path.
"""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from posttrain.core.errors import RequestError, suggest
from posttrain.core.wire import Message
from posttrain.llm_judge.comparisons import Comparison

Text = Annotated[str, Field(pattern=r"\S")]
KEY_SHOWN = 40
"""Characters of an unknown key that an error repeats."""
OUTPUT = 'an output is a text, a list with a text for each question, or {"policy": name}'


class Wire(BaseModel):
    """Base of what comes in: nothing is converted, and nothing unknown passed over."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class FromPolicy(Wire):
    """An answer that is to be had from a policy of the service."""

    policy: str
    """Its name in the service's settings."""


def _kind(value: Any) -> str | None:
    kinds: dict[str, type | tuple[type, ...]] = {"text": str, "texts": list, "policy": (dict, FromPolicy)}
    return next((kind for kind, types in kinds.items() if isinstance(value, types)), None)


Output = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Tag("texts"), Field(min_length=1)]
    | Annotated[FromPolicy, Tag("policy")],
    Discriminator(_kind, custom_error_type="output", custom_error_message=OUTPUT),
]
"""A side's answers: a text where there is one question, a text for each, or whom to ask."""


class Said(Wire, Message):
    """A message of a comparison's history."""


class ComparisonItem(Wire):
    """Two answers to an instruction, or to each question of a conversation."""

    instruction: Text | None = None
    """What is asked; or `questions`."""
    questions: list[Text] | None = Field(default=None, min_length=1)
    """What the user says turn by turn."""
    output_1: Output
    output_2: Output
    cut_1: bool = False
    """Whether the last text of `output_1` was cut at its greatest length."""
    cut_2: bool = False
    history: list[Said] = []
    """What was said before, alike for both."""
    reference: str | None = None
    """A right answer, for protocols and verifiers that take one."""
    rubric: str | None = None
    """What to judge by, for protocols that show it."""
    category: str | None = None
    human: float | None = Field(default=None, ge=0, le=1)
    """What people said: 1, output_2 is better; 0, output_1 is."""
    prompt_id: str | None = Field(default=None, min_length=1)
    """What names the prompt; by default a digest of what is asked."""

    @model_validator(mode="after")
    def _fits(self) -> "ComparisonItem":
        if (self.instruction is None) == (self.questions is None):
            raise ValueError("it has either 'instruction' or 'questions'")
        for name, output in (("output_1", self.output_1), ("output_2", self.output_2)):
            if not isinstance(output, FromPolicy) and len(texts_of(output)) != len(self.asked):
                raise ValueError(f"{len(self.asked)} questions have {len(texts_of(output))} texts in '{name}'")
        return self

    @property
    def asked(self) -> list[str]:
        """The questions, one or more."""
        return self.questions or [self.instruction or ""]

    def comparison(self, generators: tuple[str | None, str | None], generated: dict[int, "Generated"]) -> Comparison:
        """The comparison, with what was generated for the sides, 1 or 2, that name a policy."""
        sides = []
        for number, output, cut in ((1, self.output_1, self.cut_1), (2, self.output_2, self.cut_2)):
            known = generated[number] if isinstance(output, FromPolicy) else Generated(texts=texts_of(output), cut=cut)
            sides.append(known)
        return Comparison(
            questions=tuple(self.asked),
            answers_a=tuple(sides[0].texts),
            answers_b=tuple(sides[1].texts),
            cut_a=sides[0].cut,
            cut_b=sides[1].cut,
            history=tuple(self.history),
            reference=self.reference,
            rubric=self.rubric,
            category=self.category,
            generator_a=generators[0],
            generator_b=generators[1],
            human=self.human,
            prompt_id=self.prompt_id or "",
        )


class Generated(Wire):
    """What a policy answered to the questions of one comparison."""

    texts: list[str]
    cut: bool = False
    """The last one ended at its limit of tokens."""


class JudgeRequest(Wire):
    """`POST /judge`."""

    judge: str | None = None
    """One of the service's judges; by default its default."""
    protocol: str | None = None
    """One of the service's protocols; by default its default. A reward source takes none."""
    replicates: int = Field(default=1, ge=1, le=16)
    """Opinions of the judge on each comparison."""
    generator_1: str | None = None
    """Who wrote `output_1`, in all comparisons; by default the policy that was asked for all of them."""
    generator_2: str | None = None
    comparisons: list[ComparisonItem] = Field(min_length=1)


class RunRequest(JudgeRequest):
    """`POST /runs`."""

    stop_when_clear: bool = False
    """Whether to ask no further than it takes to tell one side from the other; the order of the prompts is drawn."""


RequestT = TypeVar("RequestT", bound=JudgeRequest)


def texts_of(output: str | list[str]) -> list[str]:
    """An output as a text for each question."""
    return [output] if isinstance(output, str) else output


def parse(kind: type[RequestT], body: bytes) -> RequestT:
    """The request in a JSON body; RequestError says where it is malformed and repeats no value of it."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
    # An unknown key explains a missing one more often than the other way round, so it is told first.
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    if first["type"] == "json_invalid":
        raise RequestError("the body is not valid JSON")
    parts = _parts(first["loc"])
    if first["type"] == "extra_forbidden":
        key = str(parts[-1])[:KEY_SHOWN]
        place = _words(parts[:-1]) or "the request"
        raise RequestError(f"{place} has the unknown key '{key}' {suggest(key, _known(kind, parts[:-1]))}")
    where = _words(parts) or "the body"
    if first["type"] == "missing":
        raise RequestError(f"{where} is missing; set it")
    if first["type"] == "string_pattern_mismatch":
        raise RequestError(f"{where} holds no text")
    said = first["msg"].removeprefix("Value error, ")
    raise RequestError(f"{where}: {said[0].lower()}{said[1:]}")


def _parts(loc: tuple[int | str, ...]) -> list[int | str]:
    """The place of an error without the names of an output's kinds, which no client wrote."""
    return [part for number, part in enumerate(loc) if not number or loc[number - 1] not in ("output_1", "output_2")]


def _words(parts: list[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")


def _known(kind: type[BaseModel], parts: list[int | str]) -> list[str]:
    """The keys of the object at `parts`."""
    if not parts:
        return list(kind.model_fields)
    place = Said if "history" in parts else ComparisonItem if len(parts) == 2 else FromPolicy
    return list(place.model_fields)
