"""Seeds that derive from named places, so that every random number has one and only one origin."""

import hashlib
import random
import sys

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from a path such as `(run_seed, "rollout", step)`: SHA-256, so neighbours are unrelated."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seeds the global generators of random, numpy and, where it is imported already, torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)
