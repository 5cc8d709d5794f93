"""What stands beside every win rate: how far the judge can be trusted, each figure with its interval.

Whether verdicts survive the swap of the two answers, whether the answer shown first is preferred, whether the longer
one is, how often nothing could be read from what the judge wrote, and whether it agrees with people. All that needs
both orders is None where only one was asked: position and quality cannot be told apart then.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit

from posttrain.llm_judge.statistics.estimates import IntervalEstimate, linearised, mean, of, share, verdicts
from posttrain.llm_judge.statistics.pairs import Floats, Pairs

CONSISTENCY = 0.6
"""Below this position consistency a rate comes with a warning. A coin has 50 %; GPT-4 as MT-Bench's judge had 65 %,
GPT-3.5 46 % (Zheng et al. 2023, table 2)."""
VERDICTS = (0, 0.5, 1)
"""All that a judge without probabilities says."""
SURE = 0.99
"""How sure a game of probability 0 or 1 is at least taken to be: such a judge's other label is not even among the
likeliest tokens."""


@dataclass(frozen=True)
class Agreement:
    """Two opinions on the same pairs, where both have one."""

    share: IntervalEstimate
    """Of pairs with the same verdict: A, B or neither."""
    kappa: IntervalEstimate
    """Cohen's κ: 0 is chance, 1 is always. NaN where both only ever say the same one thing."""


@dataclass(frozen=True)
class BiasReport:
    """Of one judge on n pairs."""

    pairs: int
    unparsed: IntervalEstimate
    """Share of games without a verdict."""
    consistency: IntervalEstimate | None
    """Share of pairs of different answers whose verdict, A, B or neither, survives the swap."""
    equal: int
    """Pairs of equal answers, whose swap changes nothing: they are not in `consistency`."""
    first_position: IntervalEstimate | None
    """How often the answer shown first is preferred, quality cancelling over both orders: ½ is no bias."""
    position_log_odds: IntervalEstimate | None
    """The bias that shifts the judge's log-odds towards the first position, the same in all pairs: 0 is none."""
    length_correlation: IntervalEstimate
    """Pearson's, of the preference for B with how much longer B is, (B − A) / (B + A)."""
    human: Agreement | None
    """With human labels; None where there are none."""

    def warnings(self, threshold: float = CONSISTENCY) -> tuple[str, ...]:
        """What a reader of the rate has to know, a sentence each."""
        if self.consistency is None:
            return ("Only one order was asked: the rate carries the judge's position bias, whatever that is.",)
        if not self.consistency.value < threshold:
            return ()
        low, high = self.consistency.interval
        unstable = (
            f"Only {100 * self.consistency.value:.1f} % of the verdicts survive the swap of the two answers "
            f"({100 * low:.1f} to {100 * high:.1f}; under {100 * threshold:.0f} %): this judge follows the position "
            "more than a rate should rest on."
        )
        return (unstable,)


def bias_report(pairs: Pairs) -> BiasReport:
    """Everything in it is clustered by prompt; pairs without a verdict in an order count as unparsed and no further."""
    orders = [pairs.first] if pairs.second is None else [pairs.first, pairs.second]
    unread = np.isnan(np.concatenate(orders))
    known = ~np.isnan(pairs.preference)
    prompts = of(pairs.prompts, known)
    first, second = pairs.first[known], None if pairs.second is None else pairs.second[known]
    differ = pairs.different[known]
    labelled = not bool(np.isnan(pairs.human).all())
    return BiasReport(
        pairs=len(pairs.first),
        unparsed=share(unread, list(pairs.prompts) * len(orders)),
        consistency=None
        if second is None
        else share((verdicts(first) == verdicts(second))[differ], of(prompts, differ)),
        equal=int(np.count_nonzero(~pairs.different)),
        first_position=None if second is None else mean((1 - first + second) / 2, prompts),
        position_log_odds=None if second is None else position_log_odds(first, second, prompts),
        length_correlation=length_correlation(pairs),
        human=agreement(pairs.preference, pairs.human, pairs.prompts) if labelled else None,
    )


