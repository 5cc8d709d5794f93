r"""MATH (Hendrycks et al. 2021): competition problems with worked solutions whose answer stands in `\boxed{…}`.

A demonstration answers with the whole solution; a prompt's reference is the boxed answer, as the verifier `math`
takes it.
"""

from typing import Any

from posttrain.data.boxed import last_boxed
from posttrain.data.formats.format import Record, UnusableRow
from posttrain.data.rows import Message


def conversation(record: Record) -> list[Message]:
    """Problem and worked solution."""
    return [
        {"role": "user", "content": record.text("problem")},
        {"role": "assistant", "content": record.text("solution")},
    ]


def prompt(record: Record) -> tuple[list[Message], Any]:
    r"""Problem, and `{"math": answer}`; UnusableRow for a solution without a boxed answer."""
    answer = last_boxed(record.text("solution"))
    if answer is None:
        raise UnusableRow("no boxed answer")
    return [{"role": "user", "content": record.text("problem")}], {"math": answer}
