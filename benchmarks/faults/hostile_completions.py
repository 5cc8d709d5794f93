"""Completions made to hang a verifier: none does, and the time grows no faster than the text.

Draws texts from shapes that break naive patterns (brackets without an end, runs of digits and commas, markers by the
thousand, numbers with endless digits or exponents, combining characters, what is known to blow up backtracking
expressions), cut and joined at random, and gives each to every built-in verifier. Then it fits the processor time of
each shape against its length over doubling sizes: log time = a + b · log length; linear work has b = 1.

It ends with one JSON object and exits 1 when a completion took longer than `--longest` seconds, when b of a shape is
above `--steepest`, or when a verifier raised or gave what is no finite number. One that does not come back at all is
ended by an alarm, and named.

    python -m benchmarks.faults.hostile_completions [--count 100000] [--seed 0]
"""

import argparse
import json
import math
import random
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.machine import machine
from posttrain.reward_model.verifiers import BUILT_IN

SHAPES = {
    "open brackets": "[(<{", "nested brackets": "((()))[[[]]]", "open tags": "<answer>", "closed tags": "</answer>",
    "empty tags": "<answer></answer>", "tags in tags": "<answer><answer>1</answer>", "almost tags": "<answer",
    "digits": "1", "commas": "1,", "thousands": "1,000,", "broken thousands": "1,000,0", "fractions": "1/",
    "decimals": "0.", "exponents": "1e9", "endless exponent": "1e", "signs": "-+$", "percents": "9%", "numbers": "7 ",
    "hashes": "#", "markers": "#### ", "tabbed markers": "####\t", "marked numbers": "#### 1e999999999\n",
    "a then b": "aaaaab", "spaces": " ", "newlines": "\n", "windows newlines": "\r\n", "nulls": "\0",
    "combining": "e\u0301\u0323", "full-width digits": "\uff11\uff12", "arabic digits": "\u0661", "wide": "\U0001f9ee",
    "right to left": "\u202e1", "zero width": "\u200b1", "words": "river ", "bullets": "* a\n", "quotes": "\"'",
    "postscripts": "P.S. \n", "sentences": "A. ", "dots": ".", "minus signs": "\u2212",
}  # fmt: skip
"""Pieces to repeat, by what they are."""

REFERENCES: tuple[tuple[str, Any], ...] = (
    ("gsm8k", {"gsm8k": "72"}),
    ("nano", {"answer": "72"}),
    (
        "verifier",
        {
            "instructions": [
                {"id": "case:lower", "kwargs": {}},
                {"id": "start:word", "kwargs": {"word": "Today"}},
                {"id": "end:word", "kwargs": {"word": "river"}},
                {"id": "keyword:repeat", "kwargs": {"word": "river", "n": 3}},
                {"id": "length:sentences", "kwargs": {"n": 2}},
                {"id": "format:quotes", "kwargs": {}},
                {"id": "format:bullets", "kwargs": {"n": 2}},
                {"id": "format:postscript", "kwargs": {}},
            ]
        },
    ),
)
SIZES = [1 << power for power in range(15, 21)]
"""Lengths of the fit, in characters: shorter texts take too little time to tell."""


def completions(count: int, rng: random.Random) -> Iterator[str]:
    """`count` texts of one to four shapes, most of them of a few hundred characters, one in a thousand of half a
    million."""
    pieces = list(SHAPES.values())
    for number in range(count):
        size = 500_000 if number % 1000 == 999 else int(10 ** rng.uniform(1, 3.3))
        parts = rng.choices(pieces, k=rng.randint(1, 4))
        text = "".join(part * (size // len(parts) // len(part) + 1) for part in parts)
        yield text[rng.randrange(3) :][:size]


def verify(text: str) -> float:
    """Processor seconds in which every verifier read the text; ValueError when a score is not finite."""
    start = time.thread_time()
    for name, reference in REFERENCES:
        score = BUILT_IN[name].score("", text, reference)
        if not math.isfinite(score):
            raise ValueError(f"{name} gave {score}")
    return time.thread_time() - start


def exponent(piece: str) -> float:
    """b of time = a · length^b for a text of one repeated piece: the least of three timings at each size."""
    times = [min(verify(piece * (size // len(piece))) for _ in range(3)) for size in SIZES]
    return float(np.polyfit(np.log(SIZES), np.log(np.maximum(times, 1e-6)), 1)[0])


def main() -> None:
    """Prints the figures; exits 1 when one is beyond its bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=5.0, help="seconds that no completion may take")
    parser.add_argument("--steepest", type=float, default=1.5, help="exponent of time in length that no shape may have")
    wish = parser.parse_args()

    def alarm(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, alarm)
    slowest, characters, total, failed = 0.0, 0, 0.0, ""
    for text in completions(wish.count, random.Random(wish.seed)):
        signal.setitimer(signal.ITIMER_REAL, 60)
        try:
            seconds = verify(text)
        except Exception as error:  # noqa: BLE001 - whatever a verifier raises is a finding
            failed = f"{type(error).__name__} on a text of {len(text)} characters: {text[:60]!r}…"
            break
        slowest, characters, total = max(slowest, seconds), characters + len(text), total + seconds
    signal.setitimer(signal.ITIMER_REAL, 0)
    fitted = {name: exponent(piece) for name, piece in SHAPES.items()} if not failed else {}
    steepest = max(fitted, key=lambda name: fitted[name]) if fitted else ""
    print(
        json.dumps(
            {
                "fault": "hostile completions",
                "completions": wish.count,
                "verifiers": [name for name, _ in REFERENCES],
                "characters": characters,
                "seconds": round(total, 2),
                "slowest_seconds": round(slowest, 4),
                "largest_exponent": round(fitted.get(steepest, 0.0), 3),
                "largest_exponent_of": steepest,
                "failed": failed,
                "machine": machine(),
            }
        )
    )
    sys.exit(bool(failed) or slowest > wish.longest or fitted[steepest] > wish.steepest)


if __name__ == "__main__":
    main()