def position_log_odds(first: ArrayLike, second: ArrayLike, prompts: Sequence[Hashable]) -> IntervalEstimate:
    """The position bias δ of a judge whose log-odds for B are its own of the pair, − δ where A is shown first, + δ
    where B is; from P(B is better) in both orders, (n,) each, without NaN.

    From probabilities, half the difference of the log-odds, averaged with weights p (1 − p) at the pair's mean
    log-odds, by which the all but certain count little. Noise of the single games leaves it where it is: given the sum
    of two alike and independent ones, neither is the larger on average. A game of probability 0 or 1, whose log-odds
    nobody knows, counts as one as sure as the surest of the others, at least `SURE`: what is beyond that is cut off
    (a Winsorised mean), which errs towards 0 rather than away from it.

    Of a judge who says `VERDICTS` alone, ½ ln(Σ (1 − first) · second / Σ first · (1 − second)): in each pair these two
    have the ratio e^{2δ}, whatever the pair's own log-odds (the Mantel–Haenszel estimator with a stratum a pair; for
    verdicts of 0 and 1, half the log of McNemar's odds ratio). Here noise of the games makes δ smaller, as it does all
    log-odds of verdicts. Infinite where all disagreements point to the same position, NaN where there are none.
    """
    f, s = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if not np.isin([f, s], VERDICTS).all():
        log_odds = logit([f, s])
        surest = max(float(logit(SURE)), float(np.abs(log_odds[np.isfinite(log_odds)]).max()))
        of_first, of_second = np.clip(log_odds, -surest, surest)
        own, shift = (of_second + of_first) / 2, (of_second - of_first) / 2
        weight = expit(own) * expit(-own)
        value = float(weight @ shift / weight.sum())
        return linearised(value, weight * (shift - value) / weight.mean(), prompts)
    towards_first, towards_second = (1 - f) * s, f * (1 - s)
    a, b = (float(x.mean()) if len(f) else 0.0 for x in (towards_first, towards_second))
    if a == 0 or b == 0:
        value = np.nan if a == b else np.inf if b == 0 else -np.inf
        return IntervalEstimate(value, np.nan, len(f), (np.nan, np.nan))
    return linearised(float(np.log(a / b)) / 2, (towards_first / a - towards_second / b) / 2, prompts)


def length_correlation(pairs: Pairs) -> IntervalEstimate:
    """Of the preference for B with (B − A) / (B + A) of the lengths; NaN where one of them does not vary.

    The interval is the delta method's on Fisher's z = artanh r, clustered; the influence of a pair on r is
    x y − r (x² + y²) / 2 for standardised x, y (Devlin, Gnanadesikan and Kettenring 1975).
    """
    preference, both = pairs.preference, pairs.length_a + pairs.length_b
    longer = np.divide(pairs.length_b - pairs.length_a, both, out=np.zeros_like(preference), where=both != 0)
    known = ~np.isnan(preference + longer)
    x, y = longer[known], preference[known]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return IntervalEstimate(np.nan, np.nan, len(x), (np.nan, np.nan))
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    r = float(np.clip((x * y).mean(), -1, 1))
    found = linearised(r, x * y - r * (x**2 + y**2) / 2, of(pairs.prompts, known))
    if abs(r) == 1:
        return found
    low, high = (np.tanh(np.arctanh(r) + (bound - r) / (1 - r**2)) for bound in found.interval)
    return IntervalEstimate(r, found.standard_error, len(x), (float(low), float(high)))


def agreement(one: ArrayLike, other: ArrayLike, prompts: Sequence[Hashable]) -> Agreement:
    """Of two opinions, P(B is better) (n,) each, NaN where there is none: of a judge with people or another judge.

    They are compared as verdicts, A, B or neither. The standard error of κ is Fleiss, Cohen and Everitt's (1969) large
    sample one, clustered by prompt. ValueError for unequal lengths.
    """
    # statsmodels takes most of a second to import, and whoever has no labels should not wait for it.
    from statsmodels.stats.inter_rater import cohens_kappa

    a, b = verdicts(one), verdicts(other)
    if a.shape != b.shape or len(a) != len(prompts):
        raise ValueError(
            f"opinions of shape {a.shape} and {b.shape} on {len(prompts)} prompts are not of the same pairs"
        )
    known = ~np.isnan(a + b)
    clusters = [prompt for prompt, taken in zip(prompts, known, strict=True) if taken]
    rows, columns = (2 * a[known]).astype(int), (2 * b[known]).astype(int)
    same = share(rows == columns, clusters)
    if not len(rows):
        return Agreement(same, same)
    table = np.zeros((3, 3))
    np.add.at(table, (rows, columns), 1)
    by_row, by_column = table.sum(axis=1) / table.sum(), table.sum(axis=0) / table.sum()
    by_chance = float(by_row @ by_column)
    if by_chance == 1:
        return Agreement(same, IntervalEstimate(np.nan, np.nan, len(rows), (np.nan, np.nan)))
    kappa = float(cohens_kappa(table, return_results=False))
    # d κ = (d p_o − (1 − κ) d p_e) / (1 − p_e), and to p_e a pair in cell (i, j) adds the shares of column i and row j.
    chance = by_column[rows] + by_row[columns]
    influence: Floats = ((rows == columns) - (1 - kappa) * chance) / (1 - by_chance)
    return Agreement(same, linearised(kappa, influence, clusters))
