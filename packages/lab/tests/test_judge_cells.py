"""The judges' part of a table: its columns, its own table and sentences, JSON, and a table that nobody judged."""

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from posttrain.lab.cells import as_json, quality
from posttrain.lab.judge_cells import judge_sentences, judged
from posttrain.lab.judge_scores import Judges
from posttrain.lab.render import markdown, rich_tables
from posttrain.lab.table import Scores, Table, TableRow, build_table

JUDGES = Judges("nano_instructions", ("rm", "verifier"), "verifier")


def scores(values: list[float]) -> Scores:
    places = range(len(values))
    return Scores(tuple(f"i{n}" for n in places), (0,) * len(values), (0,) * len(values), tuple(values))


def row(
    name: str, rm: list[float] | None, verifier: list[float] | None, learns_from: str = "offline pairs"
) -> TableRow:
    said = {"rm": rm, "verifier": verifier}
    preferences = {judge: scores(values) for judge, values in said.items() if values}
    return TableRow(name, f"{name}0123456789", (0,), {"acc": scores([0.0, 1.0])}, learns_from, judged=preferences)


ROWS = (
    row("base", [0.2, 0.1, 0.1, 0.2], [0.0, 0.0, 0.5, 0.0], "—"),
    row("sft", None, None, "demonstrations"),
    row("dpo", [0.9, 0.6, 0.2, 0.4], [1.0, 0.0, 0.0, 0.0]),
    row("ppo", [1.0, 1.0, 1.0, 0.5], [1.0, 1.0, 1.0, 0.5], "rm + 0.5·verifier"),
    row("best_of_n (verifier)", None, None, "verifier"),
)


def table(*rows: TableRow, judges: Judges | None = JUDGES) -> Table:
    return build_table(rows or ROWS, ["acc"], ["acc"], "acc", check=False, judges=judges)


def cell(cells: list[list[str]], name: str, column: str) -> str:
    (found,) = [each for each in cells[1:] if each[0] == name]
    return found[cells[0].index(column)]


RM, VERIFIER = "judge win rate vs sft (rm)", "judge win rate vs sft (verifier)"


class TestColumns:
    def test_each_judge_has_one_with_the_clustered_error_marked_beyond_two_of_it(self):
        cells = quality(table(), " ± ")
        assert cell(cells, "ppo", RM) == "0.875 ± 0.125 *"
        assert cell(quality(table(), "\n± "), "ppo", RM) == "0.875\n± 0.125 *"
        # 0.4, 0.1, −0.3, −0.1 of mean 0.025: √(4/3 · 0.2675) / 4.
        assert cell(cells, "dpo", RM) == "0.525 ± 0.149"
        assert cell(cells, "base", VERIFIER) == "0.125 ± 0.125 *"

    def test_what_was_not_judged_is_a_dash(self):
        cells = quality(table(), " ± ")
        assert [cell(cells, name, RM) for name in ("sft", "best_of_n (verifier)")] == ["—", "—"]

    @pytest.mark.parametrize("judges", [JUDGES, None])
    def test_table_that_nobody_judged_has_one_of_dashes(self, judges):
        bare = table(*(replace(each, judged={}) for each in ROWS), judges=judges)
        cells = quality(bare, " ± ")
        assert {cell(cells, each.name, "judge win rate vs sft") for each in ROWS} == {"—"}
        assert [judge_sentences(bare), as_json(bare)["judge"], as_json(bare)["rows"][2]["judge"]] == [[], None, None]
        assert "udged" not in markdown(bare)
        assert [drawn.title for drawn in rich_tables(bare) if "udged" in drawn.title] == []

    def test_without_the_sft_row_the_rates_say_nothing_and_are_left_out(self):
        assert table(*(each for each in ROWS if each.name != "sft")).judges is None


