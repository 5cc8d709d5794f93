"""Rows of JSON Lines and CSV: every value as it is written, and what is no row is told with its line."""

import csv
import gzip
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.core.errors import RequestError
from posttrain.data.row_files import open_rows, stream_rows
from posttrain.data.sources import Source, load_conversations, load_prompts

VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


def both(path):
    """The rows by number, which are those of a stream."""
    rows = list(open_rows([path]))
    assert list(stream_rows([path])) == rows
    return rows


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=8), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_a_csvs_values_are_the_texts_that_were_written(tmp_path_factory, values, end, compressed):
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator=end)
    writer.writerows([("prompt", "answer"), *values])
    path = tmp_path_factory.mktemp("csv") / ("rows.csv.gz" if compressed else "rows.csv")
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if compressed else content)
    assert both(path) == [{"prompt": prompt or None, "answer": answer or None} for prompt, answer in values]


def test_nothing_is_made_a_number_or_null_because_it_looks_like_one(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\na,007\nb,NA\nc,None\nd,1.50\ne,true\n", encoding="utf-8")
    answers = {row["messages"][1]["content"] for row in load_conversations(Source(path=str(path)), 0)}
    assert answers == {"007", "NA", "None", "1.50", "true"}


def test_a_long_value_and_lines_within_values_are_read(tmp_path):
    path, long = tmp_path / "rows.csv", "word\n" * 60_000
    path.write_text(f'prompt,answer\n"{long}",x\n\nb,y\n', encoding="utf-8")
    assert both(path) == [{"prompt": long, "answer": "x"}, {"prompt": "b", "answer": "y"}]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"prompt,reference\n", "is empty"),
        (b"prompt,reference\na,1\nb,1,2\n", "rows.csv:3 has 3 values for the 2 columns"),
        (b"prompt,reference\na\n", "rows.csv:2 has 1 values for the 2 columns"),
        (b'prompt,reference\n"a\nb",1\n"c,2\n', "rows.csv:4 is not CSV: unexpected end"),
        (b"prompt,reference\na,1\ncaf\xe9,2\n", "rows.csv:3 is not UTF-8"),
        (b"prompt,prompt\na,1\n", "has two columns 'prompt'"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_csv_is_refused_with_its_line(tmp_path, content, problem, stream):
    (tmp_path / "rows.csv").write_bytes(content)
    source = Source(path=str(tmp_path / "rows.csv"), stream=stream)
    with pytest.raises(RequestError, match="has no row" if stream and "empty" in problem else problem):
        load_prompts(source, 0)


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.json"])
def test_a_byte_order_mark_is_no_part_of_the_rows(tmp_path, name):
    content = {"rows.csv": "prompt\na\n", "rows.jsonl": '{"prompt": "a"}\n', "rows.json": '[{"prompt": "a"}]'}[name]
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert both(tmp_path / name) == [{"prompt": "a"}]


@pytest.mark.parametrize("name", ["a[1].csv", "a*.csv", "a[1].parquet", "a*.parquet"])
def test_a_name_with_wildcards_is_that_files_alone(tmp_path, name):
    from datasets import Dataset

    for file, text in {name: "mine", name.replace("*", "x").replace("[1]", "1"): "another's"}.items():
        table = Dataset.from_list([{"prompt": text}])
        table.to_csv(tmp_path / file) if name.endswith("csv") else table.to_parquet(tmp_path / file)
    assert [row["prompt"] for row in both(tmp_path / name)] == ["mine"]


@pytest.mark.parametrize("value", ["[" * 100_000, "9" * 5_000])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_json_that_python_cannot_hold_is_refused(tmp_path, name, value):
    text = f'{{"prompt": "a", "reference": {value}}}'
    (tmp_path / name).write_text(f"[{text}]" if name == "rows.json" else text + "\n", encoding="utf-8")
    with pytest.raises(RequestError, match=name):
        load_prompts(Source(path=str(tmp_path / name)), 0)


def test_half_a_character_is_left_out_and_counted(tmp_path, caplog):
    rows = [{"prompt": "a \ud83d", "reference": 1}, {"prompt": "b", "reference": "\udc00"}, {"prompt": "c"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [row["prompt"][0]["content"] for row in load_prompts(Source(path=str(tmp_path / "rows.jsonl")), 0)] == ["c"]
    assert "left out 2 rows (2 with half a character" in caplog.text


def test_an_answer_under_another_name_is_asked_for_by_its_role(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,answer\na,b\n", encoding="utf-8")
    with pytest.raises(RequestError, match=r"no column 'completion' \(it has prompt, answer\); set columns.completion"):
        load_conversations(Source(path=str(tmp_path / "rows.csv")), 0)


def test_a_prompt_ends_with_the_users_message(tmp_path):
    row = {"prompt": [{"role": "system", "content": "Be brief."}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(RequestError, match="the prompt ends with the system's message; end it with the user's"):
        load_prompts(Source(path=str(tmp_path / "rows.jsonl")), 0)
