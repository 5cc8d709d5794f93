"""Which rows of a source are taken, and in which order: streams, shards, conditions, and what is held in memory."""

import json
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.core.config import validate
from posttrain.core.errors import RequestError
from posttrain.data.selection import shard, shuffled, shuffled_stream
from posttrain.data.sources import Source, describe_source, load_conversations, load_pairs, load_prompts
from posttrain.data.text_rows import JsonLines, TextRows

COUNTS = st.integers(0, 200)
SEEDS = st.integers(0, 2**31)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def twenty(tmp_path):
    rows = [{"prompt": f"q{n}", "lang": "en" if n % 2 else "de", "meta": {"level": n % 4}} for n in range(20)]
    return write(tmp_path / "p.jsonl", rows)


def numbers(source, seed=0):
    return [int(row["prompt"][-1]["content"][1:]) for row in load_prompts(source, seed)]


# Streams


@given(COUNTS, st.integers(1, 50), SEEDS)
def test_a_stream_gives_every_item_once_in_the_same_order_for_a_seed(count, buffer, seed):
    drawn = list(shuffled_stream(range(count), seed, "train", buffer))
    assert sorted(drawn) == list(range(count))
    assert drawn == list(shuffled_stream(iter(range(count)), seed, "train", buffer))


@given(COUNTS, st.integers(1, 50), SEEDS)
def test_a_stream_reads_no_further_ahead_than_its_buffer(count, buffer, seed):
    for place, item in enumerate(shuffled_stream(range(count), seed, "train", buffer)):
        assert item <= place + buffer


def test_a_buffer_of_all_items_shuffles_as_evenly_as_a_permutation():
    # Each of 4 items stands first in a quarter of 4,000 draws: the chance of a count beyond 5 deviations (137) is 1e-6.
    first = Counter(next(shuffled_stream(range(4), seed, "train", 10)) for seed in range(4_000))
    assert all(abs(first[item] - 1_000) < 137 for item in range(4))


def test_no_buffer_is_refused():
    with pytest.raises(ValueError, match="a buffer of 0"):
        list(shuffled_stream(range(3), 0, "train", 0))


def test_a_streamed_source_has_the_same_rows_in_another_order(twenty):
    loaded, streamed = numbers(Source(path=twenty)), numbers(Source(path=twenty, stream=True))
    assert sorted(loaded) == sorted(streamed) == list(range(20))
    assert loaded != streamed
    assert streamed == numbers(Source(path=twenty, stream=True))
    assert streamed != numbers(Source(path=twenty, stream=True), seed=1)
    assert numbers(Source(path=twenty, stream=True, skip=4, rows=6)) == streamed[4:10]


def test_a_file_that_is_no_parquet_is_refused_in_a_stream_too(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(RequestError, match="bad.parquet could not be read"):
        numbers(Source(path=str(tmp_path / "bad.parquet"), stream=True))


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv", "rows.json"])
def test_a_stream_has_one_order_whatever_the_file(tmp_path, name):
    import datasets

    rows = [{"prompt": f"q{n}"} for n in range(12)]
    expected = numbers(Source(path=write(tmp_path / "rows.jsonl", rows), stream=True))
    path = tmp_path / name
    if name.endswith("json"):
        path.write_text(json.dumps(rows))
    else:
        table = datasets.Dataset.from_list(rows)
        table.to_csv(path) if name.endswith("csv") else table.to_parquet(path)
    assert numbers(Source(path=str(path), stream=True)) == expected


def test_a_stream_of_nothing_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(RequestError, match="empty.jsonl has no row of split 'train'$"):
        numbers(Source(path=str(tmp_path / "empty.jsonl"), stream=True))


def test_the_hub_is_streamed_when_the_source_is(monkeypatch):
    import datasets

    asked = {}

    def load_dataset(path, **options):
        asked.update(options)
        return ({"prompt": f"q{n}"} for n in range(10**9))

    monkeypatch.delenv("POSTTRAIN_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = Source(path="somebody/endless", revision="c" * 40, stream=True, rows=5)
    assert len(numbers(source)) == 5
    assert asked["streaming"] is True


# Shards


@given(COUNTS, st.integers(1, 9), SEEDS)
def test_shards_are_all_rows_each_once(count, parts, seed):
    order = shuffled(count, seed, "train")
    together = [list(shard(order, (index, parts))) for index in range(parts)]
    assert Counter(item for part in together for item in part) == Counter(order)
    assert max(map(len, together)) - min(map(len, together)) <= 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_shards_of_a_source_divide_it(twenty, stream):
    parts = [numbers(Source(path=twenty, shard=f"{index}/3", stream=stream), seed=5) for index in range(3)]
    whole = numbers(Source(path=twenty, stream=stream), seed=5)
    assert [part[0] for part in parts] == whole[:3]
    assert sorted(row for part in parts for row in part) == list(range(20))


def test_nano_has_shards_too():
    whole = load_conversations(Source(path="nano"), 0)
    assert load_conversations(Source(path="nano", shard="1/100"), 0) == whole[1::100]


@pytest.mark.parametrize("said", ["3/3", "1", "-1/2", "0/0", "a/b"])
def test_a_shard_that_is_none_is_refused(said):
    with pytest.raises(RequestError, match=r"shard"):
        validate(Source, {"path": "x.jsonl", "shard": said}, "data.sft")


# Conditions


def test_rows_are_taken_by_a_columns_value(twenty):
    assert sorted(numbers(Source(path=twenty, where={"lang": "en"}))) == list(range(1, 20, 2))
    assert sorted(numbers(Source(path=twenty, where={"meta.level": 3, "lang": "en"}))) == [3, 7, 11, 15, 19]
    assert sorted(numbers(Source(path=twenty, where={"meta.level": (0, 3)}))) == [
        n for n in range(20) if n % 4 in (0, 3)
    ]


def test_rows_that_are_taken_by_value_count_for_rows_and_skip(twenty):
    english = numbers(Source(path=twenty, where={"lang": "en"}))
    assert numbers(Source(path=twenty, where={"lang": "en"}, skip=2, rows=3)) == english[2:5]


def test_a_condition_that_no_row_meets_is_refused(twenty):
    with pytest.raises(RequestError, match="has no row of split 'train' with lang = 'fr'$"):
        numbers(Source(path=twenty, where={"lang": "fr"}))
    with pytest.raises(RequestError, match="has no row of split 'train' with a place in shard 20/21$"):
        numbers(Source(path=twenty, shard="20/21"))
    with pytest.raises(RequestError, match="has no column 'language' \\(it has prompt, lang, meta\\); mend where"):
        numbers(Source(path=twenty, where={"language": "en"}))


def test_true_is_not_one(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"prompt": "q0", "ok": 1}, {"prompt": "q1", "ok": True}])
    assert numbers(Source(path=path, where={"ok": True})) == [1]


