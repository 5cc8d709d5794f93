"""The store gives back what was put, keeps the first answer, and says in one line what is wrong with it."""

import asyncio
import gc
import os
import re
import sqlite3
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from posttrain.core.errors import RequestError, WorkError
from posttrain.llm_judge.comparisons import Comparison, Game
from posttrain.llm_judge.store import JudgeTotals, Store
from posttrain.llm_judge.store import file as store_file
from posttrain.llm_judge.store import rows as store_rows

sys.path.insert(0, str(Path(__file__).parent))
from judged_games import JUDGE, game, judged


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "deep" / "store.db") as opened:
        yield opened


def test_what_was_put_is_found_whole(store):
    one = judged(game(1), 0.75, prompt_tokens=900, completion_tokens=3, cost=0.0125, seconds=1.5, raw="B.\0 Sure: ½")
    unparsed = judged(game(2, order="ba"), None)
    assert store.put(*one)
    assert store.put(*unparsed)
    assert store.get([one[0].key, unparsed[0].key, "00" * 32]) == {
        judgement.key: judgement for judgement, _ in (one, unparsed)
    }


def test_the_first_answer_is_kept_and_the_second_asker_told(store):
    first, second = judged(game(1), 0.25), judged(game(1), 0.75)
    assert store.put(*first)
    assert not store.put(*second)
    assert store.get([first[0].key])[first[0].key] == first[0]
    assert store.put_many([second, judged(game(2)), judged(game(2))]) == 1


def test_what_is_stored_is_there_after_reopening(tmp_path):
    judgement, of = judged(game(1))
    with Store(tmp_path / "store.db") as store:
        store.put(judgement, of)
    with Store(tmp_path / "store.db") as store:
        assert store.get([judgement.key]) == {judgement.key: judgement}


@pytest.mark.parametrize("at_once", [1, 3, 40])
def test_more_than_one_statement_takes_is_kept_and_found_all_the_same(store, monkeypatch, at_once):
    monkeypatch.setattr(store_rows, "VALUES_AT_ONCE", at_once)
    annotations = [judged(game(number)) for number in range(10)]
    assert store.claim([judgement.key for judgement, _ in annotations]) == {one.key for one, _ in annotations}
    store.put_many(annotations)
    for wanted in (annotations[:4], annotations):
        assert store.get([judgement.key for judgement, _ in wanted]) == {one.key: one for one, _ in wanted}


@pytest.mark.parametrize("wanted", [0, 1, 4, 5, 6, 10])
def test_what_is_not_there_is_not_found_however_much_is_wanted(store, wanted):
    """Few rows are looked up, many are read in passing."""
    store.put_many([judged(game(number)) for number in range(10)])
    strange = [judged(game(number))[0].key for number in range(10, 15)]
    ours = [judged(game(number))[0] for number in range(wanted)]
    assert store.get([*strange, *(one.key for one in ours)]) == {one.key: one for one in ours}


@pytest.mark.parametrize("collects", [True, False])
def test_reading_leaves_the_garbage_collector_as_it_was(store, collects):
    store.put_many([judged(game(number)) for number in range(10)])
    before = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        store.get([])
        with pytest.raises(ValueError, match="hexadecimal"):
            store.get(["no key"])
        assert gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()


def test_one_judgement_serves_whoever_asks_with_a_and_b_exchanged(store):
    """P(the second shown is better) = 0.75 is for B in the first game and for A in the second."""
    asked = game(1)
    answers = asked.comparison
    exchanged = Game(
        Comparison(questions=answers.questions, answers_a=answers.answers_b, answers_b=answers.answers_a), "ba"
    )
    judgement, _ = judged(asked, 0.75)
    store.put(judgement, asked)
    found = store.get([judged(exchanged)[0].key])[judgement.key]
    assert found.as_asked(asked).preference == 0.75
    assert found.as_asked(exchanged).preference == 0.25


def test_a_replicate_and_another_judge_are_judgements_of_their_own(store):
    kinds = [judged(game(1)), judged(game(1, replicate=1)), judged(game(1), judge=JUDGE | {"temperature": 1.0})]
    assert store.put_many(kinds) == 3


def test_games_come_back_with_all_that_was_known_of_them(store):
    conversation = Game(
        Comparison(
            history=({"role": "system", "content": "Be short."},),
            questions=("one", "two"),
            answers_a=("a1", "a2"),
            answers_b=("b1", "b2"),
            cut_b=True,
            reference="right",
            rubric="kindness",
            category="writing",
            generator_a="sft",
            generator_b="ppo",
            human=0.5,
            prompt_id="p7",
        ),
        "ba",
        replicate=2,
    )
    store.put(*judged(conversation))
    [(judgement, of)] = store.annotations()
    assert (judgement, of) == judged(conversation)


