"""A table as text and as JSON: what stands in a cell, and that JSON is strict and whole."""

import json
from dataclasses import replace

import pytest

from posttrain.core.statistics import Bootstrap, Comparison, Estimate
from posttrain.lab.cells import as_json, costs, differences, notes, quality, standings, verdicts
from posttrain.lab.costs import RowCost
from posttrain.lab.table import Difference, Scores, Standing, Table, TableRow, build_table


def scores(by_seed: dict[int, list[float]]) -> Scores:
    keyed = [(f"i{i}", seed, 0, value) for seed, values in by_seed.items() for i, value in enumerate(values)]
    return Scores(*map(tuple, zip(*keyed, strict=True)))


COST = RowCost(
    6144, 412345, 1000, 200, 123.4, {"generation": 60.2, "idle": 0.1}, 2**30, 0.0694, 0.345, examples_seen=12288
)
PRICED = replace(COST, price=1.5, currency="USD", machine="one L4 on demand")
HALF, MORE = [0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]
SFT = TableRow("sft", "abcdef0123456789", (0, 1), {"acc": scores({0: HALF, 1: HALF})}, "demonstrations", cost=COST)
PPO = replace(SFT, name="ppo", scores={"acc": scores({0: MORE, 1: MORE})}, learns_from="rm", trials=4)
BASE = TableRow("base", "9876543210", (), {"acc": scores({0: HALF, 1: HALF})})
TABLE = build_table([BASE, SFT, PPO], ["acc"], ["acc"], "acc")


def cell(cells: list[list[str]], row: str, column: str) -> str:
    (found,) = [each for each in cells[1:] if each[0].startswith(row)]
    return found[cells[0].index(column)]


def with_row(**changes: object) -> Table:
    return replace(TABLE, rows=(*TABLE.rows[:2], replace(PPO, **changes)))


def p_cell(p: float) -> str:
    comparison = Comparison(0.1, 0.04, 4, 4, p, (0.0, 0.2))
    difference = Difference("ppo", "sft", {"acc": comparison}, {0: 0.1}, {"acc": p})
    return cell(differences(replace(TABLE, differences=(difference,)), " ± "), "ppo", "acc")


class TestQuality:
    def test_value_stands_with_its_standard_error(self):
        # Two equal seeds of ½ on four items: √(4/3 · 4 · 1) / 8.
        assert cell(quality(TABLE, " ± "), "sft", "acc") == "0.500 ± 0.289"
        assert cell(quality(TABLE, "\n± "), "sft", "acc") == "0.500\n± 0.289"

    def test_row_says_its_seeds_where_there_are_several(self):
        assert [each[0] for each in quality(TABLE, " ± ")[1:]] == ["base", "sft (2 seeds)", "ppo (2 seeds)"]
        assert quality(with_row(seeds=(0,)), " ± ")[3][0] == "ppo"

    def test_hash_is_shortened(self):
        assert cell(quality(TABLE, " ± "), "sft", "config_hash") == "abcdef01"

    def test_what_does_not_apply_is_a_dash_and_not_zero(self):
        cells = quality(with_row(scores={}), " ± ")
        assert (cell(cells, "ppo", "acc"), cell(cells, "base", "trials")) == ("—", "—")
        assert cell(quality(with_row(trials=0), " ± "), "ppo", "trials") == "0"

    @pytest.mark.parametrize(
        ("accuracy", "implicit", "shown"),
        [
            (None, False, "—"),
            (Estimate(0.7121, 0.0114, 900), False, "0.712 ± 0.011"),
            (Estimate(0.7121, 0.0114, 900), True, "implicit 0.712 ± 0.011"),
        ],
    )
    def test_reward_accuracy_says_whether_it_is_the_policys_own(self, accuracy, implicit, shown):
        cells = quality(with_row(reward_accuracy=accuracy, implicit=implicit), " ± ")
        assert cell(cells, "ppo", "reward accuracy") == shown


class TestBounds:
    """ln n − (n−1)/n is the same for every prompt, and no estimate."""

    KL = "KL from sft"

    def table(self) -> Table:
        kl = {"base": [14.0, 16.0, 14.0, 16.0], "sft": [0.0] * 4, "ppo": [0.1] * 4}
        rows = [replace(each, scores={**each.scores, self.KL: scores({0: kl[each.name]})}) for each in TABLE.rows]
        rows[2] = replace(rows[2], name="best_of_n", bounds=(self.KL,))
        return build_table(rows, ["acc", self.KL], ["acc"], "acc", partial=True)

    def test_cell_has_neither_standard_error_nor_mark(self):
        table = self.table()
        assert cell(quality(table, " ± "), "best_of_n", self.KL) == "≤ 0.100"
        assert cell(differences(table, " ± "), "best_of_n − sft", self.KL) == "≤ +0.100"

    def test_difference_has_the_standard_error_of_the_estimate_subtracted(self):
        # 0.1 − 15, of values 14, 16, 14, 16: √(4 / (4 · 3)).
        assert cell(differences(self.table(), " ± "), "best_of_n − base", self.KL) == "≤ -14.900 ± 0.577"

    def test_json_names_the_bounded_columns(self):
        assert [row["bounds"] for row in as_json(self.table())["rows"]] == [[], [], [self.KL]]


