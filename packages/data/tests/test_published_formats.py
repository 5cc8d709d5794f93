"""The published datasets, each from rows in its own schema on the Hub to rows that a trainer takes."""

import logging
from pathlib import Path

import pytest

from posttrain.core.errors import RequestError
from posttrain.core.files import read_jsonl
from posttrain.data.formats import FORMATS, Record, UnusableRow
from posttrain.data.formats.oasst import regroup
from posttrain.data.formats.published import PUBLISHED
from posttrain.data.sources import (
    Source,
    load_conversations,
    load_pairs,
    load_prompts,
    load_rankings,
)

HUB = Path(__file__).resolve().parents[3] / "tests" / "fixtures" / "hub"


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    monkeypatch.setenv("POSTTRAIN_DATA", str(HUB))


def record(format_name, values):
    return Record("set", 0, values, FORMATS[format_name].columns)


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def places(hub_id):
    """A source for each configuration and split of a dataset's rows."""
    files = sorted((HUB / hub_id).rglob("*.jsonl"))
    if hub_id == "openbmb/UltraFeedback":
        return [Source(path=hub_id)]
    return [Source(path=hub_id, config=file.parent.name, split=file.stem) for file in files]


LOADERS = {"conversation": load_conversations, "pair": load_pairs, "ranking": load_rankings, "prompt": load_prompts}
WITHOUT = {
    ("conversation", "HuggingFaceH4/ultrachat_200k", "test_gen"): 4,  # those of one turn have no answer
    ("conversation", "HuggingFaceH4/ultrafeedback_binarized", "train_gen"): 0,
    ("conversation", "HuggingFaceH4/ultrafeedback_binarized", "test_gen"): 0,
    ("pair", "HuggingFaceH4/ultrafeedback_binarized", "train_gen"): 0,
    ("pair", "HuggingFaceH4/ultrafeedback_binarized", "test_gen"): 0,
    ("conversation", "GAIR/lima", "test"): 0,  # questions only
}
"""Usable rows of splits that are, or have, questions without answers."""


@pytest.mark.parametrize("hub_id", [hub_id for f in PUBLISHED for hub_id in f.hub_ids if (HUB / hub_id).is_dir()])
def test_every_split_gives_each_kind_of_row_that_its_format_names(hub_id):
    format_ = next(f for f in PUBLISHED if hub_id in f.hub_ids)
    for kind, source in ((kind, source) for kind in LOADERS for source in places(hub_id)):
        if getattr(format_, kind) is None:
            continue
        expected = WITHOUT.get((kind, hub_id, source.split))
        if expected == 0:
            with pytest.raises(RequestError, match="no usable"):
                LOADERS[kind](source, 0)
        elif expected is None:
            assert len(LOADERS[kind](source, 0)) >= 4
        else:
            assert len(LOADERS[kind](source, 0)) == expected


@pytest.mark.parametrize("hub_id", [f.hub_ids[0] for f in PUBLISHED])
def test_rows_are_the_same_from_parquet_in_the_hubs_layout(hub_id, tmp_path):
    import datasets

    format_ = next(f for f in PUBLISHED if hub_id in f.hub_ids)
    source = places(hub_id)[-1]
    files = sorted((HUB / hub_id).rglob("*.jsonl"))
    chosen = files if format_.files_are_one_split else [file for file in files if file.stem == source.split]
    rows = [row for file in chosen for row in read_jsonl(file)]
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "data" / f"{source.split}-00000-of-00001.parquet")
    from_parquet = Source(path=str(tmp_path), split=source.split, format=format_.name)
    load = load_prompts if source.split.startswith("test") else load_conversations
    load = load_rankings if format_.conversation is None else load

    def contents(source):
        return [{key: value for key, value in row.items() if key not in ("id", "kind")} for row in load(source, 3)]

    assert contents(from_parquet) == contents(source)


def test_every_format_but_those_beside_it_has_rows_in_its_schema():
    assert all(any((HUB / hub_id).is_dir() for hub_id in f.hub_ids) for f in PUBLISHED)


# Chats


def test_ultrachat_demonstrations_end_with_the_answer_and_prompts_before_the_first():
    turns = [user("a"), assistant("b"), user("c"), assistant("d")]
    row = record("ultrachat", {"prompt": "a", "prompt_id": "0", "messages": turns})
    assert FORMATS["ultrachat"].conversation(row) == turns
    assert FORMATS["ultrachat"].prompt(row) == ([user("a")], None)


