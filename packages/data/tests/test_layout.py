"""Folders as the Hub's datasets, their mirrors and downloads of them are laid out."""

import gzip
import json

import pytest

from posttrain.core.errors import RequestError
from posttrain.data.layout import files_of_split, splits_in
from posttrain.data.sources import Source, describe_source, load_prompts

ROWS = [{"prompt": f"question {n} ü", "reference": n} for n in range(7)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def put(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def prompts(source, seed=0):
    return [row["prompt"][0]["content"] for row in load_prompts(source, seed)]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("train.jsonl", (None, "train")),
        ("data/train_sft-00000-of-00001.parquet", (None, "train_sft")),
        ("data/train-00000-of-00001-a09b74b3ef9c3b56.parquet", (None, "train")),
        ("main/test-00000-of-00001.parquet", ("main", "test")),
        ("helpful-base/train.jsonl.gz", ("helpful-base", "train")),
        ("default/train/0000.parquet", ("default", "train")),
        ("data/en/train.csv", ("en", "train")),
    ],
)
def test_a_files_place_says_configuration_and_split(tmp_path, name, key):
    assert list(splits_in(put(tmp_path, name))) == [key]


def test_what_a_download_leaves_beside_the_rows_is_no_split(tmp_path):
    put(tmp_path, "train.jsonl", ".cache/huggingface/download/test.jsonl", "dataset_infos.json", "README.md")
    assert list(splits_in(tmp_path)) == [(None, "train")]


def test_shards_are_read_in_their_order(tmp_path):
    put(tmp_path, *(f"data/train-{n:05d}-of-00003.parquet" for n in (2, 0, 1)))
    names = [path.name for path in files_of_split(tmp_path, None, "train")]
    assert names == [f"train-{n:05d}-of-00003.parquet" for n in range(3)]


def test_a_missing_shard_is_refused_by_its_number(tmp_path):
    put(tmp_path, "data/train-00000-of-00003.parquet", "data/train-00002-of-00003.parquet")
    with pytest.raises(RequestError, match="of the 3 shards .* number 1 is missing; get the whole folder"):
        files_of_split(tmp_path, None, "train")


def test_files_named_after_their_sources_are_train_where_the_format_says_so(tmp_path):
    put(tmp_path, "sharegpt.jsonl", "flan.jsonl")
    assert [p.name for p in files_of_split(tmp_path, None, "train", one_split=True)] == ["flan.jsonl", "sharegpt.jsonl"]
    assert files_of_split(tmp_path, None, "train") is None
    assert files_of_split(tmp_path, None, "test", one_split=True) is None


def test_a_sharded_download_gives_the_rows_of_one_file(tmp_path):
    import datasets

    (tmp_path / "p.jsonl").write_bytes(lines(ROWS))
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    for number, part in enumerate((ROWS[:4], ROWS[4:])):
        datasets.Dataset.from_list(part).to_parquet(folder / f"train-{number:05d}-of-00002.parquet")
    for source in (Source(path=str(tmp_path / "set")), Source(path=str(tmp_path / "set"), rows=3)):
        one_file = source.model_copy(update={"path": str(tmp_path / "p.jsonl")})
        assert prompts(source) == prompts(one_file)


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json.gz", "rows.csv.gz"])
def test_compressed_files_give_the_same_rows(tmp_path, name):
    contents = {
        "rows.jsonl.gz": lines(ROWS),
        "rows.json.gz": json.dumps(ROWS).encode(),
        "rows.csv.gz": ("prompt,reference\n" + "".join(f"{r['prompt']},{r['reference']}\n" for r in ROWS)).encode(),
    }
    (tmp_path / name).write_bytes(gzip.compress(contents[name]))
    (tmp_path / "plain.jsonl").write_bytes(lines(ROWS))
    assert prompts(Source(path=str(tmp_path / name))) == prompts(Source(path=str(tmp_path / "plain.jsonl")))
    streamed = prompts(Source(path=str(tmp_path / name), stream=True))
    assert sorted(streamed) == sorted(row["prompt"] for row in ROWS)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"no gzip", "bad.jsonl.gz is no whole gzip file"),
        (gzip.compress(lines(ROWS))[:30] + b"\x00" * 40, "bad.jsonl.gz is no whole gzip file"),
        (gzip.compress(lines(ROWS))[:-20], "bad.jsonl.gz is no whole gzip file"),
        (gzip.compress(b'{"prompt": "a"}\n{"prompt": \n'), r"bad.jsonl.gz:2 is not JSON"),
    ],
)
def test_a_bad_compressed_file_is_refused(tmp_path, content, problem, stream):
    (tmp_path / "bad.jsonl.gz").write_bytes(content)
    with pytest.raises(RequestError, match=problem):
        load_prompts(Source(path=str(tmp_path / "bad.jsonl.gz"), stream=stream), 0)


def test_every_shards_content_enters_the_description(tmp_path):
    for folder, change in (("a", b""), ("b", b""), ("c", b'{"prompt": "more"}\n')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train-00000-of-00002.jsonl").write_bytes(lines(ROWS[:4]))
        (tmp_path / folder / "train-00001-of-00002.jsonl").write_bytes(lines(ROWS[4:]) + change)
    a, b, c = (describe_source(Source(path=str(tmp_path / folder)))["digest"] for folder in "abc")
    assert a == b
    assert a != c
