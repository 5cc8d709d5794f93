"""What a row cost: its own stage, all that it needed, and what that says where runs were killed."""

import pytest

from posttrain.lab.costs import row_cost
from posttrain.lab.recipe import Price


def record(wall: float, core: float, memory: int = 100, resumed: bool = False, gpu: float | None = None, **totals):
    cost = {"wall_seconds": wall, "core_seconds": core, "peak_memory_bytes": memory}
    if gpu is not None:
        cost["gpu_hours"] = gpu
    return {"cost": cost, "summary": {"totals": totals}, "resumed": resumed}


def test_base_cost_nothing():
    assert row_cost([[], []], None) is None


def test_own_hours_are_the_last_stages_and_all_are_everyones():
    cost = row_cost([[record(100, 3600), record(50, 1800), record(10, 7200)]], None)
    assert (cost.machine_hours, cost.all_machine_hours) == (2.0, 3.5)
    assert cost.seconds == 10


def test_figures_are_means_over_seeds_and_memory_is_the_largest():
    chains = [
        [record(10, 3600, memory=5, tokens_trained=100, prompts_seen=4, optimizer_steps=2)],
        [record(30, 7200, memory=9, tokens_trained=300, prompts_seen=4, optimizer_steps=4, tokens_generated=10)],
    ]
    cost = row_cost(chains, None)
    assert (cost.seconds, cost.machine_hours, cost.peak_memory_bytes) == (20, 1.5, 9)
    assert (cost.tokens_trained, cost.prompts_seen, cost.optimizer_steps, cost.tokens_generated) == (200, 4, 3, 5)


def test_price_is_of_the_wall_time_of_all_that_was_needed():
    price = Price(per_hour=2.0, machine="one L4")
    chains = [[record(1800, 1), record(1800, 1)], [record(3600, 1), record(3600, 1)]]
    assert row_cost(chains, price).price == pytest.approx(3.0)  # 1½ hours on average
    assert row_cost(chains, None).price is None


def test_phases_are_the_own_stages_and_one_that_a_seed_lacks_is_zero_there():
    own = [record(1, 1, **{"seconds/generation": 4.0, "seconds/update": 2.0}), record(1, 1, **{"seconds/update": 4.0})]
    before = record(1, 1, **{"seconds/generation": 99.0})
    assert row_cost([[before, each] for each in own], None).phases == {"generation": 2.0, "update": 3.0}


def test_a_killed_and_resumed_seed_makes_the_rows_cost_a_lower_bound():
    cost = row_cost([[record(1, 1), record(1, 1)], [record(1, 1), record(1, 1, resumed=True)]], None)
    assert (cost.resumed, cost.any_resumed) == (True, True)


def test_a_killed_and_resumed_stage_before_it_makes_only_the_sum_a_lower_bound():
    cost = row_cost([[record(1, 1, resumed=True), record(1, 1)]], None)
    assert (cost.resumed, cost.any_resumed) == (False, True)


def test_hours_are_the_gpus_where_one_did_the_work():
    cost = row_cost([[record(1, 3600, gpu=0.25), record(1, 3600, gpu=0.5)]], None)
    assert (cost.machine_hours, cost.all_machine_hours, cost.on_gpu) == (0.5, 0.75, True)
