"""The gold rewards of the nano lab, 0 to 1: word problems and verifiable instructions.

A problem (`{"answer": "12"}`) gives 1 when the number after the first `####` equals the answer, else 0: the strict
match by which the problems are evaluated. An instruction (`{"instructions": [{"id": …, "kwargs": {…}}, …]}`) gives
the share of its instructions that the completion obeys, so that obeying one of two is a step in the right direction;
all-or-nothing over the prompt is the evaluation's business.
"""

import re

from posttrain.core.errors import RequestError
from posttrain.data.nano import instructions
from posttrain.reward_model.verifiers.answers import cut
from posttrain.reward_model.verifiers.base import Prompt, Reference, Verifier
from posttrain.reward_model.verifiers.numbers import number_value, same_number

_STRICT = re.compile(r"#### (-?[0-9.,]+)")


def problem_reward(completion: str, answer: str) -> float:
    """1.0 when the first `#### N` of the completion equals `answer` as a number, else 0.0."""
    stated = _STRICT.search(cut(completion))
    return float(stated is not None and same_number(stated.group(1).rstrip(".,"), answer))


def instruction_reward(completion: str, wanted: list[dict]) -> float:
    """The share of the wanted instructions that the completion obeys, 0.0 to 1.0."""
    text = cut(completion)
    return sum(instructions.check(one["id"], one.get("kwargs") or {}, text) for one in wanted) / len(wanted)


def reward(prompt: Prompt, completion: str, reference: Reference) -> float:
    """The reward of the kind that the reference names."""
    if "instructions" in reference:
        return instruction_reward(completion, reference["instructions"])
    return problem_reward(completion, str(reference["answer"]))


def check(reference: Reference) -> None:
    """RequestError when the reference is neither a problem's nor an instruction's."""
    if isinstance(reference, dict) and "instructions" in reference:
        _check_instructions(reference["instructions"])
    elif not isinstance(reference, dict) or number_value(str(reference.get("answer"))) is None:
        raise RequestError("the reference must be {'answer': a number} or {'instructions': [{'id': …, 'kwargs': {…}}]}")


def _check_instructions(wanted: Reference) -> None:
    if not isinstance(wanted, list) or not wanted:
        raise RequestError("the reference's 'instructions' must be a list of at least one {'id': …, 'kwargs': {…}}")
    for number, one in enumerate(wanted):
        if not isinstance(one, dict) or not isinstance(one.get("kwargs") or {}, dict):
            raise RequestError(f"instruction {number} of the reference must be {{'id': …, 'kwargs': {{…}}}}")
        try:
            # A blank text obeys nothing and would not show a missing argument.
            instructions.check(one["id"], one.get("kwargs") or {}, "word")
        except (KeyError, TypeError, ValueError, AttributeError):
            raise RequestError(f"instruction {number} of the reference has an unknown id or wrong kwargs") from None


NANO = Verifier(name="nano", version="1", score=reward, check=check)
