"""Preference pairs: which pairs, label noise, held-out prompts, and going on after a kill."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from online_fakes import tiny_inputs

from posttrain.core.errors import RequestError, WorkError
from posttrain.core.files import read_jsonl
from posttrain.data.sources import Source, load_pairs
from posttrain.trainers import preferences
from posttrain.trainers.pairs import flip_labels, pairs_of_prompt

pytestmark = pytest.mark.long

PROMPT = {"id": "p", "prompt": [{"role": "user", "content": "?"}], "reference": None, "kind": "k"}


def tiny(**changes):
    return preferences.Settings(**{"samples_per_prompt": 6, "max_new_tokens": 12, "chunk_prompts": 3, **changes})


def text(messages):
    (message,) = messages
    return message["content"]


answers = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 2)), max_size=8)


@settings(deadline=None, max_examples=80)
@given(answers, st.integers(1, 4), st.integers(0, 5))
def test_chosen_scores_higher_than_rejected_and_texts_differ(rows, limit, seed):
    texts, scores = [t for t, _ in rows], [s for _, s in rows]
    score_of = dict(zip(texts, scores, strict=True))
    texts, scores = list(score_of), list(score_of.values())  # a text has one score
    pairs = pairs_of_prompt(PROMPT, texts, scores, limit, seed)
    possible = sum(a > b for a in scores for b in scores)
    assert len(pairs) == min(limit, possible)
    for pair in pairs:
        assert score_of[text(pair["chosen"])] > score_of[text(pair["rejected"])]
    assert len({(text(p["chosen"]), text(p["rejected"])) for p in pairs}) == len(pairs)


def test_repeated_answers_count_once():
    pairs = pairs_of_prompt(PROMPT, ["good", "good", "bad", "bad", "bad"], [1, 1, 0, 0, 0], 4, seed=0)
    assert [(text(p["chosen"]), text(p["rejected"])) for p in pairs] == [("good", "bad")]


def test_answers_of_equal_score_make_no_pair():
    assert pairs_of_prompt(PROMPT, ["a", "b", "c"], [1.0, 1.0, 1.0], 4, seed=0) == []


def test_one_label_in_ten_is_flipped_and_nothing_else_changes():
    pairs = [{**pairs_of_prompt(PROMPT, ["a", "b"], [1, 0], 1, 0)[0], "id": str(i)} for i in range(2000)]
    noisy, flipped = flip_labels(pairs, 0.1, seed=0)
    assert flipped == sum(text(pair["chosen"]) == "b" for pair in noisy)
    assert 160 < flipped < 240  # 200 ± 3 deviations of 13.4
    assert [pair["id"] for pair in noisy] == [pair["id"] for pair in pairs]
    assert flip_labels(pairs, 0.1, seed=0) == (noisy, flipped)
    assert flip_labels(pairs, 0.0, seed=0) == (pairs, 0)


def test_pairs_of_the_policys_own_samples_hold_out_prompts_and_are_counted(tmp_path):
    inputs = tiny_inputs(tmp_path)
    summary = preferences.train(tiny(held_out=0.3), inputs)
    train, held_out = read_jsonl(inputs.run.path / "pairs.jsonl"), read_jsonl(inputs.run.path / "heldout.jsonl")
    assert (summary["prompts"], summary["completions"]) == (10, 60)
    assert (summary["pairs"], summary["held_out_pairs"]) == (len(train), len(held_out))
    assert summary["pairs_by_kind"] == {"prompts.jsonl": len(train)}
    questions = [{text(row["prompt"]) for row in rows} for rows in (train, held_out)]
    assert not questions[0] & questions[1]
    assert len(load_pairs(Source(path=str(inputs.run.path / "pairs.jsonl")), seed=0)) == len(train)
    scored = {(i["completion"], i["finish_reason"]) for _, items in inputs.reward.asked for i in items}
    for row in held_out:
        assert (text(row["chosen"]), "stop") in scored, "a truncated completion is in no pair"
        assert len(text(row["chosen"])) % 2 == 0, "held-out labels are the truth"
        assert len(text(row["rejected"])) % 2 == 1


def test_a_killed_run_goes_on_at_its_chunk_and_gives_the_same_pairs(tmp_path):
    whole, broken = tiny_inputs(tmp_path, "whole"), tiny_inputs(tmp_path, "broken")
    preferences.train(tiny(), whole)
    complete, calls = broken.policy.complete, []

    def failing(prompts, **arguments):
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return complete(prompts, **arguments)

    broken.policy.complete = failing
    with pytest.raises(KeyboardInterrupt):
        preferences.train(tiny(), broken)
    assert not (broken.run.path / "pairs.jsonl").exists()
    again = tiny_inputs(tmp_path, "broken")
    preferences.train(tiny(), again)
    assert len(again.policy.asked) == 2  # of four chunks, two were done
    for name in ("pairs.jsonl", "heldout.jsonl"):
        assert (whole.run.path / name).read_bytes() == (again.run.path / name).read_bytes()
    steps = [json.loads(line)["step"] for line in again.run.metrics_path.read_text().splitlines()]
    assert steps == [0, 1, 2, 3]


def test_a_source_that_scores_all_alike_is_an_error_and_leaves_no_file(tmp_path):
    inputs = tiny_inputs(tmp_path)
    score = inputs.reward.score

    def flat(sources, items):
        result = score(sources, items)
        return dataclasses.replace(result, scores=[dict.fromkeys(row, 1.0) for row in result.scores])

    inputs.reward.score = flat
    with pytest.raises(WorkError, match="scores the answers to a prompt alike"):
        preferences.train(tiny(), inputs)
    assert not (inputs.run.path / "pairs.jsonl").exists()


def test_it_needs_a_policy_service(tmp_path):
    with pytest.raises(RequestError, match="no policy service"):
        preferences.train(tiny(), dataclasses.replace(tiny_inputs(tmp_path), policy=None))
