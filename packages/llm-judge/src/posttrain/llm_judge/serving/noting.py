"""A store that notes what passes for one match: how far it is can be told while it is played, and what was paid now."""

from collections.abc import Collection, Iterable

from posttrain.llm_judge.comparisons import Game
from posttrain.llm_judge.judgements import Judgement
from posttrain.llm_judge.running.asking import JudgementStore
from posttrain.llm_judge.running.progress import Estimate, Tally
from posttrain.llm_judge.serving.telemetry import telemetry


class NotingStore:
    """`found` has every judgement of the match that there is so far, by key; `asked` the keys that were asked now.
    What arrives is counted as `judge`'s at once: a run may take hours."""

    def __init__(self, store: JudgementStore, judge: str) -> None:
        self._store, self._judge = store, judge
        self.found: dict[str, Judgement] = {}
        self.asked: set[str] = set()

    def get(self, keys: Iterable[str]) -> dict[str, Judgement]:
        found = self._store.get(keys)
        self.found |= found
        return found

    async def aput(self, judgement: Judgement, game: Game) -> bool:
        new = await self._store.aput(judgement, game)
        telemetry().answered(self._judge, judgement.decision)
        if new:  # else another's answer came first, and will be got
            self.found[judgement.key] = judgement
            self.asked.add(judgement.key)
        return new

    async def aclaim(self, keys: Collection[str]) -> set[str]:
        return await self._store.aclaim(keys)

    async def arelease(self, keys: Collection[str]) -> None:
        await self._store.arelease(keys)


class Watching:
    """Keeps what a run says of itself."""

    def __init__(self) -> None:
        self.tally = Tally()

    def planned(self, estimate: Estimate) -> None:
        pass

    def progressed(self, tally: Tally) -> None:
        self.tally = tally
