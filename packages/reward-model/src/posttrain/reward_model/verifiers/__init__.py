"""Verifiers: rewards that are computed from a known reference instead of learned.

Built in are `gsm8k`, `math`, `nano` and `verifier` (each item by the kind of its reference); a user's own are in
`posttrain.reward_model.functions`.
"""

from posttrain.reward_model.verifiers.answers import extract_answer, is_well_formed
from posttrain.reward_model.verifiers.base import Verifier
from posttrain.reward_model.verifiers.by_kind import BY_KIND
from posttrain.reward_model.verifiers.gsm8k import GSM8K
from posttrain.reward_model.verifiers.math import MATH
from posttrain.reward_model.verifiers.nano import NANO

BUILT_IN: dict[str, Verifier] = {verifier.name: verifier for verifier in (BY_KIND, GSM8K, MATH, NANO)}

__all__ = [
    "BUILT_IN",
    "BY_KIND",
    "GSM8K",
    "MATH",
    "NANO",
    "Verifier",
    "extract_answer",
    "is_well_formed",
]
