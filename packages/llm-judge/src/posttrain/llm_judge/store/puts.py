"""Judgements with their games into the tables of the store."""

import sqlite3
from collections.abc import Mapping, Sequence

from posttrain.core.hashing import canonical_json
from posttrain.llm_judge.comparisons import Game
from posttrain.llm_judge.judgements import Judgement
from posttrain.llm_judge.store.rows import ids, insert, rows_in
from posttrain.llm_judge.store.texts import comparison_ids

COLUMNS = (
    *("key", "judge", "comparison", "shown", "replicate", "label", "value", "raw"),
    *("prompt_tokens", "completion_tokens", "cost", "seconds", "created"),
)


def put_all(connection: sqlite3.Connection, puts: Sequence[Sequence[tuple[Judgement, Game]]]) -> list[int]:
    """Keeps the judgements of all `puts`, and says how many of each were new. Where a key was there already, or comes
    twice, the first stays. Their claims end."""
    keys = [bytes.fromhex(judgement.key) for put in puts for judgement, _ in put]
    there = {key for (key,) in rows_in(connection, "SELECT key FROM judgements WHERE key", keys)}
    new: dict[bytes, tuple[Judgement, Game]] = {}
    counts, of_each = [], iter(keys)
    for put in puts:
        before = len(new)
        for annotation in put:
            if (key := next(of_each)) not in there:
                new.setdefault(key, annotation)
        counts.append(len(new) - before)
    _insert(connection, new)
    # The rows that are deleted are none to read; reading them runs the statement.
    list(rows_in(connection, "DELETE FROM claims WHERE key", keys))
    return counts


def _insert(connection: sqlite3.Connection, new: Mapping[bytes, tuple[Judgement, Game]]) -> None:
    # A run's judgements share one identity.
    written = {id(judgement.judge): canonical_json(dict(judgement.judge)) for judgement, _ in new.values()}
    judges = ids(connection, "judges", ("identity",), {identity: (identity,) for identity in written.values()})
    comparisons = comparison_ids(connection, [game for _, game in new.values()])
    rows = []
    for (key, (judgement, game)), comparison in zip(new.items(), comparisons, strict=True):
        decision = judgement.decision
        rows.append(
            (
                key,
                judges[written[id(judgement.judge)]],
                comparison,
                game.order,
                game.replicate,
                decision.label,
                decision.value,
                # A judge's JSON may end within a pair of surrogates, which is no text. The answer is kept all the same.
                decision.raw.encode("utf-8", "backslashreplace").decode(),
                decision.prompt_tokens,
                decision.completion_tokens,
                decision.cost,
                decision.seconds,
                judgement.created,
            )
        )
    insert(connection, "INSERT INTO judgements", COLUMNS, rows)
