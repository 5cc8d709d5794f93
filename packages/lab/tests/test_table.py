"""The table: paired by item, pooled over seeds, and honest about what fell."""

import pytest

from posttrain.lab.render import as_json, markdown
from posttrain.lab.table import Scores, TableRow, build_table


def scores(values_by_seed: dict[int, dict[str, float]]) -> Scores:
    triples = [
        (item, f"{seed}/{item}/0", value) for seed, items in values_by_seed.items() for item, value in items.items()
    ]
    items, keys, values = zip(*triples, strict=True)
    return Scores(items, keys, values)


def row(name: str, columns: dict[str, Scores]) -> TableRow:
    return TableRow(name, "abcdef0123456789", (0,), columns, 12.0)


BEFORE = {"a": 0.0, "b": 1.0, "c": 0.0, "d": 1.0}
AFTER = {"d": 1.0, "c": 1.0, "b": 1.0, "a": 0.0}


def test_difference_is_paired_by_item_whatever_the_order():
    table = build_table(
        [row("sft", {"acc": scores({0: BEFORE})}), row("ppo", {"acc": scores({0: AFTER})})],
        ["acc"],
        [("ppo", "sft")],
        [],
    )
    estimate = table.differences[0].columns["acc"]
    # Differences 0, 0, 1, 0: mean ¼, s² = ¼, standard error ½/√4.
    assert estimate.value == pytest.approx(0.25)
    assert estimate.standard_error == pytest.approx(0.25)
    assert not estimate.beyond_noise


def test_seeds_are_pooled_and_clustered_by_item():
    pooled = scores({0: BEFORE, 1: BEFORE})
    assert pooled.estimate().n == 8
    assert pooled.estimate().standard_error == pytest.approx(scores({0: BEFORE}).estimate().standard_error)


def test_rows_measured_on_other_items_are_not_compared():
    rows = [row("sft", {"acc": scores({0: BEFORE})}), row("ppo", {"acc": scores({0: {"x": 1.0, "y": 0.0}})})]
    with pytest.raises(ValueError, match="column 'acc': the two rows were not measured on the same items"):
        build_table(rows, ["acc"], [("ppo", "sft")], ["acc"])


def fallen(column: str, tasks: list[str], drop: float) -> list[str]:
    high = {str(i): 1.0 for i in range(50)}
    low = {str(i): 1.0 - drop * (i % 2) for i in range(50)}
    rows = [row("sft", {column: scores({0: high})}), row("ppo", {column: scores({0: low})})]
    return build_table(rows, [column], [("ppo", "sft")], tasks).losses()


def test_task_that_fell_beyond_noise_is_named():
    assert fallen("mc2", ["mc2"], 0.5) == ["ppo is below sft in mc2: -0.250 ± 0.036"]


def test_kl_that_fell_is_no_loss():
    assert fallen("KL", [], 0.5) == []


def test_column_that_a_row_lacks_is_a_dash_and_no_difference():
    rows = [row("base", {}), row("sft", {"acc": scores({0: BEFORE})})]
    table = build_table(rows, ["acc"], [("sft", "base")], ["acc"])
    assert "| base | abcdef01 | — | 12 |" in markdown(table)
    assert table.differences[0].columns == {}


def test_machines_get_every_number_of_the_table():
    rows = [row("sft", {"acc": scores({0: BEFORE})}), row("ppo", {"acc": scores({0: AFTER})})]
    plain = as_json(build_table(rows, ["acc"], [("ppo", "sft")], ["acc"]))
    assert plain["rows"][1]["columns"]["acc"]["value"] == 0.75
    assert plain["differences"][0]["columns"]["acc"]["n"] == 4


def test_mark_stands_where_the_difference_is_beyond_two_standard_errors():
    rows = [
        row("sft", {"acc": scores({0: {str(i): 0.0 for i in range(20)}})}),
        row("ppo", {"acc": scores({0: {str(i): float(i % 2) for i in range(20)}})}),
    ]
    assert "+0.500 ± 0.115 \\*" in markdown(build_table(rows, ["acc"], [("ppo", "sft")], ["acc"]))


def test_seconds_of_a_resumed_run_are_a_lower_bound():
    resumed = TableRow("sft", "abcdef0123456789", (0,), {"acc": scores({0: BEFORE})}, 12.0, resumed=True)
    assert "| ≥ 12 |" in markdown(build_table([resumed], ["acc"], [], ["acc"]))
