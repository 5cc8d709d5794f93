"""`posttrain data`, run as a person runs it."""

import json

import pytest

from posttrain.core.cli import run


def test_show_prints_rows_as_the_trainers_get_them(mirror, capsys):
    assert run(["data", "show", "openai/gsm8k", "--as", "conversations", "--rows", "0"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 3
    assert all([m["role"] for m in row["messages"]] == ["user", "assistant"] for row in rows)


def test_show_maps_columns(tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"instruction": "add"}\n')
    assert run(["data", "show", str(tmp_path / "p.jsonl"), "--column", "prompt=instruction"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == [{"role": "user", "content": "add"}]


def test_show_takes_any_setting_of_a_source(tmp_path, capsys):
    rows = [{"prompt": f"q{n}", "lang": lang} for n, lang in enumerate(["en", "de", "fr", "en"])]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["--set", "where.lang=[de, fr]", "--set", "system=Be brief.", "--set", "stream=true"]
    assert run(["data", "show", str(tmp_path / "p.jsonl"), "--rows", "0", *settings]) == 0
    shown = [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()]
    assert sorted(prompt[1]["content"] for prompt in shown) == ["q1", "q2"]
    assert all(prompt[0] == {"role": "system", "content": "Be brief."} for prompt in shown)


def test_nano_prints_evaluation_items(capsys):
    assert run(["data", "nano", "problems", "--rows", "2"]) == 0
    items = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(items) == 2
    assert all("####" in item["answer"] for item in items)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["show", "openai/gsm8k", "--as", "pairs"], "holds no pairs"),
        (["show", "openai/gsm8k", "--column", "prompt"], "--column takes ours=theirs"),
        (["show", "openai/gsm8k", "--split", "tset"], "did you mean 'main/test'"),
        (["show", "nano", "--config", "main"], "nano is generated"),
        (["nano", "problmes"], "did you mean 'problems'"),
    ],
)
def test_a_wrong_request_is_one_line_and_status_2(mirror, capfd, arguments, problem):
    assert run(["data", *arguments]) == 2
    said = capfd.readouterr().err
    assert problem in said
    assert "Traceback" not in said