def test_a_game_of_the_first_turn_is_kept_with_the_turns_that_were_seen(store):
    whole = Comparison(questions=("one", "two"), answers_a=("a1", "a2"), answers_b=("b1", "b2"), cut_a=True)
    judgement, of = judged(Game(whole, "ab", turn=1))
    store.put(judgement, of)
    [(_, found)] = store.annotations()
    assert found.definition() == of.definition()
    assert found.comparison.prompt_id == whole.prompt_id


def test_a_text_that_many_games_show_is_stored_once(store):
    judge_of_both = [judged(game(1), judge=JUDGE | {"model": name}) for name in ("x", "y", "z")]
    store.put_many([*judge_of_both, judged(game(1, order="ba"))])
    with sqlite3.connect(store.path) as connection:
        counts = {
            table: connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
            for table in ("texts", "comparisons", "judgements")
        }
    connection.close()
    assert counts == {"texts": 3, "comparisons": 1, "judgements": 4}


def test_an_answer_that_ends_within_a_character_is_kept(store):
    judgement, of = judged(game(1), raw="A \ud83d")
    assert store.put(judgement, of)
    assert store.get([judgement.key])[judgement.key].decision.raw == r"A \ud83d"


def test_totals_are_by_judge(store):
    """A sum with an unknown cost in it is not known."""
    paid = {"prompt_tokens": 100, "completion_tokens": 2, "cost": 0.5}
    store.put_many([judged(game(1), **paid), judged(game(2), None, **paid)])
    store.put_many([judged(game(number), judge={"model": "m"}, cost=cost) for number, cost in ((1, 0.5), (2, None))])
    assert store.totals() == [JudgeTotals(JUDGE, 2, 1, 200, 4, 1.0), JudgeTotals({"model": "m"}, 2, 0, 0, 0, None)]


def test_many_at_once_are_all_stored(store):
    annotations = [judged(game(number)) for number in range(200)]

    async def put_all():
        return await asyncio.gather(*(store.aput(*one) for one in annotations))

    assert all(asyncio.run(put_all()))
    assert len(store.get([judgement.key for judgement, _ in annotations])) == 200


def test_a_judgement_that_cannot_be_stored_takes_none_of_those_that_came_with_it(store):
    too_many = judged(game(0), prompt_tokens=1 << 80)
    annotations = [judged(game(number)) for number in range(1, 50)]

    async def put_all():
        every = [*annotations[:25], too_many, *annotations[25:]]
        return await asyncio.gather(*(store.aput(*one) for one in every), return_exceptions=True)

    results = asyncio.run(put_all())
    assert results.count(True) == 49
    assert [type(result) for result in results if result is not True] == [OverflowError]


