"""The GSM8K reward: right answer, and a little for stating it in the expected form.

    reward = min(1.0 · correct + 0.2 · well_formed, 1.2)

`correct`: the answer that `extract_answer` finds equals the gold answer as a number (1,000 = 1000.0 = $1000).
`well_formed`: the completion ends by stating one number in the form `#### N` or `<answer>N</answer>`, right or wrong
(`is_well_formed`). Data and answer form: Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems".

The reference is a gold answer, `{"gsm8k": gold}` or `{"answer": gold}`; gold is a number, a text that is one, or a
whole solution ending in `#### N`.
"""

from posttrain.core.errors import RequestError
from posttrain.reward_model.verifiers.answers import extract_answer, is_well_formed
from posttrain.reward_model.verifiers.base import Prompt, Reference, Verifier
from posttrain.reward_model.verifiers.numbers import number_value, same_number

CORRECT, WELL_FORMED, MOST = 1.0, 0.2, 1.2


def gold_answer(reference: Reference) -> str:
    """The gold answer as text that is one number; RequestError when the reference holds none."""
    gold = reference
    if isinstance(reference, dict):
        gold = reference.get("gsm8k", reference.get("answer"))
    if isinstance(gold, int | float) and not isinstance(gold, bool):
        gold = repr(gold)
    answer = extract_answer(gold) if isinstance(gold, str) else None
    if answer is None or number_value(answer) is None:
        raise RequestError(
            "the reference must hold a gold answer with a number: 72, '72', a solution ending in '#### 72', or "
            "{'gsm8k': …} with one of these"
        )
    return answer


def reward(prompt: Prompt, completion: str, reference: Reference) -> float:
    """0, 0.2, 1.0 or 1.2."""
    correct = same_number(extract_answer(completion) or "", gold_answer(reference))
    return min(CORRECT * correct + WELL_FORMED * is_well_formed(completion), MOST)


def check(reference: Reference) -> None:
    """RequestError when the reference holds no gold answer."""
    gold_answer(reference)


GSM8K = Verifier(name="gsm8k", version="1", score=reward, check=check)
