"""`random:NAME`: a checkpoint of real architecture and random weights, made here, so that a recipe runs without a Hub.

Deterministic by name and version, made once and kept in the user's cache; nano's tokenizer with its chat template,
padded to the model's vocabulary (rows that no token has, as Qwen2.5's own has some). It has learnt nothing, but that an
answer ends: what a run of it shows is that every stage works, never how well.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from posttrain.core.errors import RequestError, suggest
from posttrain.core.files import atomic_directory
from posttrain.core.seeds import derive_seed
from posttrain.lab.model_shapes import KNOWN

PREFIX = "random:"
VERSION = 2
"""Raised when the same name gives other weights."""
LENGTH = 12
"""Tokens of an answer, about: short, so that a stage takes seconds."""

TINY: Mapping[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1152,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "dtype": "float32",
}
"""Two layers: a stage of a few steps takes seconds on a CPU. The context holds what recipes ask for, in nano's tokens,
which are shorter than Qwen2.5's."""

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "qwen2-tiny": TINY,
    **{name.rpartition("/")[2].lower(): config for name, config in KNOWN.items()},
}
"""By name what can be made: two layers, or the shape of a published model (`random:qwen2.5-0.5b`)."""


def is_random(model: str) -> bool:
    """Whether a recipe's model is one to be made here."""
    return model.startswith(PREFIX)


def random_config(model: str) -> Mapping[str, Any]:
    """The configuration of `random:NAME`; RequestError for an unknown name."""
    name = model.removeprefix(PREFIX)
    if name not in CONFIGS:
        raise RequestError(f"model '{model}': there is no random model '{name}' {suggest(name, CONFIGS)}")
    return CONFIGS[name]


def random_model(model: str) -> Path:
    """The folder of `random:NAME`, made on first use; RequestError for an unknown name."""
    config = random_config(model)
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "posttrain" / "random"
    folder = root / f"{model.removeprefix(PREFIX)}-{VERSION}"
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():  # another process may have made it meanwhile
                _make(config, folder)
    return folder


def _make(config: Mapping[str, Any], folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from posttrain.data import nano
    from posttrain.data.tokenizer import load_tokenizer
    from posttrain.trainers.quiet import quiet

    tokenizer = load_tokenizer(nano.BASE)
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    settings = AutoConfig.for_model(**{**config, **special})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(0, PREFIX, folder.name))
        model = AutoModelForCausalLM.from_config(settings, dtype=getattr(torch, config["dtype"]))
    _end_answers(model, tokenizer.eos_token_id)
    with quiet(), atomic_directory(folder) as new:
        model.save_pretrained(new, safe_serialization=True)
        tokenizer.save_pretrained(new)


def _end_answers(model: Any, end: int) -> None:
    """Gives the end token a probability of about 1/LENGTH everywhere: all embeddings get a common direction u, so that
    hidden states have one too, and the end token more of it. Without finished answers there are no pairs of them."""
    import torch

    weight = model.get_output_embeddings().weight.data
    common = torch.zeros(weight.shape[1], dtype=weight.dtype)
    common[0] = 1.0
    size = weight.float().norm(dim=1).mean().item()
    for matrix in {m.data_ptr(): m for m in (model.get_input_embeddings().weight.data, weight)}.values():
        matrix += size * common
    # A hidden state has the length √h after its norm, and of that, as measured, .45 along u.
    weight[end] += math.log(weight.shape[0] / LENGTH) / (0.45 * math.sqrt(weight.shape[1])) * common
