r"""The MATH reward: 1 when the answer that a completion boxes last (`\boxed{…}`) equals the gold answer, else 0.

Equal means: the same LaTeX once spelling is taken off (spacing, `\left`, `\dfrac`, `\frac12`, units in `\text{…}`,
degrees, percent and dollar signs, a leading `x =`), or the same number (`\frac{1}{2}` = 1/2 = 0.5 = .50). This is the
usual comparison of the benchmark (Hendrycks et al. 2021, "Measuring Mathematical Problem Solving With the MATH
Dataset"), which knows no algebra: x+1 and 1+x differ.

The reference is the gold answer, a text or `{"math": text}`.
"""

import re

from posttrain.core.errors import RequestError
from posttrain.data.boxed import last_boxed
from posttrain.reward_model.verifiers.answers import cut
from posttrain.reward_model.verifiers.base import Prompt, Reference, Verifier
from posttrain.reward_model.verifiers.numbers import same_number

MAX_CHARACTERS = 500
"""Longer texts are no answers; they are compared as they stand, so that no text costs much."""

_ROW = re.compile(r"\\\\")
_NOTHING = re.compile(
    r"\\left(?![A-Za-z])|\\right(?![A-Za-z])|\\[!,;: ]|\^\{?\\circ\}?|\\degree|\\?[%$]|\\displaystyle"
)
_UNIT = re.compile(r"(?<=.)\\(?:text|mbox|textrm|mathrm)\{[^{}]*\}(?:\^\{?\d\}?)?$")
_WORDS = re.compile(r"\\(?:text|mbox|textbf|textrm|mathrm)\{([^{}]*)\}")
_BARE_NUMERATOR = re.compile(r"\\frac\s*([A-Za-z0-9])")
_BARE_DENOMINATOR = re.compile(r"(\\frac\{(?:[^{}]|\{[^{}]*\})*\})\s*([A-Za-z0-9])")
_BARE_ROOT = re.compile(r"\\sqrt\s*([A-Za-z0-9])")
_SMALL_FRACTION = re.compile(r"(-?)(\d+)/(\d+)")
_FRACTION = re.compile(r"(-?)\\frac\{(-?[0-9.]+)\}\{([0-9.]+)\}")


def normalise(answer: str) -> str:
    """An answer in LaTeX without what is spelling only."""
    if len(answer) > MAX_CHARACTERS:
        return answer.strip()
    text = _ROW.sub(r"\\cr ", answer.strip())  # so that a blank behind a row's end is no `\ `
    text = re.sub(r"\\[dtc]frac", r"\\frac", text).replace("{,}", ",")
    text = _NOTHING.sub("", text).strip().rstrip(".").strip()
    text = _WORDS.sub(r"\1", _UNIT.sub("", text).strip())
    text = _BARE_NUMERATOR.sub(r"\\frac{\1}", _BARE_ROOT.sub(r"\\sqrt{\1}", text))
    text = _BARE_DENOMINATOR.sub(r"\1{\2}", text)
    text = "".join(text.split())
    name, equals, value = text.partition("=")
    if equals and len(name) <= 2 and "=" not in value:
        text = value
    return _SMALL_FRACTION.sub(r"\1\\frac{\2}{\3}", text) if _SMALL_FRACTION.fullmatch(text) else text


def equivalent(a: str, b: str) -> bool:
    """Whether two answers are the same LaTeX but for spelling, or the same number."""
    first, second = normalise(a), normalise(b)
    return bool(first) and (first == second or same_number(_plain(first), _plain(second)))


def gold_answer(reference: Reference) -> str:
    """The gold answer; RequestError when the reference holds none."""
    gold = reference.get("math") if isinstance(reference, dict) else reference
    if not isinstance(gold, str) or not gold.strip():
        raise RequestError(r"the reference must hold a gold answer as text: '\frac{1}{2}', or {'math': …} with it")
    return gold


def reward(prompt: Prompt, completion: str, reference: Reference) -> float:
    """0 or 1."""
    answer = last_boxed(cut(completion))
    return float(answer is not None and equivalent(answer, gold_answer(reference)))


def check(reference: Reference) -> None:
    """RequestError when the reference holds no gold answer."""
    gold_answer(reference)


def _plain(text: str) -> str:
    """A fraction of numbers as `1/2`."""
    fraction = _FRACTION.fullmatch(text)
    return f"{fraction[1]}{fraction[2]}/{fraction[3]}" if fraction else text


MATH = Verifier(name="math", version="1", score=reward, check=check)
