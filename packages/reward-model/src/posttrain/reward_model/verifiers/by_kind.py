"""The source `verifier`: each item is scored by the verifier of its own kind, told by the key that its reference has.

`{"gsm8k": …}` by the GSM8K reward (0 to 1.2), `{"math": …}` by the MATH reward (0 or 1), `{"answer": …}` and
`{"instructions": …}` by the nano lab's (0 to 1). This is the recipes' gold reward, and lets one request mix kinds.
"""

from posttrain.core.errors import RequestError
from posttrain.reward_model.verifiers.base import Prompt, Reference, Verifier
from posttrain.reward_model.verifiers.gsm8k import GSM8K
from posttrain.reward_model.verifiers.math import MATH
from posttrain.reward_model.verifiers.nano import NANO

KINDS: dict[str, Verifier] = {"gsm8k": GSM8K, "answer": NANO, "instructions": NANO, "math": MATH}


def verifier_of(reference: Reference) -> Verifier:
    """The verifier whose key the reference has; RequestError unless it has exactly one of them."""
    keys = [key for key in KINDS if key in reference] if isinstance(reference, dict) else []
    if len(keys) != 1:
        raise RequestError(f"the reference must be an object with exactly one of the keys {', '.join(KINDS)}")
    return KINDS[keys[0]]


def reward(prompt: Prompt, completion: str, reference: Reference) -> float:
    """The reward by the verifier of the reference's kind."""
    return verifier_of(reference).score(prompt, completion, reference)


def check(reference: Reference) -> None:
    """RequestError when the reference names no kind, or that kind's verifier refuses it."""
    verifier_of(reference).check(reference)


VERSION = str(1 + sum(int(verifier.version) - 1 for verifier in (GSM8K, NANO)))
"""Rises whenever that of a kind does."""

BY_KIND = Verifier(name="verifier", version=VERSION, score=reward, check=check)
