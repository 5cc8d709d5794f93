"""Masked sums, means, whitening and explained variance."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.trainers.masked import explained_variance, masked_mean, masked_sum, whiten

cells = st.lists(st.tuples(st.floats(-9, 9), st.booleans()), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(cells)
def test_masked_sum_and_mean_ignore_even_nan(rows):
    mask = torch.tensor([m for _, m in rows])
    values = torch.tensor([v if m else math.nan for v, m in rows], dtype=torch.float64)
    kept = [v for v, m in rows if m]
    assert float(masked_sum(values, mask)) == pytest.approx(sum(kept), abs=1e-9)
    assert float(masked_mean(values, mask)) == pytest.approx(sum(kept) / max(len(kept), 1), abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(cells.filter(lambda rows: sum(m for _, m in rows) > 1))
def test_whitened_values_equal_the_plain_formula(rows):
    mask = torch.tensor([m for _, m in rows])
    values = torch.tensor([v for v, _ in rows], dtype=torch.float64)
    kept = [v for v, m in rows if m]
    mean, variance = statistics.fmean(kept), statistics.pvariance(kept)
    whitened, scaled = whiten(values, mask), whiten(values, mask, shift_mean=False)
    for i, (v, m) in enumerate(rows):
        expected = (v - mean) / math.sqrt(variance + 1e-8) if m else 0
        assert float(whitened[i]) == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert float(scaled[i]) == pytest.approx(expected + mean if m else 0, rel=1e-6, abs=1e-6)


def test_whitening_by_hand():
    # (1, 3): mean 2, deviation 1
    assert torch.allclose(
        whiten(torch.tensor([1.0, 3.0, 50.0]), torch.tensor([True, True, False])), torch.tensor([-1.0, 1.0, 0.0])
    )


def test_constant_values_whiten_to_zero():
    assert (whiten(torch.full((2, 3), 5.0), torch.ones(2, 3, dtype=torch.bool)) == 0).all()


def test_explained_variance_of_a_perfect_a_mean_and_a_useless_critic():
    targets, mask = torch.tensor([1.0, 2.0, 3.0, 99.0]), torch.tensor([True, True, True, False])
    assert explained_variance(targets, targets, mask) == 1
    assert explained_variance(torch.full((4,), 2.0), targets, mask) == pytest.approx(0)
    assert explained_variance(-targets, targets, mask) == pytest.approx(-3)  # Var(2·targets) = 4 Var(targets)
    assert math.isnan(explained_variance(targets, torch.ones(4), mask))
