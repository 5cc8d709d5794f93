"""The nano lab: a world small enough that a model of a million parameters can learn it in minutes.

Seeded generators of corpora (word problems, an invented world, misconceptions, verifiable instructions), the tokenizer
trained on them, and the base checkpoint pre-trained on them (`BASE`). Everything here works without torch and without
network; training the base is `posttrain.trainers.nano_base`.
"""

from pathlib import Path

GENERATOR_VERSION = 2
"""Raised whenever any generator's output changes. Data descriptions carry it, so it enters config_hash."""

BASE = Path(__file__).parent / "base"
"""Folder of the shipped base checkpoint: weights, config, tokenizer with chat template, model card."""

__all__ = ["BASE", "GENERATOR_VERSION"]
