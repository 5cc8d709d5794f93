"""The curve over n and the values by prompt, worked out by hand on written samples."""

import math

import pytest

from posttrain.core.files import write_jsonl
from posttrain.core.runs import RunDirectory
from posttrain.trainers.best_of_n_curve import SAMPLES, curve_sizes, items, point


def samples(name, reward, gold, finish_reasons=("stop", "stop", "stop"), **scores):
    return {
        "id": name,
        "kind": "k",
        "reward": reward,
        "scores": {"rm": reward, "verifier": gold, **scores},
        "lengths": [4, 4, 4],
        "finish_reasons": list(finish_reasons),
    }


ROWS = [samples("a", [1.0, 2.0, 3.0], [0.0, 1.0, 0.5]), samples("b", [6.0, 5.0, 4.0], [1.0, 0.0, 0.0])]


def test_best_of_two_of_three_by_hand():
    best = point(ROWS, 2, "verifier")
    # a: pairs give 2, 3, 3; b: 6, 6, 5. Gold of the picked: 1, ½, ½ and 1, 1, 0. Errors of two prompts: half the gap.
    assert best["reward"] == pytest.approx({"value": (8 / 3 + 17 / 3) / 2, "standard_error": 1.5})
    assert best["gold"] == pytest.approx({"value": 2 / 3, "standard_error": 0.0})
    assert (best["n"], best["kl"]) == (2, pytest.approx(math.log(2) - 1 / 2))


def test_best_of_one_is_the_policy_itself():
    best = point(ROWS, 1, "verifier")
    assert best["kl"] == 0
    assert best["reward"]["value"] == pytest.approx((2 + 5) / 2)
    assert best["gold"]["value"] == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_a_truncated_sample_is_picked_only_among_its_like():
    # By reward the first would always win; it did not finish. The pair of both truncated ones is a coin toss.
    row = samples("a", [9.0, 1.0, 5.0], [1.0, 0.25, 0.5], ["length", "stop", "length"])
    assert point([row, row], 3, "verifier")["gold"]["value"] == 0.25
    assert point([row, row], 2, "verifier")["gold"]["value"] == pytest.approx((0.25 + 0.25 + 0.75) / 3)


def test_the_curve_goes_in_powers_of_two_to_all_samples_through_the_rows_own_n():
    assert curve_sizes(16, 64) == [1, 2, 4, 8, 16, 32, 64]
    assert curve_sizes(3, 6) == [1, 2, 3, 4, 6]
    assert curve_sizes(1, 1) == [1]


def test_items_are_the_curve_by_prompt(tmp_path):
    write_jsonl(tmp_path / SAMPLES, ROWS)
    of_prompts = items(RunDirectory(tmp_path), 2)
    assert [(item["id"], item["kind"]) for item in of_prompts] == [("a", "k"), ("b", "k")]
    best = point(ROWS, 2, "verifier")
    for name, of_curve in (("gold", best["gold"]["value"]), ("learned", best["reward"]["value"]), ("kl", best["kl"])):
        assert sum(item["scores"][name] for item in of_prompts) / 2 == pytest.approx(of_curve)


def test_items_leave_out_what_was_not_asked(tmp_path):
    write_jsonl(tmp_path / SAMPLES, ROWS)
    (first, _) = items(RunDirectory(tmp_path), 3, gold="another")
    assert first["scores"] == {"kl": pytest.approx(math.log(3) - 2 / 3), "learned": 3.0}
