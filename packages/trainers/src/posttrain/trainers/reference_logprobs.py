"""The reference's log-probabilities of all pairs, computed once before training and kept with the run's state.

A file holds them with a digest of what they depend on: the reference's weights, the token ids, the precision. A resumed
run reads it; any other file is computed again. No second model stands in memory while the policy trains.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.core.errors import RequestError
from posttrain.core.files import atomic_write_bytes
from posttrain.core.hashing import digest_checkpoint
from posttrain.data.tokenizer import load_tokenizer
from posttrain.trainers.comparisons import Comparison
from posttrain.trainers.forward import Layout
from posttrain.trainers.models import check_max_length, load_policy
from posttrain.trainers.pair_logps import all_pair_logps, pair_layout


@dataclass(frozen=True)
class ReferenceLogps:
    """log π_ref of both answers of each pair, and what they cost when they were computed."""

    values: Float[Tensor, "pairs 2"]
    """Chosen, rejected; nats, fp32, on the CPU."""
    seconds: float


def reference_logps(
    file: Path,
    reference: Path,
    start: Path,
    policy: PreTrainedModel,
    layout: Layout,
    pairs: Sequence[Comparison],
    precision: Literal["fp32", "bf16"],
) -> ReferenceLogps:
    """From `file` if it holds just these, else computed and written there in one step.

    `policy`, with its `layout`, is `start` untrained: where that is the reference too, no other model is loaded.
    RequestError for a reference that cannot be loaded or cannot read the pairs.
    """
    if not reference.is_dir():
        raise RequestError(f"reference {reference} does not exist; give a checkpoint folder")
    key = _key(reference, pairs, precision)
    kept = _read(file, key)
    if kept is not None:
        return kept
    began = time.perf_counter()
    if reference.resolve() != start.resolve():
        policy = load_policy(reference).to(policy.device)
        _check_reads(policy, reference, start, pairs)
        layout = pair_layout(policy)
    found = all_pair_logps(policy, layout, pairs, precision)
    values = torch.stack([found.chosen, found.rejected], dim=1)
    seconds = time.perf_counter() - began
    written = safetensors.torch.save({"values": values}, {"key": key, "seconds": repr(seconds)})
    atomic_write_bytes(file, written)
    return ReferenceLogps(values, seconds)


def _read(file: Path, key: str) -> ReferenceLogps | None:
    if not file.exists():
        return None
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            about = opened.metadata() or {}
            if about.get("key") == key:
                return ReferenceLogps(opened.get_tensor("values"), float(about["seconds"]))
    except safetensors.SafetensorError:
        pass  # damaged outside of this program, whose writes are whole: compute again
    return None


def _key(reference: Path, pairs: Sequence[Comparison], precision: str) -> str:
    sha = hashlib.sha256(f"{digest_checkpoint(reference)} {precision} {len(pairs)}".encode())
    for pair in pairs:
        for ids in (pair.prompt_ids, *pair.answers):
            sha.update(np.array([len(ids), *ids], dtype=np.int64).tobytes())
    return sha.hexdigest()


def _check_reads(model: PreTrainedModel, reference: Path, start: Path, pairs: Sequence[Comparison]) -> None:
    """The ids are those of the start checkpoint's tokenizer, and mean something else to another."""
    if load_tokenizer(reference).get_vocab() != load_tokenizer(start).get_vocab():
        raise RequestError(
            f"reference {reference} has another vocabulary than {start}, so it cannot read the policy's tokens; give a "
            "reference with the same tokenizer"
        )
    check_max_length(model, max(len(ids) for pair in pairs for ids in pair.sequences), f"max_length for {reference}")
