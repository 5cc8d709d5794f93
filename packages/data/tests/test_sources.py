"""Loading rows: where they are found, in which order, and what is said when something is wrong."""

import json
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain.core.config import validate
from posttrain.core.errors import RequestError
from posttrain.data import nano
from posttrain.data.sources import (
    Source,
    describe_source,
    load_conversations,
    load_pairs,
    load_prompts,
    load_rankings,
)

PROMPTS = [{"prompt": f"question {n}", "reference": {"answer": str(n)}} for n in range(20)]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# Where rows are found


def test_a_hub_id_is_read_from_the_mirror_first(mirror):
    rows = load_prompts(Source(path="openai/gsm8k"), seed=0)
    assert {row["reference"]["gsm8k"] for row in rows} == {"36", "1,875", "9"}


def test_a_folder_in_the_hubs_layout_is_read_like_the_hub(mirror):
    as_folder = Source(path=str(mirror / "openai" / "gsm8k"), format="gsm8k", config="main")
    assert [r["prompt"] for r in load_prompts(as_folder, 3)] == [
        r["prompt"] for r in load_prompts(Source(path="openai/gsm8k"), 3)
    ]


def test_the_only_configuration_of_a_folder_need_not_be_named(mirror):
    assert len(load_prompts(Source(path=str(mirror / "openai" / "gsm8k"), format="gsm8k"), 0)) == 3


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet"])
def test_a_file_of_any_form_gives_the_same_rows(tmp_path, name):
    import datasets

    path = tmp_path / name
    rows = [{"prompt": f"frage {n} ü", "reference": f"{n}a"} for n in range(5)]
    if name.endswith("jsonl"):
        write(path, rows)
    elif name.endswith("json"):
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        table = datasets.Dataset.from_list(rows)
        table.to_csv(path) if name.endswith("csv") else table.to_parquet(path)
    loaded = load_prompts(Source(path=str(path)), 0)
    assert sorted((r["prompt"][0]["content"], r["reference"]) for r in loaded) == [
        (f"frage {n} ü", f"{n}a") for n in range(5)
    ]


def test_the_hub_is_asked_for_the_resolved_commit_and_the_folder_of_the_dataset(monkeypatch):
    import datasets
    import huggingface_hub

    asked = {}

    class Api:
        def dataset_info(self, path, revision, timeout):
            return type("Info", (), {"sha": "c" * 40})()

    def load_dataset(path, **options):
        asked.update(options, path=path)
        return [{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}]

    monkeypatch.delenv("POSTTRAIN_DATA", raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = Source(path="Anthropic/hh-rlhf", config="helpful-base", split="test", revision="main")
    assert len(load_pairs(source, 0)) == 1
    assert asked == {"path": "Anthropic/hh-rlhf", "split": "test", "revision": "c" * 40, "data_dir": "helpful-base"}
    assert describe_source(source)["revision"] == "c" * 40


def test_a_full_commit_needs_no_network_to_be_described():
    source = Source(path="somebody/something", revision="0123456789" * 4)
    assert describe_source(source)["revision"] == "0123456789" * 4


# Order and selection


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 20))
def test_a_smaller_selection_is_the_beginning_of_a_larger_one(tmp_path, seed, first, second):
    path = write(tmp_path / "p.jsonl", PROMPTS)
    few, many = sorted((first, second))
    chosen = load_prompts(Source(path=path, rows=many), seed)
    assert load_prompts(Source(path=path, rows=few), seed) == chosen[:few]
    assert len(chosen) == many


def test_the_seed_decides_the_order_and_no_row_is_lost(tmp_path):
    source = Source(path=write(tmp_path / "p.jsonl", PROMPTS))
    zero, one = load_prompts(source, 0), load_prompts(source, 1)
    assert zero != one
    assert zero == load_prompts(source, 0)
    assert {r["id"] for r in zero} == {r["id"] for r in one} == {f"p.jsonl/train/{n}" for n in range(20)}


@pytest.mark.parametrize("path", ["nano", "p.jsonl"])
def test_what_one_source_takes_another_can_leave(tmp_path, path):
    name = path if path == "nano" else write(tmp_path / path, PROMPTS)
    validation = load_prompts(Source(path=name, rows=5), seed=3)
    training = load_prompts(Source(path=name, skip=5), seed=3)
    everything = load_prompts(Source(path=name), seed=3)
    assert validation + training == everything