class TestCosts:
    def test_base_has_no_line(self):
        assert [each[0] for each in costs(TABLE)[1:]] == ["sft", "ppo"]

    def test_numbers_are_readable(self):
        given = dict(zip(costs(TABLE)[0], costs(TABLE)[1], strict=True))
        assert given == {
            "Cost": "sft",
            "prompts": "6,144",
            "examples": "12,288",
            "tokens trained": "412,345",
            "tokens generated": "1,000",
            "optimiser steps": "200",
            "seconds": "123",
            "by phase": "generation 60",
            "peak memory": "1,024 MiB",
            "core-hours": "0.069",
            "core-hours, all before too": "0.345",
            "core-hours, tuning": "—",
        }

    def test_price_says_its_currency_and_the_machine_and_without_one_there_is_no_column(self):
        cells = costs(with_row(cost=PRICED))
        assert cell(cells, "ppo", "price (USD, one L4 on demand)") == "1.50"
        assert not any("price" in head for head in costs(TABLE)[0])

    def test_lower_bounds_are_marked_where_a_run_was_resumed(self):
        cells = costs(with_row(cost=replace(PRICED, resumed=True, any_resumed=True)))
        columns = ("seconds", "core-hours", "price (USD, one L4 on demand)")
        assert [cell(cells, "ppo", c) for c in columns] == ["≥ 123", "≥ 0.069", "≥ 1.50"]

    def test_only_sums_are_where_that_was_a_stage_before(self):
        cells = costs(with_row(cost=replace(COST, any_resumed=True)))
        assert cell(cells, "ppo", "seconds") == "123"
        assert cell(cells, "ppo", "core-hours, all before too") == "≥ 0.345"

    def test_hours_of_gpus_stand_beside_those_of_cores_and_not_under_their_head(self):
        cells = costs(with_row(cost=replace(COST, gpu_hours=0.5, all_gpu_hours=0.75)))
        assert (cell(cells, "ppo", "core-hours"), cell(cells, "ppo", "GPU-hours")) == ("0.069", "0.500")
        assert cell(cells, "ppo", "GPU-hours, all before too") == "0.750"
        assert (cell(cells, "sft", "core-hours"), cell(cells, "sft", "GPU-hours")) == ("0.069", "—")
        assert not any("GPU" in head for head in costs(TABLE)[0])

    def test_tuning_stands_beside_and_is_a_lower_bound_where_a_trial_was_resumed(self):
        cells = costs(with_row(cost=replace(COST, tuning_core_hours=0.1234)))
        assert cell(cells, "ppo", "core-hours, tuning") == "0.123"
        cells = costs(with_row(cost=replace(COST, tuning_core_hours=0.1234, tuning_resumed=True)))
        assert cell(cells, "ppo", "core-hours, tuning") == "≥ 0.123"


class TestDifferences:
    def test_mark_stands_where_the_difference_is_beyond_two_standard_errors(self):
        assert p_cell(0.2) == "+0.100 ± 0.040 *; p .200"
        assert cell(differences(TABLE, " ± "), "ppo − sft", "acc") == "+0.250 ± 0.250; p 1"

    @pytest.mark.parametrize(
        ("p", "shown"),
        [
            (1.0, "p 1"),
            (0.9996, "p 1"),
            (0.5, "p .500"),
            (0.0496, "p .04960"),
            (0.0504, "p .05040"),
            (0.05, "p .05000"),
            (0.0123, "p .012"),
            (0.001, "p .001"),
            (0.0009, "p < .001"),
            (float("nan"), "p —"),
        ],
    )
    def test_p_never_reads_as_the_other_side_of_a_twentieth(self, p, shown):
        assert p_cell(p).endswith(shown)

    def test_column_outside_the_family_has_no_p(self):
        made = build_table([SFT, PPO], ["acc"], [], "another")
        assert cell(differences(made, " ± "), "ppo", "acc") == "+0.250 ± 0.250"

    def test_column_that_one_of_the_two_lacks_is_a_dash(self):
        made = build_table([SFT, replace(PPO, scores={})], ["acc"], ["acc"], "acc")
        assert cell(differences(made, " ± "), "ppo", "acc") == "—"


