"""Plays the matches of a comparison that are not judged yet: every row's answers against the SFT policy's of its seed.

What a judge said is kept in runs/judge/store.db the moment it is said and asked once, so that a match that was cut off
goes on where it was. A finished match has a record for each judge in runs/judge and, beside the row's evaluation, which
records these are and, written last, its preferences by item.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import count, groupby
from pathlib import Path
from statistics import mean

from posttrain.core.clients import RewardClient
from posttrain.core.errors import RequestError, WorkError
from posttrain.core.files import atomic_write_json, write_jsonl
from posttrain.eval_harness.asked import Asked, asked
from posttrain.lab.collect import Entry
from posttrain.lab.judge_matches import answers_of, gold_of, judged_items, records_file, scale_of
from posttrain.lab.pipeline import run_services
from posttrain.lab.plan import REFERENCE, Plan, Row
from posttrain.lab.schedule import clock
from posttrain.lab.status_line import StatusLine
from posttrain.llm_judge.comparisons import Comparison
from posttrain.llm_judge.judges.reward import RewardJudge
from posttrain.llm_judge.matches import Match, pairs_of, play
from posttrain.llm_judge.records import Side, record_of, write_record
from posttrain.llm_judge.running.limits import Limits, LimitSettings
from posttrain.llm_judge.store import Store

FOLDER = "judge"
"""Below the runs folder: the store and the records, where `posttrain judge` has them."""
CONCURRENCY = 128
"""Games at once: of two answers each, they fill a request to the reward service."""

Preferences = Mapping[str, float]
"""By item P(the row's answer is better)."""


@dataclass(frozen=True)
class RowMatch:
    """One row's answers of one seed, to be judged."""

    row: Row
    plan: Plan
    items: Path
    """Where its preferences will lie."""

    @property
    def name(self) -> str:
        """What people and records call it."""
        return f"{self.row.name}, seed {self.plan.seed}"

    @property
    def sides(self) -> tuple[Side, Side]:
        """The SFT policy, and the row."""
        reference = self.plan.reference
        sft = Side(f"{reference.name}, seed {self.plan.seed}", "checkpoint", str(reference.checkpoint))
        return sft, Side(self.name, "checkpoint", str(self.row.checkpoint))

    @property
    def judged(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.items.exists()


def row_matches(entries: Iterable[Entry]) -> list[RowMatch]:
    """The matches of all rows and seeds that have answers; those of the SFT policy are no match."""
    runs = [run for entry in entries for run in entry.runs]
    return [RowMatch(row, plan, items) for row, plan in runs if (items := judged_items(row, plan))]


def judge_rows(entries: Iterable[Entry], root: Path) -> None:
    """Has all matches judged that are not, seed after seed, for each has a reward model of its own. `root` is the runs
    folder.

    WorkError where a judge cannot be had or has no answer to some of the games; what was judged is kept.
    """
    left = [match for match in row_matches(entries) if not match.judged]
    if not left:
        return
    line, started, numbers = StatusLine(), time.monotonic(), count(1)
    recipe = left[0].plan.recipe
    assert recipe.judge is not None, "a recipe without it has no matches"
    items = asked(recipe.judge.task, recipe.evaluation.include_path)

    def tell(match: RowMatch, preferences: Mapping[str, Preferences]) -> None:
        rates = ", ".join(f"{judge} {mean(of_items.values()):.3f}" for judge, of_items in preferences.items())
        line.say(f"[{next(numbers)}/{len(left)}] {match.name}, win rate over {REFERENCE}: {rates}")

    with Store(root / FOLDER / "store.db") as store:
        for _, same_seed in groupby(sorted(left, key=_seed), key=_seed):
            matches = list(same_seed)
            plan = matches[0].plan
            with run_services(plan, root / recipe.name / "logs" / f"{os.getpid()}-judge") as services:
                client = services.reward(plan.reward_model)
                asyncio.run(_judge_seed(matches, items, client, store, root / FOLDER, tell))
    line.say(f"{len(left)} matches in {clock(time.monotonic() - started)}")


async def _judge_seed(
    matches: Sequence[RowMatch],
    items: Mapping[str, Asked],
    client: RewardClient,
    store: Store,
    records: Path,
    tell: Callable[[RowMatch, Mapping[str, Preferences]], None],
) -> None:
    """All of them are of one seed; `tell` is told of each when it is finished."""
    recipe = matches[0].plan.recipe
    assert recipe.judge is not None, "a recipe without it has no matches"
    gold = gold_of(recipe)
    limits = Limits(LimitSettings(concurrency=CONCURRENCY))
    async with AsyncExitStack() as stack:
        judges = {
            # Gold first: what it says is what the others are held against.
            name: await stack.enter_async_context(RewardJudge(client, name, scale_of(recipe, name)))
            for name in sorted(recipe.judge.judges, key=lambda name: name != gold)
        }
        for match in matches:
            found: dict[str, Preferences] = {}
            recorded: dict[str, str] = {}
            for name, judge in judges.items():
                asked_of_it = comparisons(match, items, found.get(gold or "", {}))
                played = await play(Match(asked_of_it), judge, store, limits)
                if failed := played.report.failure_line():
                    raise WorkError(f"{match.name}, judged by {name}: {failed}")
                recorded[name] = write_record(records, played, record_of(played, judge, match.sides)).stem
                pairs = pairs_of(played.judged)
                found[name] = dict(zip(pairs.prompts, pairs.preference.tolist(), strict=True))
            scores = [
                {"id": item, "scores": {name: found[name][item] for name in recipe.judge.judges}}
                for item in next(iter(found.values()))
            ]
            with match.row.run.lock(wait=True):
                atomic_write_json(records_file(match.items), recorded)
                write_jsonl(match.items, scores)
            tell(match, found)


def comparisons(match: RowMatch, items: Mapping[str, Asked], gold: Preferences) -> list[Comparison]:
    """The SFT policy's answers as A and the row's as B, in the order of its items, with what `gold` prefers where that
    is known. RequestError where answers are to items that the task does not have."""
    theirs, own = answers_of(match.plan.reference, match.plan), answers_of(match.row, match.plan)
    both = [item for item in theirs if item in own]
    if unknown := [item for item in both if item not in items]:
        raise RequestError(
            f"{match.row.run.eval}: item '{unknown[0]}' is none that its task has now; evaluate the row again"
        )
    side_a, side_b = match.sides
    return [
        Comparison(
            questions=(items[item].prompt,),
            answers_a=(theirs[item].text,),
            answers_b=(own[item].text,),
            cut_a=theirs[item].cut,
            cut_b=own[item].cut,
            reference=None if items[item].reference is None else json.dumps(items[item].reference),
            generator_a=side_a.name,
            generator_b=side_b.name,
            human=gold.get(item),
            prompt_id=item,
        )
        for item in both
    ]


def _seed(match: RowMatch) -> int:
    return match.plan.seed