def test_unusable_rows_do_not_shift_what_one_takes_and_another_leaves(tmp_path):
    rows = [{"prompt": f"q{i}", "chosen": "a", "rejected": "a" if i % 5 == 0 else "b"} for i in range(100)]
    path = write(tmp_path / "pairs.jsonl", rows)
    held_out = load_pairs(Source(path=path, rows=30), seed=0)
    training = load_pairs(Source(path=path, skip=30), seed=0)
    assert not {row["id"] for row in held_out} & {row["id"] for row in training}
    assert len(held_out) + len(training) == 80


def test_skipping_every_row_is_refused(tmp_path):
    with pytest.raises(RequestError, match="has 20 rows of split 'train'; skip leaves none"):
        load_prompts(Source(path=write(tmp_path / "p.jsonl", PROMPTS), skip=20), seed=0)


def test_an_id_column_names_the_row(tmp_path):
    source = Source(path=write(tmp_path / "p.jsonl", [{"id": "x-7", "prompt": "a", "kind": "riddle"}]))
    (row,) = load_prompts(source, 0)
    assert (row["id"], row["kind"], row["reference"]) == ("x-7", "riddle", None)


def test_asking_for_more_rows_than_there_are_is_said(tmp_path, caplog):
    source = Source(path=write(tmp_path / "p.jsonl", PROMPTS), rows=50)
    with caplog.at_level(logging.WARNING):
        assert len(load_prompts(source, 0)) == 20
    assert "50 rows were asked for, it has 20" in caplog.text


@pytest.mark.parametrize(("rows", "at_most", "there"), [(None, 50, 20), (None, 5, 5), (10, 5, 5), (5, 10, 5)])
def test_whoever_only_looks_takes_the_beginning_without_a_word(rows, at_most, there, tmp_path, caplog):
    path = write(tmp_path / "p.jsonl", PROMPTS)
    with caplog.at_level(logging.WARNING):
        seen = load_prompts(Source(path=path, rows=rows), 0, at_most)
    assert seen == load_prompts(Source(path=path), 0)[:there]
    assert caplog.text == ""


# Columns


def test_columns_by_other_names_are_mapped(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"instruction": "add", "gold": "3"}])
    source = Source(path=path, columns={"prompt": "instruction", "reference": "gold"})
    assert load_prompts(source, 0)[0]["reference"] == "3"


def test_a_missing_column_is_told_with_those_that_are_there(mirror):
    with pytest.raises(RequestError) as error:
        load_prompts(Source(path="openai/gsm8k", format="generic"), 0)
    assert "dataset openai/gsm8k has no column 'prompt' (it has question, answer); set columns.prompt" in str(
        error.value
    )


def test_an_unknown_column_role_is_refused(mirror):
    with pytest.raises(RequestError, match="no column role 'questoin' \\(did you mean 'question'"):
        load_prompts(Source(path="openai/gsm8k", columns={"questoin": "x"}), 0)


# What makes a pair or a ranking


def test_pairs_with_identical_answers_are_left_out_and_counted(tmp_path, caplog):
    rows = [{"prompt": "a", "chosen": "b", "rejected": "b"}, {"prompt": "a", "chosen": "b", "rejected": "c"}]
    with caplog.at_level(logging.WARNING):
        (pair,) = load_pairs(Source(path=write(tmp_path / "p.jsonl", rows)), 0)
    assert pair["rejected"] == [{"role": "assistant", "content": "c"}]
    assert "left out 1 rows (1 with identical answers)" in caplog.text


