"""All that is said of one judge on one A and one B, as records hold it: rates in AlpacaEval's names, and the biases."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from posttrain.llm_judge.statistics.bias import bias_report
from posttrain.llm_judge.statistics.length_controlled import equal_length_rate, length_controlled
from posttrain.llm_judge.statistics.pairs import Floats, Pairs
from posttrain.llm_judge.statistics.win_rate import win_rate

LENGTH_CONTROLLED = ("length_controlled_win_rate", "lc_standard_error", "lc_weights")


def scores(
    pairs: Pairs, difficulty: Floats | None = None, weights: tuple[float, float] | None = None
) -> dict[str, Any]:
    """JSON of B's rates over A in per cent, as AlpacaEval prints them, with counts, `bias` and `warnings`.

    `standard_error` is clustered by prompt; `independent_standard_error` is AlpacaEval's, the same where each prompt
    occurs once. The length-controlled rate needs the `difficulty` (n,) of the instructions, and is null, with a
    warning, where the data do not determine it; `weights`, θ and ψ, take the place of a fit. What stands under `bias`
    is in shares, not in per cent; what is not known is null. ValueError where no pair has a preference.
    """
    found, bias = win_rate(pairs), bias_report(pairs)
    warnings, controlled = list(bias.warnings()), dict.fromkeys(LENGTH_CONTROLLED)
    if difficulty is not None:
        try:
            controlled = _length_controlled(pairs, difficulty, weights)
        except ValueError as error:
            warnings.append(f"No length-controlled win rate: {error}.")
    said = {
        "win_rate": 100 * found.rate.value,
        "standard_error": 100 * found.rate.standard_error,
        "independent_standard_error": 100 * found.independent_error,
        "discrete_win_rate": 100 * found.discrete,
        "n_wins": found.wins,
        "n_losses": found.losses,
        "n_draws": found.draws,
        "n_total": found.rate.n,
        **controlled,
        "bias": asdict(bias),
        "warnings": warnings,
    }
    return {key: as_json(value) for key, value in said.items()}


def _length_controlled(pairs: Pairs, difficulty: Floats, weights: tuple[float, float] | None) -> dict[str, Any]:
    if weights:
        theta, psi = weights
        rate, used = equal_length_rate(theta, psi, difficulty, pairs.prompts), {"theta": theta, "psi": psi}
    else:
        found = length_controlled(pairs, difficulty)
        rate = found.rate
        used = {key: value for key, value in asdict(found).items() if key != "rate"}
    return dict(zip(LENGTH_CONTROLLED, (100 * rate.value, 100 * rate.standard_error, used), strict=True))


def as_json(value: Any) -> Any:
    """`value` as JSON takes it: None for what is not finite."""
    if isinstance(value, Mapping):
        return {key: as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
