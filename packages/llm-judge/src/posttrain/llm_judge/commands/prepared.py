"""What `posttrain judge run` is asked to compare, looked at before anything is asked of anybody.

The prompts are drawn into a random order first: a run that is stopped when it is clear, or limited, sees a random part
of them, whatever order the files have.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from posttrain.core.errors import RequestError
from posttrain.core.seeds import derive_seed
from posttrain.llm_judge.annotations import difficulties_of, read_difficulties
from posttrain.llm_judge.answers.answering import Answering
from posttrain.llm_judge.answers.generation import Generation
from posttrain.llm_judge.answers.prompt_set import Found, compare
from posttrain.llm_judge.answers.rows import Answer, Prompt, read_rows
from posttrain.llm_judge.answers.sides import Contestant, find_side, gather, missing_line, named_apart
from posttrain.llm_judge.exchange import TURNS
from posttrain.llm_judge.judges.completions import BYTES_PER_TOKEN
from posttrain.llm_judge.matches import Match
from posttrain.llm_judge.protocols import Protocol
from posttrain.llm_judge.records import Sides


@dataclass(frozen=True)
class MatchWish:
    """What the command line says of the two sides and their prompts."""

    a: str
    b: str
    prompts: Path | None = None
    """None: those of the sides that are files."""
    names: tuple[str | None, str | None] = (None, None)
    models: tuple[str | None, str | None] = (None, None)
    """At an address, which one."""
    limit: int | None = None
    seed: int = 0
    """Of the order of the prompts."""
    allow_missing: bool = False


@dataclass(frozen=True)
class Prepared:
    """Two sides and the prompts in the order in which they are judged."""

    a: Contestant
    b: Contestant
    prompts: Sequence[Prompt]
    of_a: Mapping[int, Answer]
    """What A has, if it is a file, by the place of the prompt."""
    of_b: Mapping[int, Answer]
    notes: Sequence[str]
    """What people have to know of the files, a sentence each."""

    def sides(self, answering: Answering) -> Sides:
        """Both, those of models with how their answers are made."""
        a, b = (
            one.side if one.side.kind == "file" else replace(one.side, made_by=answering.made_by(one))
            for one in (self.a, self.b)
        )
        return a, b

    def match(self, answering: Answering, protocol: Protocol | None, replicates: int) -> Match:
        """What is to be judged; answers that a model has not given yet are generated, as `Answering` says."""
        answers = [
            found if one.side.kind == "file" else answering.answers(one, self.prompts)
            for one, found in ((self.a, self.of_a), (self.b, self.of_b))
        ]
        return self._match(answers[0], answers[1], protocol, replicates)

    def expected(
        self, answering: Answering, generation: Generation, protocol: Protocol | None, replicates: int
    ) -> tuple[Match, Sequence[str]]:
        """The match with the longest possible answers where they are to be generated, and a sentence for each model
        that is to answer."""
        answers, notes = [], []
        # Texts that differ: equal answers are one game in both orders.
        for one, found, letter in ((self.a, self.of_a, "a"), (self.b, self.of_b, "b")):
            if one.side.kind == "file":
                answers.append(found)
                continue
            wanted = {prompt.key for prompt in answering.to_generate(one, self.prompts)}
            known = answering.kept(one).read()
            longest = letter * (BYTES_PER_TOKEN * generation.max_new_tokens)
            notes += [f"{one.side.name}: {len(wanted)} answers to generate, counted at their longest"] if wanted else []
            answers.append(
                {
                    place: known.get(prompt.key) or Answer((longest,) * len(prompt.questions))
                    for place, prompt in enumerate(self.prompts)
                }
            )
        return self._match(answers[0], answers[1], protocol, replicates), notes

    def difficulties(self, path: Path | None, protocol: Protocol | None) -> Mapping[str, float] | None:
        """Those of the file, or those that the prompts carry, if all do; None where there are none. RequestError where
        the file lacks one, the prompts have two for one, or there is nothing that difficulties could be for."""
        if path:
            if protocol and protocol.template.shows == "one":
                raise RequestError(f"--difficulty is for win rates, and the protocol {protocol.name} has none")
            known = read_difficulties(path)
            instructions = [text for prompt in self.prompts for text in _instructions(prompt, protocol)]
            difficulties_of(instructions, known, path)
            return known
        carried: dict[str, float] = {}
        for prompt in self.prompts:
            if prompt.difficulty is None:
                return None
            for text in _instructions(prompt, protocol):
                if carried.setdefault(text, prompt.difficulty) != prompt.difficulty:
                    raise RequestError(
                        f"the prompts give {text!r:.80} two difficulties, {carried[text]:g} and {prompt.difficulty:g}; "
                        "give it one, or all of them with --difficulty"
                    )
        return carried

    def _match(
        self, of_a: Mapping[int, Answer], of_b: Mapping[int, Answer], protocol: Protocol | None, replicates: int
    ) -> Match:
        names = self.a.side.name, self.b.side.name
        return Match(compare(self.prompts, of_a, of_b, names), protocol, replicates)


def prepare(wish: MatchWish) -> Prepared:
    """Reads what the wish names. RequestError for the first thing that is wrong with it; ServiceUnavailable where an
    address does not answer."""
    (name_a, name_b), (model_a, model_b) = wish.names, wish.models
    a = find_side(wish.a, "A", name=name_a, model=model_a)
    b = find_side(wish.b, "B", name=name_b, model=model_b)
    a, b = named_apart(a, b)
    asked, of_a, of_b = gather(a, b, read_rows(wish.prompts) if wish.prompts else None)
    notes = [*_notes(a, of_a), *_notes(b, of_b)]
    places = list(range(len(asked.prompts)))
    for one, letter, found in ((a, "A", of_a), (b, "B", of_b)):
        if line := missing_line(one, letter, asked.prompts, found.answers):
            if not wish.allow_missing:
                raise RequestError(f"{line}; add them, or leave these prompts out with --allow-missing")
            notes.append(f"{line}; left out")
            places = [place for place in places if place in found.answers]
    random.Random(derive_seed(wish.seed, "order of prompts")).shuffle(places)
    places = places[: wish.limit]
    of_each = [
        {new: found.answers[place] for new, place in enumerate(places) if place in found.answers}
        for found in (of_a, of_b)
    ]
    return Prepared(a, b, [asked.prompts[place] for place in places], of_each[0], of_each[1], notes)


def _notes(one: Contestant, found: Found) -> Iterator[str]:
    if found.left_out:
        yield f"{one.side.where}: {found.left_out} answers to other prompts are left out"
    if found.repeated:
        yield f"{one.side.where}: {found.repeated} rows say once more what a row before them says"


def _instructions(prompt: Prompt, protocol: Protocol | None) -> list[str]:
    """What the games about a prompt show of it."""
    turns = len(prompt.questions)
    shown = range(1, turns + 1) if protocol and protocol.template.turns == "each" else [turns]
    return [TURNS.join(prompt.questions[:turn]) for turn in shown]