def test_nothing_but_identical_pairs_is_an_error(tmp_path):
    source = Source(path=write(tmp_path / "p.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "b"}] * 2))
    with pytest.raises(RequestError, match="no usable pair: 2 with identical answers"):
        load_pairs(source, 0)


def test_rankings_keep_their_order_and_drop_ties(tmp_path):
    rows = [{"prompt": "a", "completions": ["best", "good", "bad"]}, {"prompt": "b", "completions": ["x", "x"]}]
    (ranking,) = load_rankings(Source(path=write(tmp_path / "r.jsonl", rows)), 0)
    assert ranking["completions"] == ["best", "good", "bad"]


def test_a_dataset_without_such_rows_says_what_it_gives(mirror):
    with pytest.raises(RequestError, match="'gsm8k' holds no pairs \\(it gives conversations, prompts\\)"):
        load_pairs(Source(path="openai/gsm8k"), 0)


# Bad files and names


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n', r"bad.jsonl:2 is not UTF-8"),
        (b'{"prompt": "a"}\n{"prompt": \n', r"bad.jsonl:2 is not JSON"),
        (b'{"prompt": "a"}\n["b"]\n', r"bad.jsonl:2 must be a JSON object"),
        (b'{"prompt": 3}\n', "row 0: column 'prompt' must be a list of messages"),
        (b'{"prompt": null}\n', "row 0: column 'prompt' is empty"),
    ],
)
def test_a_bad_jsonl_file_is_refused_with_its_place(tmp_path, content, problem):
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(RequestError, match=problem):
        load_prompts(Source(path=str(tmp_path / "bad.jsonl")), 0)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("bad.json", b"", "is empty"),
        ("bad.json", b"[]", "is empty"),
        ("bad.json", b'[{"prompt": "caf\xe9"}]', "is not UTF-8"),
        ("bad.json", b'[{"prompt": "a"},\n}', r"bad.json:2 is not JSON"),
        ("bad.json", b'{"prompt": "a"}', "must hold a list of objects"),
        ("bad.parquet", b"PAR1", "could not be read"),
        ("bad.txt", b"a", "is none of .jsonl, .json"),
    ],
)
def test_other_bad_files_are_refused(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match=problem):
        load_prompts(Source(path=str(tmp_path / name)), 0)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"path": "openai/gsm8k", "split": "tset"}, "did you mean 'main/test'"),
        ({"path": "openai/gsm8k", "config": "mian"}, "did you mean 'main/train'"),
        ({"path": "openai/gsm8k", "format": "gsm9k"}, "did you mean 'gsm8k'"),
        ({"path": "openai/gsm9k"}, "could not be had from the Hub"),
        ({"path": "no-such-file.jsonl"}, "neither a file or folder here nor a Hub id"),
        ({"path": "nano", "split": "tests"}, "did you mean 'test'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(mirror, settings, problem):
    with pytest.raises(RequestError, match=problem):
        load_prompts(Source(**settings), 0)


def test_a_split_that_a_folder_lacks_is_refused_with_the_nearest(mirror):
    source = Source(path=str(mirror / "openai" / "gsm8k"), config="main", split="trian")
    with pytest.raises(RequestError, match="did you mean 'main/train'"):
        load_prompts(source, 0)


def test_several_configurations_have_to_be_chosen_from(tmp_path):
    for config in ("harmless", "helpful"):
        write(tmp_path / "set" / config / "train.jsonl", PROMPTS)
    with pytest.raises(RequestError, match=r"several configurations \(harmless, helpful\)"):
        load_prompts(Source(path=str(tmp_path / "set")), 0)


def test_a_mirror_that_is_not_there_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("POSTTRAIN_DATA", str(tmp_path / "gone"))
    with pytest.raises(RequestError, match="POSTTRAIN_DATA=.*gone is not a folder"):
        load_prompts(Source(path="openai/gsm8k"), 0)


# What enters the config hash


def test_the_description_follows_content_not_place(tmp_path):
    first = Source(path=write(tmp_path / "a" / "p.jsonl", PROMPTS))
    moved = Source(path=write(tmp_path / "b" / "p.jsonl", PROMPTS))
    edited = Source(path=write(tmp_path / "c" / "p.jsonl", PROMPTS[:-1]))
    assert describe_source(first) == describe_source(moved)
    assert describe_source(first) != describe_source(edited)


@pytest.mark.parametrize("change", [{"rows": 5}, {"skip": 5}, {"split": "test"}, {"columns": {"reference": "gold"}}])
def test_every_part_of_a_source_changes_the_description(tmp_path, change):
    path = write(tmp_path / "p.jsonl", PROMPTS)
    assert describe_source(Source(path=path)) != describe_source(Source(path=path, **change))


def test_nano_is_described_by_its_generators_version():
    assert describe_source(Source(path="nano", rows=9)) == {
        "path": "nano",
        "split": "train",
        "rows": 9,
        "skip": 0,
        "generator": nano.GENERATOR_VERSION,
    }


# The generated corpora


def test_nano_prompts_are_the_same_set_for_every_seed_in_another_order():
    zero, one = (load_prompts(Source(path="nano", split="validation"), seed) for seed in (0, 1))
    assert zero != one
    assert {r["id"]: r["prompt"] for r in zero} == {r["id"]: r["prompt"] for r in one}


def test_nano_demonstrations_end_with_the_assistant():
    rows = load_conversations(Source(path="nano", rows=50), 0)
    assert len(rows) == 50
    assert all(row["messages"][-1]["role"] == "assistant" for row in rows)


@pytest.mark.parametrize("load", [load_pairs, load_rankings])
def test_nano_says_where_its_preferences_come_from(load):
    with pytest.raises(RequestError, match="sample"):
        load(Source(path="nano"), 0)


def test_nano_takes_no_settings_of_files():
    with pytest.raises(RequestError, match="nano is generated"):
        validate(Source, {"path": "nano", "config": "main"}, "data.sft")