class TestSection:
    def test_has_rate_corrected_p_and_error_of_every_judged_row(self):
        cells = judged(table(), " ± ")
        assert [each[0] for each in cells] == ["Method", "base", "dpo", "ppo"]
        assert cell(cells, "ppo", "rm: win rate") == "0.875 ± 0.125 *"
        # Three rows; base's p is the smallest, ppo's 0.0577 the second.
        assert cell(cells, "ppo", "rm: corrected p") == ".115"
        assert cell(cells, "dpo", "rm: kappa with verifier").startswith("0.500 ± ")
        assert cell(cells, "dpo", "rm: right where verifier decides").startswith("0.750 ± ")
        assert "verifier: kappa with verifier" not in cells[0]

    def test_kappa_of_two_that_only_ever_say_the_same_is_a_dash(self):
        rows = (*ROWS[:2], row("dpo", [0.9, 0.8], [1.0, 1.0]))
        assert cell(judged(table(*rows), " ± "), "dpo", "rm: kappa with verifier") == "—"

    def test_words_say_where_judge_and_gold_disagree_and_how_far_they_agree(self):
        said = " ".join(judge_sentences(table()))
        assert "rm and verifier, which is gold, put 1 of 3 rows on different sides of ½: dpo." in said
        assert "of the pairs that verifier decides, rm decides 0.750 to 1.000 alike, by row; " in said
        assert re.search(r"Cohen's kappa over all pairs, ties among them, is from -?0\.000 to 1\.000, where 0", said)

    def test_words_say_whose_teacher_the_judge_was(self):
        assert "trained on it or chosen by it (ppo), and it likes what it taught" in judge_sentences(table())[-1]
        assert not any("taught" in said for said in judge_sentences(table(*ROWS[:3])))

    def test_judge_without_gold_has_rates_and_no_error(self):
        alone = table(judges=Judges("t", ("rm",), None))
        assert judged(alone, " ± ")[0] == ["Method", "rm: win rate", "rm: corrected p"]
        assert not any("gold" in said for said in judge_sentences(alone))

    def test_stands_on_the_page_after_the_verdicts(self):
        heads = re.findall(r"^## (.*)$", markdown(table()), flags=re.MULTILINE)
        assert heads[heads.index("Verdicts") + 1] == "Judged against sft on nano_instructions"
        assert "| ppo | 0.875 ± 0.125 \\* |" in markdown(table())
        assert "clustered by item; \\* beyond two standard errors" in markdown(table())

    def test_terminal_shows_it_too(self):
        console = Console(width=100, file=io.StringIO(), force_terminal=False)
        for drawn in rich_tables(table()):
            console.print(drawn)
        text = " ".join(console.file.getvalue().split())
        assert "Judged against sft on nano_instructions" in text
        assert "0.875" in text
        assert "put 1 of 3 rows on different sides of ½: dpo." in text


class TestJson:
    def test_is_strict_and_has_every_number(self):
        plain = as_json(table())
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        assert {key: plain["judge"][key] for key in ("task", "against", "judges", "gold")} == {
            "task": "nano_instructions",
            "against": "sft",
            "judges": ["rm", "verifier"],
            "gold": "verifier",
        }
        rm = plain["rows"][3]["judge"]["rm"]
        assert (rm["value"], rm["standard_error"], rm["n"], rm["clusters"]) == (0.875, pytest.approx(0.125), 4, 4)
        # t = 3 with 3 degrees of freedom, the second smallest of three.
        assert (rm["p_value"], rm["corrected_p"]) == pytest.approx((0.0576689, 0.1153377), abs=1e-6)
        # t of 3 degrees of freedom at 97.5 %: 3.182446.
        assert rm["interval"] == pytest.approx([0.875 - 0.125 * 3.182446, 0.875 + 0.125 * 3.182446])
        assert rm["by_seed"] == {"0": 0.875}
        assert rm["error"]["kappa"]["value"] == pytest.approx(1)
        assert (rm["error"]["decided"]["value"], rm["error"]["decided"]["n"]) == (1, 3)
        assert plain["rows"][3]["judge"]["verifier"]["error"] is None
        assert plain["rows"][1]["judge"] is None
