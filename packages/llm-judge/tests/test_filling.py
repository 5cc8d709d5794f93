"""Missing answers of a request: asked of policies, and of nobody any more once one cannot be kept."""

import asyncio
from types import SimpleNamespace

import pytest

from posttrain.core.errors import WorkError
from posttrain.llm_judge.serving.contest import Contest
from posttrain.llm_judge.serving.filling import fill
from posttrain.llm_judge.serving.requests import ComparisonItem, FromPolicy, Generated


class SlowPolicies:
    """Answers the first comparison at once, and every other one a little later."""

    def __init__(self) -> None:
        self.answered = 0

    async def answer(self, name: str, item: ComparisonItem) -> Generated:
        await asyncio.sleep(0.0 if item.instruction == "0?" else 0.2)
        self.answered += 1
        return Generated(texts=["said"])


class FullDisk:
    def get(self, index: int, side: int) -> None:
        return None

    def put(self, index: int, side: int, generated: Generated) -> None:
        raise WorkError("no space left")


def test_nothing_is_generated_any_more_after_an_answer_that_cannot_be_kept():
    asked = [ComparisonItem(instruction=f"{n}?", output_1="a", output_2=FromPolicy(policy="p")) for n in range(9)]
    policies = SlowPolicies()

    async def go() -> None:
        wanted = SimpleNamespace(request=SimpleNamespace(comparisons=asked))
        with pytest.raises(WorkError, match="no space left"):
            await fill(Contest(wanted, SimpleNamespace(), kept=FullDisk()), policies)
        await asyncio.sleep(0.4)

    asyncio.run(go())
    assert policies.answered == 1
