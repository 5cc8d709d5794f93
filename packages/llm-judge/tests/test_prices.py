"""What requests cost, by prices that the user gives."""

import pytest

from posttrain.core.errors import RequestError
from posttrain.llm_judge.judges.prices import Price, check_max_cost, find_price


def test_cost_is_by_the_million_tokens():
    assert Price(input=2.5, output=10).cost(1000, 200) == pytest.approx(0.0025 + 0.002)


def test_prices_come_from_the_options_or_from_a_file(tmp_path):
    table = tmp_path / "prices.yaml"
    table.write_text("a: {input: 1, output: 2}\nb: {input: -1, output: 2}\n")
    assert find_price("x", 3, 4) == Price(input=3, output=4)
    assert find_price("a", prices=table) == Price(input=1, output=2)
    assert find_price("a", 3, 4, table) == Price(input=3, output=4)
    assert find_price("c", prices=table) is None
    assert find_price("c") is None
    with pytest.raises(RequestError, match=r"prices\.yaml, b: 'input'"):
        find_price("b", prices=table)
    with pytest.raises(RequestError, match="give both"):
        find_price("x", price_in=3)


def test_a_limit_of_money_without_a_price_is_refused_with_the_reason():
    check_max_cost(None, None, "m")
    check_max_cost(1.0, Price(input=0, output=0), "m")
    with pytest.raises(RequestError, match="price of 'm'"):
        check_max_cost(1.0, None, "m")
