"""Bytes that a model takes while it trains, and while it generates: pure functions of its shape and of sizes.

Weights, gradients and optimiser state are counted exactly. Activations are what autograd keeps for the backward pass of
transformers' Llama-family modules with SDPA attention, tensor by tensor, in the manner of Korthikanti et al. 2022
("Reducing Activation Recomputation in Large Transformer Models", section 4.1), whose formula is of another block
(LayerNorm, GELU, whole attention matrix, 2 bytes throughout). They are the peak of a forward and backward pass but for
workspace and fragmentation; tests/test_memory_model.py holds them against measurements.
"""

from dataclasses import dataclass
from typing import Literal

from posttrain.lab.model_shapes import ModelShape

FP32, BF16 = 4, 2
NF4 = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Bytes a weight in NF4 with double quantisation: 4 bits, an 8-bit constant a block of 64, and an fp32 constant for 256
of these (Dettmers et al. 2023, section 3)."""
CONTEXT = 2**29
"""Bytes of a process's CUDA context with its libraries: about half a GiB."""
TILE = (4096, 32_768)
"""Positions and words of the logits that TRL 1.16's fused head has at once (its _CHUNKED_LOGPROB_CHUNK_SIZE)."""
FRAGMENTATION = 0.1
"""Share of tensors' bytes that the caching allocator holds on top: an assumption."""


@dataclass(frozen=True)
class Training:
    """How a model is held while it trains."""

    adapter: Literal["full", "lora", "qlora"] = "full"
    rank: int = 16
    targets: tuple[str, ...] = ()
    dropout: float = 0.0
    """Of the adapter's inputs."""
    bf16: bool = False
    """Mixed precision: trained weights are fp32, frozen ones bf16."""
    checkpointing: bool = False
    """Whether a block's activations are computed again in the backward pass."""
    muon: bool = False
    """Muon on the blocks' matrices, which keeps one moment where AdamW keeps two."""
    entropy: bool = False
    """Whether the loss also asks for the entropy of each distribution, as online methods' does."""
    tiled_head: bool = False
    """Whether the head never makes all logits at once, as TRL's does on a GPU in SFT."""
    mask_bytes: int = 1
    """Of an element of a dropout mask: 1 on a GPU, 4 on a CPU, where torch keeps it as numbers."""


def trained_parameters(shape: ModelShape, how: Training) -> int:
    """Parameters that get a gradient."""
    return shape.parameters if how.adapter == "full" else shape.lora_parameters(how.rank, how.targets)


def weight_bytes(shape: ModelShape, how: Training) -> int:
    """All weights as they lie while training; the adapter's own among them, in fp32.

    Under qlora the blocks' linear layers are NF4, all else fp32 (PEFT's prepare_model_for_kbit_training).
    """
    if how.adapter == "full":
        return FP32 * shape.parameters
    own = FP32 * trained_parameters(shape, how)
    if how.adapter == "qlora":
        rest = shape.parameters - shape.linear_parameters
        return own + round(NF4 * shape.linear_parameters) + FP32 * rest
    return own + (BF16 if how.bf16 else FP32) * shape.parameters


def gradient_bytes(shape: ModelShape, how: Training) -> int:
    """Of all trained parameters, fp32."""
    return FP32 * trained_parameters(shape, how)


def optimizer_bytes(shape: ModelShape, how: Training) -> int:
    """AdamW's two moments in fp32 (Loshchilov, Hutter 2019); of what Muon trains, one (Jordan et al. 2024)."""
    trained = trained_parameters(shape, how)
    if not how.muon:
        return 2 * FP32 * trained
    return 2 * FP32 * trained - FP32 * (shape.linear_parameters if how.adapter == "full" else trained)


def cast_bytes(shape: ModelShape, how: Training) -> int:
    """bf16 copies of fp32 matrices, which autocast keeps from forward to backward: of those that train, and of the
    head that qlora leaves in fp32. A tiled head is cast piece by piece."""
    if not how.bf16:
        return 0
    head = 0 if how.tiled_head else shape.matmul_parameters - shape.linear_parameters
    if how.adapter == "full":
        return BF16 * (shape.linear_parameters + head)
    return BF16 * (trained_parameters(shape, how) + (head if how.adapter == "qlora" else 0))