def test_what_follows_the_last_answer_is_cut():
    messages = [user("a"), assistant("b"), user("thanks")]
    assert FORMATS["tulu"].conversation(record("tulu", {"messages": messages})) == messages[:2]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([user("a")], "no answer"),
        ([], "no answer"),
        ([assistant("b")], "an answer before any question"),
        ([user("a"), {"role": "tool", "content": "x"}, assistant("b")], "a role other than"),
        ([user("a"), assistant("  ")], "an empty message"),
        ([user("a"), assistant(None)], "an empty message"),
    ],
)
def test_a_bad_row_of_a_published_mixture_is_left_out_with_its_reason(messages, reason):
    with pytest.raises(UnusableRow, match=reason):
        FORMATS["tulu"].conversation(record("tulu", {"messages": messages}))


def test_left_out_rows_are_counted(caplog):
    with caplog.at_level(logging.WARNING):
        assert len(load_conversations(Source(path="allenai/tulu-v2-sft-mixture"), 0)) == 32
    assert "left out 1 rows (1 with no answer)" in caplog.text


def test_lima_texts_take_turns():
    row = record("lima", {"conversations": ["a", "b", "c", "d"], "source": "wikihow"})
    assert FORMATS["lima"].conversation(row) == [user("a"), assistant("b"), user("c"), assistant("d")]
    question_only = record("lima", {"conversations": ["a"], "source": "test"})
    assert FORMATS["lima"].prompt(question_only) == ([user("a")], None)
    with pytest.raises(UnusableRow, match="no answer"):
        FORMATS["lima"].conversation(question_only)


@pytest.mark.parametrize(("given", "prompt"), [("", "Add."), ("1 and 2", "Add.\n\n1 and 2")])
def test_alpacas_input_follows_the_instruction_where_there_is_one(given, prompt):
    row = record("alpaca", {"instruction": "Add.", "input": given, "output": "3", "text": "…"})
    assert FORMATS["alpaca"].conversation(row) == [user(prompt), assistant("3")]


def test_hh_rlhf_gives_prompts_and_the_preferred_transcripts_too():
    source = Source(path="Anthropic/hh-rlhf", config="helpful-base", split="test")
    pairs = {row["id"]: row for row in load_pairs(source, 0)}
    for row in load_conversations(source, 0):
        assert row["messages"] == pairs[row["id"]]["prompt"] + pairs[row["id"]]["chosen"]
    assert [row["prompt"] for row in load_prompts(source, 0)] == [pair["prompt"] for pair in pairs.values()]


def test_hh_rlhf_transcripts_that_part_before_the_last_answer_are_counted(caplog):
    with caplog.at_level(logging.WARNING):
        pairs = load_pairs(Source(path="Anthropic/hh-rlhf", config="helpful-base"), 0)
    assert len(pairs) == 38
    assert "left out 2 rows (2 with the two conversations differ before the last answer)" in caplog.text


# Scores


def answers(*scores):
    return [{"response": f"answer {n}", "overall_score": score} for n, score in enumerate(scores)]


def test_ultrafeedback_is_ranked_by_score():
    row = record("ultrafeedback", {"instruction": "a", "completions": answers(2.0, 8.5, 5.0, 7.0)})
    assert FORMATS["ultrafeedback"].ranking(row) == ([user("a")], ["answer 1", "answer 3", "answer 2", "answer 0"])
    assert FORMATS["ultrafeedback"].pair(row) == ([user("a")], "answer 1", "answer 0")


def test_equal_scores_never_become_an_order():
    row = record("ultrafeedback", {"instruction": "a", "completions": answers(5.0, 7.0, 5.0, 7.0)})
    assert FORMATS["ultrafeedback"].ranking(row) == ([user("a")], ["answer 1", "answer 0"])
    assert row.left_out == {"answers with the score of another one": 2}


@pytest.mark.parametrize("scores", [(5.0, 5.0, 5.0, 5.0), (5.0,), (), (5.0, None), (5.0, float("nan"))])
def test_fewer_than_two_scores_are_no_ranking(scores):
    row = record("ultrafeedback", {"instruction": "a", "completions": answers(*scores)})
    with pytest.raises(UnusableRow, match="no two answers of different score"):
        FORMATS["ultrafeedback"].ranking(row)


def test_another_score_of_ultrafeedback_can_be_taken():
    completions = [
        {"response": "a", "overall_score": 9.0, "annotations": {"honesty": {"Rating": "2"}}},
        {"response": "b", "overall_score": 1.0, "annotations": {"honesty": {"Rating": "5"}}},
        {"response": "c", "overall_score": 5.0, "annotations": {"honesty": {"Rating": "N/A"}}},
    ]
    columns = FORMATS["ultrafeedback"].column_of({"score": "annotations.honesty.Rating"})
    row = Record("set", 0, {"instruction": "x", "completions": completions}, columns)
    assert FORMATS["ultrafeedback"].ranking(row)[1] == ["b", "a"]
    missing = Record("set", 0, row.values, FORMATS["ultrafeedback"].column_of({"score": "score"}))
    with pytest.raises(RequestError, match="row 0: an answer has no 'score' \\(it has response, overall_score"):
        FORMATS["ultrafeedback"].ranking(missing)


