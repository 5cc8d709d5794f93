"""Claims about the results store: last line of a key wins, retractions, crashes and many writers."""

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from posttrain.core.errors import RequestError
from posttrain.core.results import append_result, find_result, read_results, retract_result


def row(**changes):
    key = {"fingerprint": "f", "task": "t", "version": 1.0, "few_shot": 0, "limit": None, "backend": "hf"}
    return key | {"value": 0.5} | changes


def test_later_line_of_the_same_key_replaces_the_earlier_one(tmp_path):
    store = tmp_path / "metrics.jsonl"
    append_result(store, row(value=0.1))
    append_result(store, row(value=0.2))
    assert [r["value"] for r in read_results(store)] == [0.2]
    assert len(store.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "change", [{"fingerprint": "g"}, {"task": "u"}, {"version": 2}, {"few_shot": 5}, {"limit": 10}, {"backend": "vllm"}]
)
def test_each_part_of_the_key_makes_another_result(tmp_path, change):
    store = tmp_path / "metrics.jsonl"
    append_result(store, row())
    append_result(store, row(**change))
    assert len(read_results(store)) == 2


def test_retraction_removes_and_a_later_result_counts_again(tmp_path):
    store = tmp_path / "metrics.jsonl"
    append_result(store, row())
    retract_result(store, row(), "wrong tokenizer")
    assert read_results(store) == []
    append_result(store, row(value=0.9))
    assert [r["value"] for r in read_results(store)] == [0.9]


def test_find_takes_the_whole_key(tmp_path):
    store = tmp_path / "metrics.jsonl"
    append_result(store, row())
    key = {k: v for k, v in row().items() if k != "value"}
    found = find_result(store, **key)
    assert found
    assert found["value"] == 0.5
    assert find_result(store, **(key | {"limit": 3})) is None
    with pytest.raises(ValueError, match="backend"):
        find_result(store, **{k: v for k, v in key.items() if k != "backend"})


def test_row_without_its_key_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(ValueError, match="fingerprint"):
        append_result(tmp_path / "metrics.jsonl", {"task": "t"})
    assert list(tmp_path.iterdir()) == []


def test_a_last_row_without_its_newline_counts_and_stays(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_result(path, row(task="a"))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert [result["task"] for result in read_results(path)] == ["a"]
    append_result(path, row(task="b"))
    assert [result["task"] for result in read_results(path)] == ["a", "b"]


def test_half_a_line_from_a_crash_is_passed_over_and_cut_off(tmp_path):
    store = tmp_path / "metrics.jsonl"
    append_result(store, row())
    with open(store, "a") as file:
        file.write('{"fingerprint": "half')
    assert len(read_results(store)) == 1
    append_result(store, row(task="u"))
    assert [json.loads(line)["task"] for line in store.read_text().splitlines()] == ["t", "u"]


def test_malformed_line_is_named_by_number(tmp_path):
    store = tmp_path / "metrics.jsonl"
    append_result(store, row())
    with open(store, "a") as file:
        file.write("[1, 2]\n")
    with pytest.raises(RequestError, match=r"metrics.jsonl:2 "):
        read_results(store)


def _append_many(path: str, writer: int) -> None:
    for number in range(25):
        append_result(Path(path), row(task=f"{writer}-{number}", text="x" * 20_000))


def test_concurrent_appends_never_mix_their_lines(tmp_path):
    store = tmp_path / "metrics.jsonl"
    with ProcessPoolExecutor(3) as pool:
        list(pool.map(_append_many, [str(store)] * 3, range(3)))
    assert {r["task"] for r in read_results(store)} == {f"{w}-{n}" for w in range(3) for n in range(25)}
