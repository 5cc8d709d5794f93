"""Tables on a terminal and on a page: nothing is swallowed, cut or taken for markup."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from posttrain.core.statistics import Estimate
from posttrain.lab.cells import quality
from posttrain.lab.costs import RowCost
from posttrain.lab.judge_scores import Judges
from posttrain.lab.render import markdown, rich_tables
from posttrain.lab.table import Scores, Table, TableRow, build_table

COLUMNS = ("choice", "problems strict", "problems flexible", "mc2", "instr. prompt", "instr. inst")
MEASURES = ("KL from sft", "gold reward", "learned reward")
NAMES = {
    "base": "—",
    "sft": "demonstrations",
    "dpo-on-policy": "on-policy pairs",
    "ppo (rm + 0.5·verifier, from dpo)": "rm + 0.5·verifier",
    "best_of_n": "rm",
    "their ppo [ab12cd]": "a | b *",
}


def wide_table() -> Table:
    """As many columns as the nano lab's comparison has, fifteen with those beside the scores."""

    def scores(shift: int) -> Scores:
        keyed = [(f"i{i}", seed, 0, float((i * 7 + shift) % 10 < 5)) for seed in (0, 1, 2) for i in range(20)]
        return Scores(*map(tuple, zip(*keyed, strict=True)))

    cost = RowCost(6144, 4e5, 5e5, 200, 123.4, {"generation": 60.0, "update": 40.0}, 2**30, 0.069, 0.345)
    rows = [
        TableRow(
            name,
            "abcdef0123456789",
            () if name == "base" else (0, 1, 2),
            {column: scores(number) for column in (*COLUMNS, *MEASURES)},
            learns_from,
            trials=4,
            reward_accuracy=Estimate(0.712, 0.011, 900),
            implicit=name == "dpo-on-policy",
            cost=None if name == "base" else cost,
            footnotes=("a footnote",) if name == "dpo-on-policy" else (),
        )
        for number, (name, learns_from) in enumerate(NAMES.items())
    ]
    return build_table(rows, (*COLUMNS, *MEASURES), COLUMNS, "instr. prompt", check=False)


TABLE = wide_table()


def drawn(width: int, table: Table = TABLE) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    for each in rich_tables(table):
        console.print(each)
    return console.file.getvalue()


def words(text: str) -> str:
    """What is read, without frames."""
    return " ".join(re.sub(r"[─-╿]", " ", text).split())


class TestTerminal:
    @pytest.mark.parametrize("width", [60, 80, 120, 160, 220, 300])
    def test_nothing_is_wider_than_the_console(self, width):
        assert max(len(line) for line in drawn(width).splitlines()) <= width

    def test_at_220_every_table_is_in_one_piece(self):
        assert "continued" not in drawn(220)

    def test_at_220_a_table_with_two_judges_is_too(self):
        likes = {"rm": TABLE.rows[0].scores["mc2"], "verifier": TABLE.rows[0].scores["choice"]}
        rows = [each if each.name == "sft" else replace(each, judged=likes) for each in TABLE.rows]
        judges = Judges("nano_instructions", ("rm", "verifier"), "verifier")
        judged = build_table(rows, TABLE.columns, COLUMNS, "instr. prompt", check=False, judges=judges)
        assert "continued" not in drawn(220, judged)
        assert "win rate" in words(drawn(220, judged))

    @pytest.mark.parametrize("width", [80, 120, 220])
    def test_values_with_their_errors_are_never_broken(self, width):
        text = drawn(width)
        for row in TABLE.rows:
            estimate = row.scores["mc2"].estimate
            assert f"{estimate.value:.3f} " in text
            assert f"± {estimate.standard_error:.3f} " in text
        assert not re.search(r"±\s*[│┃]", text)

    def test_narrow_console_gets_the_columns_in_turn_each_with_the_rows_names(self):
        text = drawn(100)
        assert text.count("Methods (value ± standard error), continued") >= 1
        assert text.count("best_of_n") > drawn(220).count("best_of_n")
        for column in (*COLUMNS, *MEASURES, "config_hash", "learns from", "reward accuracy", "trials"):
            assert set(column.split()) <= set(words(text).split())

    def test_name_in_brackets_is_shown_and_no_style(self):
        assert "their ppo [ab12cd]" in words(drawn(300))

    def test_differences_of_a_method_stand_together(self):
        lines = drawn(220).splitlines()
        start = next(i for i, line in enumerate(lines) if "best_of_n − sft" in line)
        end = next(i for i, line in enumerate(lines) if "best_of_n − base" in line)
        assert "├" in lines[start - 1]
        assert not any("├" in line for line in lines[start:end])

    def test_order_is_shown_where_there_are_several_methods(self):
        assert "By instr. prompt; p corrected over all pairs" in drawn(220)
        two = build_table(TABLE.rows[:3], TABLE.columns, COLUMNS, "instr. prompt", check=False)
        assert "p corrected over all pairs" not in drawn(220, two)


class TestPage:
    def test_every_line_of_a_table_has_as_many_cells_as_its_head(self):
        page = markdown(TABLE)
        for block in re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE):
            counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(counts) == 1, block

    def test_note_stands_below_the_values(self):
        page = markdown(TABLE).split("## ")[0]
        assert page.rstrip().endswith("and the unit means nothing outside this table.")
        assert "and the unit means nothing outside this table." in words(drawn(220)).split("Cost of each")[0]

    def test_says_which_comparisons_are_corrected_together(self):
        # Nine pairs of six rows (base, sft, four others), six tasks; the ranks are another family.
        assert "p is Holm-corrected over the 54 task differences of this table, and larger the more" in markdown(TABLE)
        assert "These pairs are a family of their own beside the differences" in markdown(TABLE)

    def test_bars_and_stars_of_names_are_escaped(self):
        assert "| their ppo [ab12cd] (3 seeds) | abcdef01 | a \\| b \\* |" in markdown(TABLE)

    def test_numbers_end_at_the_right_and_words_start_at_the_left(self):
        rule = markdown(TABLE).splitlines()[1]
        assert rule.startswith("| --- | --- | --- | ---: |")

    def test_sections_stand_in_the_order_of_what_is_asked(self):
        heads = re.findall(r"^## (.*)$", markdown(TABLE), flags=re.MULTILINE)
        assert heads[:4] == ["Marked", "Verdicts", "By instr. prompt", "Differences"]
        assert heads[-1] == "Cost"

    def test_sections_without_content_are_left_out(self):
        made = build_table([replace(TABLE.rows[1])], TABLE.columns, COLUMNS, "instr. prompt", check=False)
        assert "## Marked" not in markdown(made)
        assert "## Verdicts" not in markdown(made)
        assert "## Fell" not in markdown(made)

    def test_costs_are_means_over_seeds_where_there_are_several(self):
        assert "## Cost\n\nOf each row's own stage, means over seeds.\n" in markdown(TABLE)
        one = replace(TABLE, rows=tuple(replace(each, seeds=each.seeds[:1]) for each in TABLE.rows))
        assert "## Cost\n\nOf each row's own stage.\n" in markdown(one)
        assert "means over seeds" not in drawn(220, one)

    def test_cells_are_those_of_the_terminal_on_one_line(self):
        cells = quality(TABLE, " ± ")
        assert all("\n" not in cell for row in cells for cell in row)
        assert f"| {cells[1][3]} |" in markdown(TABLE)