def test_left_out_answers_are_counted_over_the_rows(caplog):
    with caplog.at_level(logging.WARNING):
        rankings = load_rankings(Source(path="openbmb/UltraFeedback"), 0)
    # Two prompts of forty have four answers of one score; ten have two of one, of which one is left out.
    assert len(rankings) == 38
    assert sorted(len(row["completions"]) for row in rankings) == [3] * 10 + [4] * 28
    assert "left out 2 rows (2 with no two answers of different score)" in caplog.text
    assert "left out 16 answers with the score of another one" in caplog.text


def test_binarized_pairs_of_equal_score_are_left_out():
    values = {"prompt": "a", "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]}
    binarized = FORMATS["ultrafeedback-binarized"]
    row = record("ultrafeedback-binarized", values | {"score_chosen": 8.0, "score_rejected": 7.5})
    assert binarized.pair(row) == ([user("a")], "b", "c")
    with pytest.raises(UnusableRow, match="equal scores"):
        binarized.pair(record("ultrafeedback-binarized", values | {"score_chosen": 8.0, "score_rejected": 8}))


# MATH


def test_math_prompts_carry_the_boxed_answer():
    row = record("math", {"problem": "Half?", "solution": r"It is $\boxed{\frac{1}{2}}$.", "level": "Level 1"})
    assert FORMATS["math"].prompt(row) == ([user("Half?")], {"math": r"\frac{1}{2}"})
    with pytest.raises(UnusableRow, match="no boxed answer"):
        FORMATS["math"].prompt(record("math", {"problem": "a", "solution": "It is 3."}))


# OpenAssistant's trees


def node(name, parent, role, rank=None, **more):
    return {"message_id": name, "parent_id": parent, "role": role, "text": f"text of {name}", "rank": rank} | more


TREE = [
    node("q", None, "prompter", lang="en"),
    node("a2", "q", "assistant", rank=1),
    node("a1", "q", "assistant", rank=0),
    node("a3", "q", "assistant", rank=2),
    node("follow", "a1", "prompter"),
    node("b2", "follow", "assistant", rank=1),
    node("b1", "follow", "assistant", rank=0),
    node("late", "b1", "prompter"),
]


def test_the_best_path_of_a_tree_is_its_demonstration():
    (row,) = regroup(TREE, "conversation")
    assert (row["id"], row["lang"]) == ("q", "en")
    assert [m["content"] for m in row["messages"]] == [f"text of {n}" for n in ("q", "a1", "follow", "b1", "late")]
    assert FORMATS["oasst"].conversation(record("oasst", row))[-1] == assistant("text of b1")


def test_ranked_siblings_are_a_ranking_with_the_path_to_them_as_prompt():
    first, second = regroup(TREE, "ranking")
    assert first["prompt"] == [user("text of q")]
    assert first["completions"] == ["text of a1", "text of a2", "text of a3"]
    assert [m["content"] for m in second["prompt"]] == ["text of q", "text of a1", "text of follow"]
    assert second["completions"] == ["text of b1", "text of b2"]
    assert [(p["chosen"], p["rejected"]) for p in regroup(TREE, "pair")] == [
        ("text of a1", "text of a3"),
        ("text of b1", "text of b2"),
    ]


def test_the_order_of_a_files_messages_does_not_matter():
    for kind in ("conversation", "ranking", "pair", "prompt"):
        assert regroup(TREE[::-1], kind) == regroup(TREE, kind)


def test_a_deleted_answer_and_what_hangs_below_it_are_left_out():
    tree = [row | {"deleted": row["message_id"] == "a1"} for row in TREE]
    (ranking,) = regroup(tree, "ranking")
    assert ranking["completions"] == ["text of a2", "text of a3"]
    assert [m["content"] for m in regroup(tree, "conversation")[0]["messages"]] == ["text of q", "text of a2"]


def test_equal_ranks_are_no_preference():
    assert regroup([TREE[0], TREE[1], node("x", "q", "assistant", rank=1)], "ranking") == []


def test_one_language_of_the_trees_can_be_taken():
    everything = load_conversations(Source(path="OpenAssistant/oasst1"), 0)
    english = load_conversations(Source(path="OpenAssistant/oasst1", where={"lang": "en"}), 0)
    assert (len(everything), len(english)) == (16, 14)


def test_rows_that_are_no_messages_of_trees_are_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(RequestError, match="need the columns message_id, parent_id, role, text; message_id is missing"):
        load_prompts(Source(path=str(tmp_path / "x.jsonl"), format="oasst"), 0)


def test_trees_cannot_be_streamed():
    with pytest.raises(RequestError, match="puts rows together and cannot be streamed"):
        load_prompts(Source(path="OpenAssistant/oasst1", stream=True), 0)
