"""What a scripted judge says of answers of two models, as arrays: a match without texts, for simulations of thousands.

`lengths` are those that tests write answers of, so that a match with texts is a draw of the same kind.
"""

import numpy as np
from scipy.special import expit

from posttrain.llm_judge.judges.script import Script
from posttrain.llm_judge.statistics.pairs import Floats, Pairs


def lengths(rng: np.random.Generator, n: int, longer: float = 0.0) -> Floats:
    """(2, n) characters of A's answers and of B's, which are longer by that share on average."""
    drawn = rng.lognormal(5, 0.5, (2, n))
    drawn[1] *= 1 + longer
    return drawn.round()


def log_odds(script: Script, better: Floats, longer: Floats, noise: Floats | float = 0.0) -> Floats:
    """(2, n) that B is the better one, in the orders ab and ba. `better` (n,): B's quality less A's; `longer` (n,):
    its length; `noise` (2, n): of each game, for B."""
    length = longer / script.length_scale
    length = np.tanh(length) if script.length_form == "tanh" else length
    second = np.array([[script.position_bias], [-script.position_bias]])
    return better + script.length_bias * length + second + noise


def scripted_pairs(
    rng: np.random.Generator,
    script: Script,
    prompts: int,
    *,
    comparisons: int = 1,
    better: float = 0.0,
    spread: float = 1.0,
    of_prompt: float = 0.0,
    longer: float = 0.0,
    drawn: bool = False,
) -> tuple[Pairs, Floats]:
    """`comparisons` on each prompt, and what B gains on each prompt, its difficulty (n,).

    Qualities of answers are normal with standard deviation `spread`, B's higher by `better` and by what is drawn for
    the prompt with `of_prompt`. A verdict is a probability or, `drawn`, 0 or 1. What the script garbles for good is
    not known.
    """
    n = prompts * comparisons
    prompt = np.repeat(np.arange(prompts), comparisons)
    difficulty = of_prompt * rng.normal(size=prompts)[prompt]
    quality_a, quality_b = spread * rng.normal(size=(2, n))
    length_a, length_b = lengths(rng, n, longer)
    noise = script.noise * rng.normal(size=(2, n))
    said = expit(log_odds(script, better + difficulty + quality_b - quality_a, length_b - length_a, noise))
    if drawn:
        said = (rng.random((2, n)) < said).astype(float)
    said[rng.random((2, n)) < script.garbage_rate * script.stubborn] = np.nan
    pairs = Pairs(said[0], said[1], [f"p{number}" for number in prompt], length_a, length_b, np.full(n, np.nan))
    return pairs, difficulty
