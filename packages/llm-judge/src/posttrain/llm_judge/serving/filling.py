"""The comparisons of a request with all their answers: those that it brings, and those that policies are asked for."""

import asyncio
import random
from collections.abc import Coroutine, Sequence
from typing import Any

from posttrain.core.errors import PosttrainError
from posttrain.llm_judge.comparisons import Comparison
from posttrain.llm_judge.serving.contest import Contest
from posttrain.llm_judge.serving.policies import Policies
from posttrain.llm_judge.serving.requests import ComparisonItem, FromPolicy


async def fill(contest: Contest, policies: Policies) -> list[Comparison]:
    """The comparisons that have both answers, in the order in which they are to be judged; what is missing is told in
    the contest. Once that is interrupted, nothing more is generated."""
    items: list[ComparisonItem] = contest.wanted.request.comparisons
    await _until_interrupted(
        contest,
        [
            _generate(contest, policies, index, side, policy)
            for index, item in enumerate(items)
            for side, policy in _to_ask(item).items()
        ],
    )
    # Of thousands it takes tenths of a second.
    return await asyncio.to_thread(_whole, contest, items)


def _whole(contest: Contest, items: Sequence[ComparisonItem]) -> list[Comparison]:
    names = contest.wanted.sides[0].name, contest.wanted.sides[1].name
    comparisons, places = [], []
    for index, item in enumerate(items):
        generated = contest.generated_for(index)
        if generated.keys() == _to_ask(item).keys():
            comparisons.append(item.comparison(names, generated))
            places.append(index)
        else:
            contest.missing.setdefault(index, "an answer was not generated in time")
    order = list(range(len(comparisons)))
    if contest.drawn_by is not None:
        random.Random(contest.drawn_by).shuffle(order)
    contest.places = [places[number] for number in order]
    return [comparisons[number] for number in order]


def _to_ask(item: ComparisonItem) -> dict[int, str]:
    """The policies to ask, by side."""
    outputs = {1: item.output_1, 2: item.output_2}
    return {side: output.policy for side, output in outputs.items() if isinstance(output, FromPolicy)}


async def _generate(contest: Contest, policies: Policies, index: int, side: int, policy: str) -> None:
    generated = await asyncio.to_thread(contest.kept.get, index, side) if contest.kept else None
    if generated is None:
        try:
            generated = await policies.answer(policy, contest.wanted.request.comparisons[index])
        except PosttrainError as error:
            contest.missing[index] = str(error)
            return
        if contest.kept:
            await asyncio.to_thread(contest.kept.put, index, side, generated)
    contest.generated[index, side] = generated


async def _all_or_none(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """All of it, none of which goes on after the first failure."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _until_interrupted(contest: Contest, work: Sequence[Coroutine[Any, Any, None]]) -> None:
    if not work:
        return
    everything = asyncio.create_task(_all_or_none(work))
    interruption: asyncio.Future[Any] = asyncio.create_task(contest.interrupted.wait())
    try:
        await asyncio.wait({everything, interruption}, return_when=asyncio.FIRST_COMPLETED)
        if everything.done():
            everything.result()
    finally:
        for task in (everything, interruption):
            task.cancel()
        await asyncio.gather(everything, interruption, return_exceptions=True)
