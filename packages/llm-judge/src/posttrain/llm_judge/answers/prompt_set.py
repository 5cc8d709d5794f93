"""The prompts of a match, and which answer in a file belongs to which: every row finds its prompt by text, or by id.

Texts come first, for two files may number the same prompts in different ways. Ids decide where a row has no prompt in
it, and where the same one occurs more than once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from posttrain.core.errors import RequestError
from posttrain.llm_judge.answers.rows import Answer, Prompt, Row
from posttrain.llm_judge.comparisons import Comparison


@dataclass(frozen=True)
class Found:
    """What a file has to the prompts of a match."""

    answers: Mapping[int, Answer]
    """By the place of the prompt."""
    left_out: int
    """Rows whose prompt is none of the match's."""
    repeated: int
    """Rows that say once more what a row before them says."""


class PromptSet:
    """Prompts in their order, each once."""

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []
        self._by_key: dict[str, list[int]] = {}
        self._by_id: dict[str, list[int]] = {}

    def take(self, rows: Iterable[Row], *, grow: bool) -> Found:
        """The answers that the rows of one file have. `grow`: prompts that are new are added.

        RequestError where a row's prompt cannot be told, or a second answer to one is another than the first.
        """
        answers: dict[int, Answer] = {}
        seen: dict[int, Row] = {}
        left_out = repeated = 0
        for row in rows:
            place = self._place(row)
            if place is not None and place in seen:
                if not (grow and self._is_another(row, place)):
                    _check_same(row, seen[place])
                    repeated += 1
                    continue
                place = None
            if place is None:
                if not grow:
                    left_out += 1
                    continue
                place = self._add(row)
            seen[place] = row
            self._learn(place, row.prompt)
            if row.answer:
                answers[place] = _fitting(row, row.answer, self.prompts[place])
        return Found(answers, left_out, repeated)

    def _place(self, row: Row) -> int | None:
        of_id = self._by_id.get(row.id, []) if row.id is not None else []
        if row.prompt is None:
            if len(of_id) > 1:
                raise RequestError(f"{row.where}: {len(of_id)} prompts have the id '{row.id}'; give each its own")
            return of_id[0] if of_id else None
        places = self._by_key.get(row.prompt.key, [])
        if len(places) < 2:
            return places[0] if places else None
        if row.id is None:
            raise RequestError(
                f"{row.where}: its prompt occurs {len(places)} times; tell them apart by the same ids in all files"
            )
        return next((place for place in places if place in of_id), None)

    def _is_another(self, row: Row, place: int) -> bool:
        """Whether it is the same text under an id of its own."""
        known = self.prompts[place].id
        return row.id is not None and known is not None and row.id != known and row.id not in self._by_id

    def _add(self, row: Row) -> int:
        if row.prompt is None:
            raise RequestError(f"{row.where} has an id and no prompt; give the prompts with --prompts FILE")
        place = len(self.prompts)
        self.prompts.append(row.prompt)
        self._by_key.setdefault(row.prompt.key, []).append(place)
        if row.prompt.id is not None:
            self._by_id.setdefault(row.prompt.id, []).append(place)
        return place

    def _learn(self, place: int, said: Prompt | None) -> None:
        """Takes over what a row says of its prompt and no row before it said."""
        if said is None or said is self.prompts[place]:
            return
        known = self.prompts[place]
        new = {one.name: getattr(said, one.name) for one in fields(Prompt) if getattr(known, one.name) is None}
        # An id of this file may be that of another prompt in the file that named them first.
        self.prompts[place] = replace(known, **new | {"id": known.id})


def compare(
    prompts: Sequence[Prompt],
    answers_a: Mapping[int, Answer],
    answers_b: Mapping[int, Answer],
    names: tuple[str, str],
) -> list[Comparison]:
    """The comparisons of the prompts that both sides answered, in their order."""
    ids = [prompt.id for prompt in prompts]
    # The same text under two ids is one prompt asked twice: only its text says that the two depend on each other.
    named = None not in ids and len(set(ids)) == len({prompt.key for prompt in prompts}) == len(ids)
    return [
        Comparison(
            questions=prompt.questions,
            answers_a=answers_a[place].texts,
            answers_b=answers_b[place].texts,
            cut_a=answers_a[place].cut,
            cut_b=answers_b[place].cut,
            history=prompt.history,
            reference=prompt.reference,
            rubric=prompt.rubric,
            category=prompt.category,
            generator_a=names[0],
            generator_b=names[1],
            human=prompt.human,
            prompt_id=(prompt.id or "") if named else "",
        )
        for place, prompt in enumerate(prompts)
        if place in answers_a and place in answers_b
    ]


def _check_same(row: Row, before: Row) -> None:
    if row.answer != before.answer:
        raise RequestError(
            f"{row.where} has another answer to the prompt of {before.where}; keep one, or tell them apart by ids"
        )


def _fitting(row: Row, answer: Answer, prompt: Prompt) -> Answer:
    if len(answer.texts) != len(prompt.questions):
        raise RequestError(
            f"{row.where}: {len(answer.texts)} answers do not belong to {len(prompt.questions)} questions"
        )
    return answer
