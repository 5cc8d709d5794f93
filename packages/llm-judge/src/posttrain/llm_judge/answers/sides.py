"""A and B: a file of answers, a checkpoint that is served for the purpose, or the address of a model that is served.

Finds out what an argument means, and what files of answers have to the prompts of the match.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.core.errors import RequestError
from posttrain.core.files import user_path
from posttrain.core.hashing import digest_checkpoint
from posttrain.core.supervised import SupervisedService
from posttrain.llm_judge.answers.prompt_set import Found, PromptSet
from posttrain.llm_judge.answers.rows import Answer, Prompt, Row, read_rows
from posttrain.llm_judge.endpoints import Endpoint, find_endpoint, is_url
from posttrain.llm_judge.records import Side

NAMED = 3
"""Prompts without an answer that an error names."""
CONFIGURATIONS = ("config.json", "adapter_config.json")


@dataclass(frozen=True)
class Contestant:
    """A or B, found and looked at."""

    side: Side
    rows: Sequence[Row] = ()
    """Of a file."""
    model: Mapping[str, Any] | None = None
    """What tells the model's answers from those of others; None for a file."""
    endpoint: Endpoint | None = None
    """None where there is none yet: a file, a checkpoint."""

    @contextmanager
    def served(self, logs: Path) -> Iterator[Endpoint]:
        """The model's server; that of a checkpoint lives as long as the block."""
        if self.endpoint:
            yield self.endpoint
            return
        assert self.side.where, "a checkpoint is somewhere"
        with SupervisedService("policy", ["policy", self.side.where], logs / "policy.log") as service:
            yield find_endpoint(service.url)


def find_side(text: str, letter: str, *, name: str | None = None, model: str | None = None) -> Contestant:
    """What an argument of the command means. `name`: for people; `model`: at an address, which one.

    RequestError where it is nothing of the three, ServiceUnavailable where nobody answers at an address.
    """
    if model and not is_url(text):
        raise RequestError(f"--model-{letter.lower()} is for an address, and {letter} is {text}")
    if is_url(text):
        endpoint = find_endpoint(text, model)
        side = Side(name or endpoint.model, "url", endpoint.base_url)
        return Contestant(side, model=endpoint.identity, endpoint=endpoint)
    path = user_path(text)
    if path.is_dir():
        if not any((path / file).is_file() for file in CONFIGURATIONS):
            raise RequestError(f"{letter}: {path} is no checkpoint; it has no {CONFIGURATIONS[0]}")
        side = Side(name or _checkpoint_name(path), "checkpoint", str(path))
        return Contestant(side, model={"checkpoint": digest_checkpoint(path)})
    if not path.exists():
        raise RequestError(
            f"{letter}: {text} does not exist; it may be a file of answers, a checkpoint folder, or an http:// address"
        )
    rows = read_rows(path)
    return Contestant(Side(name or _generator(rows) or path.stem, "file", str(path)), rows)


def named_apart(a: Contestant, b: Contestant) -> tuple[Contestant, Contestant]:
    """Both, with names that differ."""
    if a.side.name != b.side.name:
        return a, b
    renamed = [replace(one, side=replace(one.side, name=f"{one.side.name} ({at})")) for one, at in ((a, "A"), (b, "B"))]
    return renamed[0], renamed[1]


def gather(a: Contestant, b: Contestant, prompts: Sequence[Row] | None) -> tuple[PromptSet, Found, Found]:
    """The prompts, those of a file or else of the sides that are files, and what the files have to them.

    RequestError where there are none, or two files have none in common.
    """
    files = [one for one in (a, b) if one.side.kind == "file"]
    if prompts is None and not files:
        raise RequestError("neither A nor B is a file, so there are no prompts; give some with --prompts FILE")
    asked = PromptSet()
    if prompts is not None:
        asked.take(prompts, grow=True)
    of_a, of_b = (asked.take(one.rows, grow=prompts is None) for one in (a, b))
    for one, found in ((a, of_a), (b, of_b)):
        if one in files and not found.answers:
            raise RequestError(f"{one.side.where} has no answer to any of the {len(asked.prompts)} prompts")
    if len(files) == 2 and not of_a.answers.keys() & of_b.answers.keys():
        first = " and ".join(repr(asked.prompts[min(found.answers)].instruction[:60]) for found in (of_a, of_b))
        raise RequestError(f"{a.side.where} and {b.side.where} answer no prompt in common; they begin with {first}")
    return asked, of_a, of_b


def missing_line(one: Contestant, letter: str, prompts: Sequence[Prompt], answers: Mapping[int, Answer]) -> str | None:
    """Which prompts a file has no answer to, for people; None where it answers all."""
    missing = [prompt for place, prompt in enumerate(prompts) if place not in answers]
    if one.side.kind != "file" or not missing:
        return None
    first = ", ".join(repr(prompt.instruction[:60]) for prompt in missing[:NAMED])
    more = ", …" if len(missing) > NAMED else ""
    return f"{letter} ({one.side.where}) has no answer to {len(missing)} of {len(prompts)} prompts: {first}{more}"


def _checkpoint_name(path: Path) -> str:
    """Of a run's folder `…/<stage>/<fingerprint>/checkpoint` the stage and the fingerprint, else the folder's name."""
    path = path.resolve()
    return f"{path.parent.parent.name}-{path.parent.name}" if path.name == "checkpoint" else path.name


def _generator(rows: Sequence[Row]) -> str | None:
    """Who wrote all the answers; None where the file does not say, or names several."""
    names = {row.generator for row in rows}
    return names.pop() if len(names) == 1 else None
