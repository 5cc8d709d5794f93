"""posttrain data inspect: rows as training sees them, token by token, and what is wrong with a mask."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from posttrain.core.cli import run as command
from posttrain.data import nano
from posttrain.data.sources import Source, load_conversations
from posttrain.data.tokenizer import load_tokenizer
from posttrain.lab.inspection import inspect_conversation, inspect_ranking, summary, token_texts
from posttrain.lab.inspection_source import inspect_source
from posttrain.lab.inspection_view import show
from posttrain.lab.recipe import load_recipe
from posttrain.trainers.comparisons import comparisons
from posttrain.trainers.demonstrations import IGNORED, demonstrations

ROOT = Path(__file__).resolve().parents[3]
HUB = ROOT / "tests" / "fixtures" / "hub"
REAL = ROOT.parent / "shared" / "data"
RECIPE = {
    "name": "looked-at",
    "model": "nano",
    "data": {
        "sft": {"path": "HuggingFaceH4/ultrachat_200k", "split": "train_sft"},
        "pairs": {"path": "Anthropic/hh-rlhf", "config": "harmless-base"},
        "prompts": {"path": "openai/gsm8k"},
        "validation": {"path": "openai/gsm8k", "split": "test"},
    },
    "evaluation": {"tasks": ["nano_problems"], "table": {"nano_problems/exact_match,strict-match": "problems"}},
    "compare": ["dpo", "ppo"],
}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(nano.BASE)


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    monkeypatch.setenv("POSTTRAIN_DATA", str(HUB))
    path = tmp_path / "looked-at.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return str(path)


def machine_rows(capsys):
    *rows, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return rows, last["summary"]


def spoken(part):
    return "".join(text for text, trained in zip(part["tokens"], part["trained"], strict=True) if trained)


# What is shown is what is trained on


def test_the_trained_tokens_are_the_answers_and_their_end_tokens(recipe, capsys):
    assert command(["data", "inspect", recipe, "--rows", "8", "--jsonl"]) == 0
    rows, _ = machine_rows(capsys)
    source = Source(path="HuggingFaceH4/ultrachat_200k", split="train_sft", rows=8)
    for row, conversation in zip(rows, load_conversations(source, 0), strict=True):
        answers = [m["content"] + "<|im_end|>" for m in conversation["messages"] if m["role"] == "assistant"]
        assert spoken(row["parts"][0]) == "".join(answers)
        assert row["id"] == conversation["id"]


def test_data_of_fewer_rows_than_are_checked_are_not_said_to_lack_any(recipe, capsys, caplog):
    assert command(["data", "inspect", recipe, "--audit", "100000", "--jsonl"]) == 0
    assert machine_rows(capsys)[1]["rows"] < 100000
    assert "were asked for" not in caplog.text


@pytest.mark.parametrize("max_length", [60, 100, 1_000])
def test_the_mask_is_the_one_of_the_trainers_labels(tokenizer, monkeypatch, max_length):
    monkeypatch.setenv("POSTTRAIN_DATA", str(HUB))
    conversations = load_conversations(Source(path="HuggingFaceH4/ultrachat_200k", split="train_sft"), 0)
    data = demonstrations(tokenizer, conversations, max_length)
    rows = [inspect_conversation(tokenizer, row, {"sft": max_length}) for row in conversations]
    kept = [row for row in rows if not row.dropped_by]
    assert len(kept) == len(data.rows)
    for row, trained_on in zip(kept, data.rows, strict=True):
        part = row.parts[0]
        assert part.ids[: row.kept] == trained_on["input_ids"]
        assert part.trained[: row.kept] == [label != IGNORED for label in trained_on["labels"]]
    told = summary(rows, {"sft": max_length})
    assert (told["cut"], told["dropped"]) == (data.truncated, {"sft": data.dropped})
    assert told["end_trained"] == len(rows) - data.truncated - data.dropped


def test_a_cut_conversation_says_that_its_end_is_not_trained(tokenizer):
    messages = [{"role": "user", "content": "say it"}, {"role": "assistant", "content": "one two three four"}]
    whole = inspect_conversation(tokenizer, {"id": "x", "messages": messages}, {"sft": 100})
    assert (whole.end_trained, whole.kept) == (True, whole.length)
    cut = inspect_conversation(tokenizer, {"id": "x", "messages": messages}, {"sft": whole.length - 1})
    assert (cut.end_trained, cut.kept, cut.trained) == (False, whole.length - 1, whole.trained - 1)
    prompt_only = inspect_conversation(
        tokenizer, {"id": "x", "messages": messages}, {"sft": whole.length - whole.trained}
    )
    assert prompt_only.dropped_by == ("sft",)


def test_pairs_are_shown_as_the_trainers_render_them(tokenizer):
    ranking = {
        "id": "x",
        "kind": "k",
        "prompt": [{"role": "user", "content": "two words?"}],
        "completions": ["yes, two", "no"],
    }
    row = inspect_ranking(tokenizer, ranking, {"rm": 100, "dpo": 5})
    rendered = comparisons(tokenizer, [ranking], 100).rows[0]
    assert [part.name for part in row.parts] == ["prompt", "chosen", "rejected"]
    assert [part.ids for part in row.parts] == [rendered.prompt_ids, *rendered.answers]
    assert [set(part.trained) for part in row.parts] == [{False}, {True}, {True}]
    assert (row.length, row.dropped_by, row.end_trained) == (len(rendered.sequences[0]), ("dpo",), True)


def test_a_rankings_answers_come_best_first(recipe, capsys):
    kwise = ["--set", "rm.loss=kwise", "--set", "data.pairs={path: openbmb/UltraFeedback}"]
    assert command(["data", "inspect", recipe, "--source", "pairs", "--rows", "1", "--jsonl", *kwise]) == 0
    (row,), _ = machine_rows(capsys)
    names = [part["name"] for part in row["parts"]]
    assert names[0] == "prompt"
    assert names[1:] == [f"answer {n} of {len(names) - 1}" for n in range(1, len(names))]


def test_prompts_are_shown_with_their_reference_and_train_nothing(recipe, capsys):
    assert command(["data", "inspect", recipe, "--source", "prompts", "--rows", "2", "--jsonl"]) == 0
    rows, told = machine_rows(capsys)
    assert all(row["reference"]["gsm8k"].isdecimal() and not any(row["parts"][0]["trained"]) for row in rows)
    assert "trained_share" not in told
    assert told["limits"] == {"ppo": 1024 - 64}
    assert "".join(rows[0]["parts"][0]["tokens"]).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("source", "limits"),
    [
        ("prompts", {"ppo": 1024 - 64}),
        ("measured", {"evaluation": 1024 - 96}),
        ("preference_prompts", {"preferences": 1024 - 64}),
    ],
)
def test_prompts_have_the_room_that_their_reader_leaves(capsys, source, limits):
    few = ["--source", source, "--rows", "0", "--audit", "2", "--jsonl", "--set", "compare=[ppo, best_of_n]"]
    assert command(["data", "inspect", "nano", *few]) == 0
    assert machine_rows(capsys)[1]["limits"] == limits


def test_the_summary_is_over_the_audited_rows_and_the_output_over_the_shown(recipe, capsys):
    assert command(["data", "inspect", recipe, "--rows", "2", "--audit", "30", "--jsonl"]) == 0
    rows, told = machine_rows(capsys)
    assert (len(rows), told["rows"]) == (2, 30)
    assert (
        0 < told["trained_share_of_a_row"]["least"] <= told["trained_share"] <= told["trained_share_of_a_row"]["most"]
    )


def test_every_other_seed_shows_other_rows(recipe, capsys):
    first = []
    for seed in ("0", "1"):
        assert command(["data", "inspect", recipe, "--rows", "1", "--seed", seed, "--jsonl"]) == 0
        first.append(machine_rows(capsys)[0][0]["id"])
    assert first[0] != first[1]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("sft", "path: openai/gsm8k"),
        ("pairs", "path: Anthropic/hh-rlhf, config: harmless-base, split: test"),
        ("prompts", "path: openai/gsm8k, split: test"),
    ],
)
def test_real_rows_pass_the_audit(recipe, monkeypatch, capsys, source, said):
    if not (REAL / "openai" / "gsm8k").is_dir():
        pytest.skip(f"no real data under {REAL}")
    monkeypatch.setenv("POSTTRAIN_DATA", str(REAL))
    arguments = ["--source", source, "--rows", "0", "--audit", "400", "--jsonl", "--set", f"data.{source}={{{said}}}"]
    assert command(["data", "inspect", recipe, *arguments]) == 0
    _, told = machine_rows(capsys)
    assert told["rows"] == 400
    if source != "prompts":
        assert 0 < told["trained_share_of_a_row"]["least"] < told["trained_share_of_a_row"]["most"] < 1
    if source == "pairs":
        assert told["end_trained"] == 400


# Masks that teach nothing


@pytest.fixture
def model_with(tmp_path):
    """A function that copies the nano base and gives it another chat template."""

    def make(template):
        folder = tmp_path / "model"
        shutil.copytree(nano.BASE, folder)
        (folder / "chat_template.jinja").write_text(template)
        return str(folder)

    return make


TURN = "{{ m['role'] + m['content'] + '<|im_end|>' }}"
BEGIN, END = "{% generation %}", "{% endgeneration %}"
TEMPLATES = {
    "all": f"{BEGIN}{{% for m in messages %}}{TURN}{{% endfor %}}{END}",
    "none": f"{{% for m in messages %}}{TURN}{{% endfor %}}{{% if false %}}{BEGIN}{END}{{% endif %}}",
    "no end": (
        "{% for m in messages %}{{ m['role'] }}{% if m['role'] == 'assistant' %}"
        f"{BEGIN}{{{{ m['content'] }}}}{END}"
        "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
    ),
}
REASONS = {
    "all": "the loss mask covers every token",
    "none": "the loss mask is empty",
    "no end": "the model would never learn to stop",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_mask_that_teaches_nothing_is_an_error_with_its_reason(recipe, model_with, capfd, template):
    assert command(["data", "inspect", recipe, "--set", f"model={model_with(TEMPLATES[template])}"]) == 1
    said = capfd.readouterr().err
    assert REASONS[template] in said
    assert "conversation HuggingFaceH4/ultrachat_200k/train_sft/" in said
    assert "Traceback" not in said


def test_rows_of_which_none_fits_are_an_error(recipe, capfd):
    assert command(["data", "inspect", recipe, "--set", "sft.max_length=8"]) == 1
    assert "none of 40 rows fits its length limit in tokens (sft 8)" in capfd.readouterr().err


# Requests


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nano", "--source", "pairs"], "says no data.pairs: its pairs are sampled from the SFT policy"),
        (["nano", "--source", "stf"], "no source 'stf' (did you mean 'sft'?)"),
        (["nanno"], "unknown recipe 'nanno'"),
    ],
)
def test_a_wrong_request_is_one_line_and_status_2(capfd, arguments, problem):
    assert command(["data", "inspect", *arguments]) == 2
    said = capfd.readouterr().err
    assert problem in said
    assert "Traceback" not in said


# What people see


def drawn(recipe, **options):
    loaded = load_recipe(recipe)
    file = io.StringIO()
    console = Console(file=file, width=200, **options)
    show(inspect_source(loaded, "sft", 20, 0), 1, "looked-at", console)
    return file.getvalue()


def test_without_colour_each_trained_token_stands_in_brackets(recipe, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    text = drawn(recipe)
    assert "\x1b" not in text
    assert "⟦<|im_end|>⟧" in text
    assert "⟦<|im_start|>⟧" not in text
    assert "end token <|im_end|>: trained in 20 of 20 rows" in text


def test_in_a_terminal_colour_tells_trained_from_context(recipe, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = drawn(recipe, force_terminal=True, color_system="truecolor")
    assert "⟦" not in text
    greens, greys = ("\x1b[1;32m", "\x1b[1;92m"), ("\x1b[38;5;244m", "\x1b[38;5;249m")
    assert any(f"{green}<|im_end|>" in text for green in greens)
    assert any(f"{grey}<|im_start|>" in text for grey in greys)


def test_the_cut_is_marked(recipe, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    loaded = load_recipe(recipe, ["sft.max_length=60"])
    file = io.StringIO()
    show(inspect_source(loaded, "sft", 5, 0), 5, "looked-at", Console(file=file, width=200))
    assert "⟪cut at 60⟫" in file.getvalue()
    assert "the end token is NOT trained; cut to 60" in file.getvalue()


@pytest.mark.parametrize("colour", [{}, {"force_terminal": True, "color_system": "truecolor"}])
def test_what_data_say_to_a_terminal_is_shown_and_not_done(recipe, monkeypatch, tmp_path, colour):
    monkeypatch.setenv("TERM", "dumb" if not colour else "xterm")
    said = "\x1b[2J\x1b]0;title\x07 \r over \x9b1m \u202e back"
    rows = [{"id": f"{n}\x1b[2J", "prompt": said, "completion": said} for n in range(2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_recipe(recipe, [f"data.sft={{path: {tmp_path / 'rows.jsonl'}}}"])
    file = io.StringIO()
    show(inspect_source(loaded, "sft", 2, 0), 2, "looked-at", Console(file=file, width=200, **colour))
    text = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())  # rich's own colours
    assert not set(text) & set("\x1b\x07\r\x9b\u202e")
    assert "\\x1b[2J\\x1b]0;title\\x07 \\r over" in text


def test_a_part_of_a_character_is_shown_as_bytes(tokenizer):
    ids = tokenizer.encode("€", add_special_tokens=False)
    assert len(ids) > 1
    assert "".join(token_texts(tokenizer, ids)) == "\\xe2\\x82\\xac"
    assert token_texts(tokenizer, tokenizer.encode("a", add_special_tokens=False)) == ["a"]


def test_an_answer_that_the_data_call_cut_short_is_shown_without_its_end_and_why(tmp_path, capfd):
    row = {"prompt": "2 + 2?", "chosen": "4", "rejected": "That is", "rejected_finish_reason": "length"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    data = ["--set", f"data.pairs.path={tmp_path / 'pairs.jsonl'}"]
    assert command(["data", "inspect", "nano", "--source", "pairs", *data]) == 0
    shown = capfd.readouterr().out
    assert "⟦4⟧⟦<|im_end|>⟧" in shown
    assert "the end token is NOT trained, an answer was cut short" in shown
    assert "trained in 0 of 1 rows" in shown