def test_what_one_batch_brings_twice_is_new_once(tmp_path):
    """Also where an earlier batch had it, and where the texts are those of another game."""
    puts = [judged(game(number // 2, order="ab" if number % 4 else "ba")) for number in range(20)]
    with Store(tmp_path / "one.db") as store:
        kept = [store.put(*one) for one in puts]
    with Store(tmp_path / "batch.db") as store:

        async def put_all():
            return await asyncio.gather(*(store.aput(*one) for one in puts))

        assert asyncio.run(put_all()) == kept
        assert asyncio.run(put_all()) == [False] * 20
        assert list(store.annotations()) == sorted(
            {one[0].key: one for one in puts}.values(), key=lambda one: (one[0].created, one[0].key)
        )


@contextmanager
def another_writer(store: Store):
    """Another process's connection in the middle of a transaction; what ends it."""
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield lambda: other.execute("ROLLBACK")
    finally:
        other.close()


def test_a_put_that_has_to_wait_blocks_nobody_else(store):
    async def wait(end):
        putting = [asyncio.create_task(store.aput(*judged(game(number)))) for number in range(3)]
        # Nothing of this would happen if the loop waited too.
        for _ in range(10):
            await asyncio.sleep(0.01)
        assert not any(task.done() for task in putting)
        end()
        return await asyncio.gather(*putting)

    with another_writer(store) as end:
        assert asyncio.run(wait(end)) == [True, True, True]


def test_an_event_loop_that_is_closed_keeps_nobody_else_from_the_answer(store):
    """What it submitted is kept all the same."""
    loop = asyncio.new_event_loop()
    with another_writer(store) as end:
        task = loop.create_task(store.aput(*judged(game(1))))
        loop.run_until_complete(asyncio.sleep(0.05))
        task.cancel()
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        loop.close()
        end()
    assert store.put(*judged(game(2)))
    assert len(store.get([judged(game(number))[0].key for number in (1, 2)])) == 2


def test_a_put_whose_waiter_is_cancelled_is_done_all_the_same(tmp_path):
    store, (judgement, of) = Store(tmp_path / "store.db"), judged(game(1))

    async def cancelled(end):
        task = asyncio.create_task(store.aput(judgement, of))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert store.get([judgement.key]) == {}
        end()
        store.close()

    with another_writer(store) as end:
        asyncio.run(cancelled(end))
    with Store(tmp_path / "store.db") as again:
        assert judgement.key in again.get([judgement.key])


def test_many_that_fail_on_the_way_leave_nothing(store):
    with pytest.raises(OverflowError):
        store.put_many([judged(game(1)), judged(game(2), completion_tokens=1 << 80)])
    assert list(store.annotations()) == []


def test_a_store_of_another_version_is_refused(tmp_path):
    path = tmp_path / "store.db"
    Store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(RequestError, match=r"store.db is version 7 of the judge's store, and this release reads"):
        Store(path)


def test_a_file_of_another_kind_is_refused_and_left_as_it_is(tmp_path):
    database, text = tmp_path / "other.db", tmp_path / "answers.jsonl"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE t (a)")
    connection.close()
    text.write_text('{"instruction": "a line long enough to be a page of a database"}\n' * 50)
    before = database.read_bytes(), text.read_bytes()
    with pytest.raises(RequestError, match="other.db is another program's database"):
        Store(database)
    with pytest.raises(RequestError, match="answers.jsonl is not a judge's store"):
        Store(text)
    assert (database.read_bytes(), text.read_bytes()) == before


def test_a_place_where_nothing_can_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match="cannot write .*store.db: "):
        Store(tmp_path / "file" / "store.db")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(WorkError, match="cannot write .*store.db: "):
        Store(tmp_path / "store.db")


def test_a_full_disk_is_one_line_and_what_was_stored_stays(tmp_path, monkeypatch):
    first = judged(game(1))
    with Store(tmp_path / "store.db") as store:
        store.put(*first)
    connect = sqlite3.connect

    def on_a_small_disk(*arguments, **options):
        connection = connect(*arguments, **options)
        connection.execute("PRAGMA max_page_count = 30")
        return connection

    monkeypatch.setattr(store_file.sqlite3, "connect", on_a_small_disk)
    with Store(tmp_path / "store.db") as store:
        with pytest.raises(WorkError, match=r"no space left to write .*store.db; free some"):
            store.put(*judged(game(2), raw="x" * 1_000_000))
        assert store.put(*judged(game(3)))
        assert len(list(store.annotations())) == 2


def test_another_process_that_writes_for_long_is_waited_for_and_then_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(store_file, "PATIENCE", 0.2)
    with Store(tmp_path / "store.db") as store:
        with another_writer(store):
            with pytest.raises(WorkError, match=re.escape(f"another process has been writing {store.path}")):
                store.put(*judged(game(1)))
            with pytest.raises(WorkError, match=re.escape(f"another process has been writing {store.path}")):
                asyncio.run(store.aput(*judged(game(1))))
        assert store.put(*judged(game(1)))


def test_puts_that_wait_together_for_another_process_do_not_wait_one_after_the_other(store, monkeypatch):
    monkeypatch.setattr(store_file, "PATIENCE", 0.3)

    async def put_all(opened):
        return await asyncio.gather(*(opened.aput(*judged(game(n))) for n in range(12)), return_exceptions=True)

    with Store(store.path) as impatient, another_writer(store):
        started = time.monotonic()
        results = asyncio.run(put_all(impatient))
        # Once for the first put, which is alone, and once for the others.
        assert time.monotonic() - started < 2
    assert [type(result) for result in results] == [WorkError] * 12


def test_a_closed_store_takes_nothing(tmp_path):
    store = Store(tmp_path / "store.db")
    store.close()
    store.close()
    with pytest.raises(ValueError, match="closed"):
        store.put(*judged(game(1)))


def test_equal_answers_are_one_game_in_both_orders(store):
    """The same text as A's and as B's: one question to the judge, and together its two orders are a tie."""
    same = Comparison(questions=("q",), answers_a=("x",), answers_b=("x",))
    judgement, of = judged(Game(same, "ab"), 0.9)
    store.put(judgement, of)
    found = store.get([judged(Game(same, "ba"))[0].key])[judgement.key]
    both = [found._replace(order=order).preference for order in ("ab", "ba")]
    assert sum(both) / 2 == pytest.approx(0.5)
