"""Whether one method wins over another, by the house's definition, with every condition that failed in words.

Method wins over X: instruction following (the headline) is up with corrected p < 0.05, no other task is down with
corrected p < 0.05, and the headline difference has the same sign on every seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan

from posttrain.core.statistics.clustered import Comparison
from posttrain.core.statistics.power import ALPHA


@dataclass(frozen=True)
class Verdict:
    """Whether `method` wins over `over`, and why not."""

    method: str
    over: str
    wins: bool
    failed: tuple[str, ...]
    """A clause for every condition that failed, with its numbers."""
    notes: tuple[str, ...]
    """What a reader has to know beside it, such as that there was one seed."""

    @property
    def sentence(self) -> str:
        """The verdict in one line."""
        noted = "".join(f" ({note})" for note in self.notes)
        if self.wins:
            return f"{self.method} wins over {self.over}{noted}."
        return f"{self.method} does not win over {self.over}: {'; '.join(self.failed)}{noted}."


def wins(
    method: str,
    over: str,
    comparisons: Mapping[str, Comparison],
    corrected: Mapping[str, float],
    headline: str,
    by_seed: Mapping[int, float],
) -> Verdict:
    """The verdict on `method − over`.

    `comparisons` and `corrected` hold, by task, the difference and its Holm-corrected p-value; what belongs to the
    family is the caller's to say (everything that the table compares). `by_seed` holds the headline difference of each
    seed of `method`; with one seed the third condition holds idly, and a note says so. A task whose p-value is NaN
    fails its condition: what was not compared is not known to be no loss. ValueError for tasks without a corrected p,
    an unknown headline or no seed.
    """
    if headline not in comparisons or set(comparisons) != set(corrected) or not by_seed:
        raise ValueError(
            f"the verdict needs the headline '{headline}' and a corrected p for each of {sorted(comparisons)} "
            f"(there are {sorted(corrected)}), and a seed (there are {len(by_seed)})"
        )
    failed = []
    if not (comparisons[headline].value > 0 and corrected[headline] < ALPHA):
        shown = _shown(comparisons[headline], corrected[headline])
        failed.append(f"{headline} is not up beyond noise: {shown}; it has to be up with p < {ALPHA}")
    for task, comparison in comparisons.items():
        if task == headline:
            continue
        if isnan(corrected[task]):
            failed.append(f"{task} could not be compared, so it may be down")
        elif comparison.value < 0 and corrected[task] < ALPHA:
            failed.append(f"{task} is down: {_shown(comparison, corrected[task])}")
    if not (all(value > 0 for value in by_seed.values()) or all(value < 0 for value in by_seed.values())):
        signs = ", ".join(f"seed {seed} {value:+.4f}" for seed, value in by_seed.items())
        failed.append(f"{headline} has not the same sign on every seed: {signs}")
    notes = (f"one seed: whether the sign of {headline} repeats is not known",) if len(by_seed) == 1 else ()
    return Verdict(method, over, not failed, tuple(failed), notes)


def p_in_words(p: float, name: str = "p") -> str:
    """`p = 0.0312`, or `p < 0.001`; three digits, so that 0.0496 does not read as 0.05."""
    return f"{name} < 0.001" if p < 0.001 else f"{name} = {p:.3g}"


def _shown(comparison: Comparison, corrected: float) -> str:
    return f"{comparison.value:+.4f} ± {comparison.standard_error:.4f}, {p_in_words(corrected, 'corrected p')}"