def block_bytes_a_token(shape: ModelShape, how: Training) -> int:
    """What one block keeps of each token for its backward pass.

    h, q, k, f: sizes of the hidden state, of all queries, of all keys (as of all values), of the MLP. Attention keeps
    q, k, v, its output and a log-sum a head; the MLP gate, silu(gate), up and their product. Trained in full, each norm
    keeps its input and what it normalised, and each matrix its input. A frozen norm keeps its input, a frozen matrix
    nothing; LoRA's A keeps its input (after dropout, so one of its own, with a mask), B its r numbers.
    """
    h, q, k, f = shape.hidden_size, shape.query_size, shape.kv_size, shape.intermediate_size
    width = BF16 if how.bf16 else FP32
    attention = width * (2 * q + 2 * k) + FP32 * shape.num_attention_heads
    if how.adapter == "full":
        # In bf16 autocast gives each of five matrices a copy of its input, where in fp32 some share one.
        inputs = 5 * h if how.bf16 else 2 * h
        return attention + FP32 * (4 * h + 2) + width * (inputs + 4 * f)
    norms = FP32 * (2 * h + 2)
    seen = {"q_proj": h, "k_proj": h, "v_proj": h, "o_proj": q, "gate_proj": h, "up_proj": h, "down_proj": f}
    adapted = sum(seen[name] for name in how.targets)
    lora = width * len(how.targets) * how.rank
    if how.dropout or how.bf16:
        lora += width * adapted + (how.mask_bytes * adapted if how.dropout else 0)
    else:  # inputs are shared: the two norms' outputs, the MLP's product; attention's output is kept already
        targets = set(how.targets)
        lora += width * h * bool(targets & {"q_proj", "k_proj", "v_proj"})
        lora += width * (h * bool(targets & {"gate_proj", "up_proj"}) + f * ("down_proj" in targets))
    return attention + norms + width * 3 * f + lora


def kept_bytes(shape: ModelShape, how: Training, tokens: int) -> int:
    """What all blocks keep of a micro-batch of so many tokens: with checkpointing, their inputs only."""
    if not how.checkpointing:
        return tokens * block_bytes_a_token(shape, how) * shape.num_hidden_layers
    residual = BF16 if how.bf16 and how.adapter != "full" else FP32
    return tokens * shape.num_hidden_layers * residual * shape.hidden_size


def head_bytes(shape: ModelShape, how: Training, positions: int) -> int:
    """Logits of so many positions, in fp32, with their gradient; in bf16 the head's own output or gradient too. With
    entropy, log-probabilities and two of their products stand beside them (posttrain.trainers.token_logprobs).

    A tiled head has one tile, the hidden states' gradient in fp32 and, where it trains, its own before it is added up.
    """
    if how.tiled_head:
        tile = min(positions, TILE[0]) * TILE[1] * (BF16 if how.bf16 else FP32)
        own = FP32 * shape.vocab_size * shape.hidden_size if how.adapter == "full" else 0
        return tile + FP32 * positions * shape.hidden_size + own
    width = (5 if how.entropy else 2) * FP32 + (BF16 if how.bf16 else 0)
    return positions * shape.vocab_size * width


def activation_bytes(shape: ModelShape, how: Training, tokens: int, positions: int) -> int:
    """Most that a forward and backward pass takes beside weights, gradients and moments: `tokens` go through the
    blocks, `positions` of them through the head.

    What blocks keep and autocast's copies, and on top either the head's share or, later, that of a block's backward
    pass: the gradients of two of the MLP's tensors and, with checkpointing, the block's own activations, made again.
    """
    backward = 2 * FP32 * tokens * shape.intermediate_size
    if how.checkpointing:
        backward += tokens * block_bytes_a_token(shape, how)
    return kept_bytes(shape, how, tokens) + cast_bytes(shape, how) + max(head_bytes(shape, how, positions), backward)


def scoring_bytes(shape: ModelShape, how: Training, positions: int) -> int:
    """A pass without gradients that makes logits of so many positions, as on held-out data: the logits, in bf16 the
    head's output beside them, and a copy while they are normalised; two copies in SFT, which picks the answers' first.
    """
    copies = 3 * FP32 if how.tiled_head else 2 * FP32 + (BF16 if how.bf16 else 0)
    return positions * shape.vocab_size * copies


def step_bytes(shape: ModelShape, how: Training, fused: bool) -> int:
    """What the optimiser's step takes for a moment: torch's default, `foreach`, a copy of what it trains."""
    return 0 if fused else FP32 * trained_parameters(shape, how)


def kv_cache_bytes(shape: ModelShape, tokens: int, width: int = FP32) -> int:
    """Keys and values of all blocks of so many tokens."""
    return 2 * shape.num_hidden_layers * shape.kv_size * tokens * width