class TestStandings:
    def test_show_the_distance_from_the_best_and_every_seed(self):
        assert standings(TABLE) == [
            ["Rank", "Method", "acc", "behind the best", "corrected p", "by seed"],
            ["1", "ppo", "0.750 ± 0.250", "—", "—", "0.750  0.750"],
            ["2", "sft", "0.500 ± 0.289", "-0.250 ± 0.250", ".391", "0.500  0.500"],
        ]

    def test_without_items_in_common_there_is_a_rank_and_no_distance(self):
        apart = replace(TABLE, standings=(Standing("ppo", None, None), Standing("sft", None, None)), sensitivity=None)
        assert standings(apart)[2][3:5] == ["—", "—"]
        assert not any("Between" in sentence for sentence in verdicts(apart))


class TestNotes:
    def test_learned_reward_of_several_seeds_has_the_scales_of_their_reward_models(self):
        learned = {"learned reward": scores({0: HALF, 1: MORE})}
        columns = ["acc", "learned reward"]
        pooled = build_table([replace(SFT, scores={**SFT.scores, **learned}), PPO], columns, ["acc"], "acc")
        (note,) = notes(pooled)
        assert note.startswith(
            "The learned reward is pooled over 2 seeds. Where each seed has a reward model of its own, "
        )
        one = {"acc": scores({0: HALF}), "learned reward": scores({0: HALF})}
        assert notes(build_table([replace(SFT, scores=one)], columns, ["acc"], "acc")) == []
        assert notes(TABLE) == []


class TestJson:
    def strict(self, table: Table) -> dict:
        plain = as_json(table)
        text = json.dumps(plain, allow_nan=False)
        assert json.loads(text) == plain
        return plain

    def test_is_strict_and_comes_back_as_it_was(self):
        self.strict(TABLE)
        self.strict(with_row(reward_accuracy=Estimate(0.7, 0.1, 5), implicit=True))

    def test_has_every_number_of_the_table(self):
        plain = self.strict(TABLE)
        ppo = plain["rows"][2]
        assert ppo["columns"]["acc"] == {"value": 0.75, "standard_error": pytest.approx(0.25), "n": 8}
        assert ppo["by_seed"]["acc"] == {"0": 0.75, "1": 0.75}
        assert (ppo["trials"], ppo["learns_from"], ppo["seeds"]) == (4, "rm", [0, 1])
        assert ppo["cost"]["phases"] == {"generation": 60.2, "idle": 0.1}
        difference = next(d for d in plain["differences"] if (d["after"], d["before"]) == ("ppo", "sft"))
        original = next(d for d in TABLE.differences if (d.after, d.before) == ("ppo", "sft"))
        assert difference["columns"]["acc"]["p_value"] == original.columns["acc"].p_value
        assert difference["columns"]["acc"]["corrected_p"] == original.corrected["acc"]
        assert difference["columns"]["acc"]["interval"] == list(original.columns["acc"].interval)
        assert difference["by_seed"] == {"0": 0.25, "1": 0.25}
        assert difference["checks"]["mcnemar"]["0"]["gained"] == 1
        assert difference["checks"]["p_by_seed"]["0"] == pytest.approx(original.seed_p[0])
        assert plain["verdicts"][0]["unmeasured"] == []
        assert difference["checks"]["bootstrap"]["draws"] == 10_000
        assert plain["standings"][1]["behind"]["value"] == -0.25
        assert plain["sensitivity"]["clusters"] == 4
        assert (plain["tasks"], plain["headline"]) == (["acc"], "acc")

    def test_of_a_column_without_spread_is_numbers(self):
        """The KL of best of n is the same for every prompt."""
        constant = replace(PPO, scores={**PPO.scores, "KL from sft": scores({0: [1.9] * 4})})
        none = replace(SFT, scores={**SFT.scores, "KL from sft": scores({0: [0.0] * 4})})
        plain = self.strict(build_table([none, constant], ["acc", "KL from sft"], ["acc"], "acc"))
        assert plain["rows"][1]["columns"]["KL from sft"]["standard_error"] == 0
        # Four items that moved alike are four coins that fell alike.
        assert plain["differences"][0]["columns"]["KL from sft"]["p_value"] == 2**-3

    def test_has_null_for_what_is_no_number(self):
        broken = replace(PPO, scores={"acc": scores({0: [0.0, float("nan"), 1.0, 1.0], 1: MORE})})
        plain = self.strict(build_table([SFT, broken], ["acc"], ["acc"], "acc"))
        assert plain["rows"][1]["columns"]["acc"]["value"] is None
        assert plain["differences"][0]["columns"]["acc"]["corrected_p"] is None
        assert not plain["verdicts"][0]["wins"]

    def test_has_null_for_a_bootstrap_without_a_result(self):
        nothing = Bootstrap(0.0, float("nan"), float("nan"), (float("-inf"), float("inf")), 1)
        plain = self.strict(replace(TABLE, differences=(replace(TABLE.differences[0], bootstrap=nothing),)))
        assert plain["differences"][0]["checks"]["bootstrap"]["interval"] == [None, None]