# Columns and system messages


def test_columns_can_be_nested_and_put_together(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"q": {"title": "Add", "body": "1 and 2", "hint": None}, "gold": [{"v": "3"}]}])
    source = Source(path=path, columns={"prompt": "{q.title}: {q.body}\n{q.hint}", "reference": "gold.0.v"})
    (row,) = load_prompts(source, 0)
    assert (row["prompt"], row["reference"]) == ([{"role": "user", "content": "Add: 1 and 2"}], "3")


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("q.titel", "has no column 'q.titel' \\(it has q, gold\\); set columns.prompt"),
        ("gold.1", "has no column 'gold.1'"),
        ("{q.titel}", "has no column 'q.titel'"),
        ("{gold", "is no text with columns in braces"),
        ("{}", "must name a column in each pair of braces"),
        ("{gold!r}", "must name a column in each pair of braces"),
    ],
)
def test_a_place_that_is_none_is_refused(tmp_path, place, problem):
    path = write(tmp_path / "p.jsonl", [{"q": {"title": "Add"}, "gold": ["3"]}])
    with pytest.raises(RequestError, match=problem):
        load_prompts(Source(path=path, columns={"prompt": place}), 0)


def test_a_column_whose_name_holds_dots_goes_before_a_path(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"a.b": "flat", "a": {"b": "nested"}}])
    assert load_prompts(Source(path=path, columns={"prompt": "a.b"}), 0)[0]["prompt"][0]["content"] == "flat"


def test_prompt_and_completion_are_a_demonstration(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"prompt": "a", "completion": "b"}])
    (row,) = load_conversations(Source(path=path), 0)
    assert row["messages"] == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def test_a_system_message_goes_before_those_without_one(tmp_path):
    said = {"role": "system", "content": "Be brief."}
    own = [{"role": "system", "content": "mine"}, {"role": "user", "content": "a"}]
    path = write(tmp_path / "p.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    (pair,) = load_pairs(Source(path=path, system="Be brief."), 0)
    assert pair["prompt"] == [said, {"role": "user", "content": "a"}]
    kept = load_prompts(Source(path=write(tmp_path / "s.jsonl", [{"prompt": own}]), system="Be brief."), 0)
    assert kept[0]["prompt"] == own


# What defines a source


@pytest.mark.parametrize("change", [{"where": {"lang": "en"}}, {"shard": "0/2"}, {"stream": True}, {"system": "x"}])
def test_every_choice_of_rows_changes_the_description(twenty, change):
    plain, changed = describe_source(Source(path=twenty)), describe_source(Source(path=twenty, **change))
    assert changed != plain
    assert {key: changed[key] for key in plain} == plain
    json.dumps(changed)


def test_a_description_says_nothing_of_what_is_not_set(twenty):
    described = describe_source(Source(path=twenty))
    assert set(described) == {"path", "config", "split", "digest", "rows", "skip", "format", "columns"}
    assert set(described["columns"]) == {"messages", "prompt", "chosen", "rejected", "completions", "reference"}


# Memory


def test_only_the_rows_that_are_taken_are_read(tmp_path):
    path = tmp_path / "big.jsonl"
    with open(path, "w") as file:
        for number in range(4_000):
            file.write(json.dumps({"prompt": f"q{number}", "filler": "x" * 5_000}) + "\n")
    tracemalloc.start()
    rows = load_prompts(Source(path=str(path), rows=5), 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rows) == 5
    assert peak < path.stat().st_size / 10


def test_a_row_is_read_by_its_number(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_bytes(b'{"n": 0}\n\n  \n{"n": 1}')
    second.write_bytes(b'\n{"n": 2}\r\n{"n": 3}\n')
    rows = TextRows([first, second], JsonLines)
    assert [row["n"] for row in rows] == [0, 1, 2, 3]
    assert (rows[-1], rows[1:3]) == ({"n": 3}, [{"n": 1}, {"n": 2}])
    with pytest.raises(IndexError):
        rows[4]
