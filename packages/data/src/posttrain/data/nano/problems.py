"""Word problems of one to three operations with worked solutions, the nano lab's GSM8K.

A problem is drawn, not stored: `draw_problem` gives the numbers, operations and wording; `question` its text;
`solution` a worked answer in one of three styles that ends in `#### N`. The styles matter: the demonstrations mix
them, and careful steps are right more often than the rest, which is what reinforcement learning finds out.
"""

import random
from dataclasses import dataclass
from typing import Literal

from posttrain.data.nano.arithmetic import Operation, apply, draw_operation, expression
from posttrain.data.nano.splits import SHARES, Split, split_of

Style = Literal["steps", "collapsed", "bare"]

PEOPLE = (
    ("Tom", "he"), ("Ben", "he"), ("Sam", "he"), ("Max", "he"), ("Leo", "he"), ("Dan", "he"), ("Jack", "he"),
    ("Finn", "he"), ("Anna", "she"), ("Mia", "she"), ("Lucy", "she"), ("Emma", "she"), ("Rosa", "she"),
    ("Nina", "she"), ("Ella", "she"), ("Kate", "she"),
)  # fmt: skip
ITEMS = (
    "apples", "books", "coins", "cards", "shells", "stamps", "pens", "eggs", "nuts", "balls", "keys", "cups", "beads",
    "plums", "toys", "rings",
)  # fmt: skip
EVENTS = {
    "+": ("{P} buys {n} more.", "{P} finds {n} more.", "A friend gives {name} {n} more."),
    "-": ("{P} gives away {n}.", "{P} loses {n}.", "{P} sells {n}."),
    "*": ("Then {p} gets {n} times as many.", "The number grows to {n} times as many."),
    "/": ("{P} shares them equally among {n} boxes and keeps one box.", "{P} keeps one of {n} equal parts."),
}
QUESTIONS = ("How many {items} does {name} have now?", "How many {items} are left for {name}?")
OPERATIONS = (0.20, 0.65)
"""Cumulative shares of problems with one and with two operations; the rest have three."""


@dataclass(frozen=True)
class Problem:
    """A problem's content and words. `wording` picks a template for each operation, its last number the question's."""

    start: int
    operations: tuple[Operation, ...]
    person: int
    item: int
    wording: tuple[int, ...]

    @property
    def values(self) -> tuple[int, ...]:
        """Value after each operation, the last one is the answer."""
        values = [self.start]
        for operation in self.operations:
            values.append(apply(values[-1], operation))
        return tuple(values[1:])

    @property
    def answer(self) -> int:
        return self.values[-1]

    @property
    def key(self) -> str:
        """What decides the split: the chain of numbers. One operation is too common alone: who and what join it."""
        chain = f"{self.start}" + "".join(f"{symbol}{n}" for symbol, n in self.operations)
        return chain if len(self.operations) > 1 else f"{chain} {PEOPLE[self.person][0]} {ITEMS[self.item]}"

    @property
    def split(self) -> Split:
        return split_of("problem", self.key, SHARES)


def draw_problem(rng: random.Random, split: Split) -> Problem:
    """Draw a problem of a split: one, two or three operations for 20, 45 and 35 per cent of draws."""
    while True:
        start = value = 2 + int(rng.random() * 19)
        share = rng.random()
        operations: list[Operation] = []
        for _ in range(1 + sum(share >= bound for bound in OPERATIONS)):
            operations.append(draw_operation(rng, value))
            value = apply(value, operations[-1])
        person, item = int(rng.random() * len(PEOPLE)), int(rng.random() * len(ITEMS))
        wording = tuple(int(rng.random() * 6) for _ in range(len(operations) + 1))
        problem = Problem(start, tuple(operations), person, item, wording)
        if problem.split == split:
            return problem


def question(problem: Problem) -> str:
    """The problem's text, ending in its question."""
    name, pronoun = PEOPLE[problem.person]
    items = ITEMS[problem.item]
    sentences = [f"{name} has {problem.start} {items}."]
    for (symbol, n), word in zip(problem.operations, problem.wording, strict=False):
        events = EVENTS[symbol]
        sentences.append(events[word % len(events)].format(P=pronoun.capitalize(), p=pronoun, n=n, name=name))
    sentences.append(QUESTIONS[problem.wording[-1] % len(QUESTIONS)].format(items=items, name=name))
    return " ".join(sentences)


def working(problem: Problem, style: Style) -> str:
    """The calculation alone: `<<12+5=17>> <<17*3=51>>`, `<<(12+5)*3=51>>`, or nothing for "bare"."""
    if style == "bare":
        return ""
    if style == "collapsed":
        return f"<<{expression(problem.start, problem.operations)}={problem.answer}>>"
    steps, value = [], problem.start
    for operation, result in zip(problem.operations, problem.values, strict=True):
        steps.append(f"<<{value}{operation.symbol}{operation.operand}={result}>>")
        value = result
    return " ".join(steps)


def solution(problem: Problem, style: Style = "steps") -> str:
    """Worked answer that ends in `#### N`, as in GSM8K."""
    return f"{working(problem, style)}\n#### {problem.answer}".lstrip("\n")
