"""Dense lines of arithmetic, the part of the base corpus from which the model learns to calculate.

Operations and ranges are those that word problems use: sums to 40, products to 80, factors 2-4, divisors 2-6.
"""

import random
from typing import NamedTuple

SUM_LIMIT = 40
PRODUCT_LIMIT = 80


class Operation(NamedTuple):
    """One step of a chain: `symbol` is one of + - * /, `operand` the number that it takes."""

    symbol: str
    operand: int


def apply(value: int, operation: Operation) -> int:
    """The value after the operation; division is exact in every chain that is drawn here."""
    symbol, n = operation
    if symbol == "+":
        return value + n
    if symbol == "-":
        return value - n
    if symbol == "*":
        return value * n
    return value // n


def draw_operation(rng: random.Random, value: int) -> Operation:
    """Draw an operation that keeps the value between 1 and the limits, each possible kind equally likely."""
    while True:
        symbol = "+-*/"[int(rng.random() * 4)]
        if symbol == "+" and value <= SUM_LIMIT - 2:
            return Operation("+", 2 + int(rng.random() * (SUM_LIMIT - value - 1)))
        if symbol == "-" and value >= 4:
            return Operation("-", 2 + int(rng.random() * (min(value, 26) - 2)))
        if symbol == "*" and value * 2 <= PRODUCT_LIMIT:
            return Operation("*", 2 + int(rng.random() * (min(4, PRODUCT_LIMIT // value) - 1)))
        divisors = [n for n in range(2, 7) if value % n == 0 and value // n >= 2]
        if symbol == "/" and divisors:
            return Operation("/", divisors[int(rng.random() * len(divisors))])


def expression(start: int, operations: tuple[Operation, ...]) -> str:
    """The chain as one expression, evaluated from the left: "(12+5)*3". Brackets only where they are needed."""
    text, last = str(start), ""
    for symbol, n in operations:
        if symbol in "*/" and last in ("+", "-"):
            text = f"({text})"
        text, last = f"{text}{symbol}{n}", symbol
    return text


def arithmetic_document(rng: random.Random) -> str:
    """About eight equations, most of one operation, some of two: "12+5=17 20/4=5 (3+4)*2=14 ..."."""
    lines = []
    for _ in range(8):
        start = 2 + int(rng.random() * (19 if rng.random() < 0.6 else 79))
        first = draw_operation(rng, start)
        value = apply(start, first)
        operations: tuple[Operation, ...] = (first,)
        if rng.random() < 0.2:
            second = draw_operation(rng, value)
            operations, value = (first, second), apply(value, second)
        lines.append(f"{expression(start, operations)}={value}")
    return " ".join(lines)
