"""Numbers as people write them in solutions: finding them in text and comparing them as numbers.

Takes text, gives the places of numbers in it and their exact values. A number is an optional sign and currency sign,
digits with or without thousands commas, an optional decimal part, an optional exponent, an optional denominator
(`3/4`) and an optional percent sign, which is dropped: GSM8K's gold answers write 50 % as 50. It does no arithmetic
and knows no words ("forty").

Every pattern is linear in the length of the text: once a digit has matched, nothing behind it can make the match
fail. Values are computed only for numbers of at most MAX_CHARACTERS characters and exponents up to MAX_EXPONENT, so
no text makes huge integers.
"""

import re
from fractions import Fraction

MAX_CHARACTERS = 100
MAX_EXPONENT = 100

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
# A minus between two terms ("10-4", "(2)-1", "x-3") is an operator, not the sign of the second one.
_SIGN = r"(?:(?:(?<![\w)\]])[-+\u2212])?[$€£]?|[$€£][-+\u2212])"
NUMBER = rf"{_SIGN}{_DECIMAL}(?:/[0-9]+(?:\.[0-9]+)?)?%?"
_NUMBER = re.compile(NUMBER, re.ASCII)
_SIGNS_AND_SEPARATORS = str.maketrans({"\u2212": "-", "$": None, "€": None, "£": None, ",": None, "%": None})
_EXPONENT = re.compile(r"[eE]([-+]?[0-9]+)")


def last_number(text: str) -> str | None:
    """The last number in `text` as it is written there, or None. Linear in the length of the text."""
    found = None
    for match in _NUMBER.finditer(text):
        found = match
    return found.group() if found else None


def number_value(text: str) -> Fraction | None:
    """The exact value of a text that is one number and nothing else but white space, or None.

    None too for a number of more than MAX_CHARACTERS characters, an exponent beyond MAX_EXPONENT and a denominator of
    zero: such a text is no answer to anything, and its value would be expensive. `1,000`, `1000.0`, `$1000` and `1e3`
    all give 1000.
    """
    text = text.strip()
    if len(text) > MAX_CHARACTERS or not _NUMBER.fullmatch(text):
        return None
    plain = text.translate(_SIGNS_AND_SEPARATORS)
    if any(abs(int(exponent)) > MAX_EXPONENT for exponent in _EXPONENT.findall(plain)):
        return None
    numerator, _, denominator = plain.partition("/")
    divisor = Fraction(denominator) if denominator else Fraction(1)
    return Fraction(numerator) / divisor if divisor else None


def same_number(a: str, b: str) -> bool:
    """Whether both texts are numbers and equal as numbers; False when either is none."""
    value = number_value(a)
    return value is not None and value == number_value(b)
