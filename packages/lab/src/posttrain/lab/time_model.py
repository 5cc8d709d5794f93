"""FLOPs and seconds of training and generating on a GPU: pure functions, and an estimate of one kind throughout.

FLOPs are those of the matrices (6 a weight and token, Kaplan et al. 2020, section 2.1) and of attention (Chowdhery et
al. 2022, PaLM, appendix B). Seconds are FLOPs over the card's peak times a stated utilisation, or what reading the
weights takes while decoding. Loading, evaluation, tokenising and waiting are not in them.
"""

from posttrain.lab.gpus import Gpu
from posttrain.lab.memory_model import Training, kv_cache_bytes, trained_parameters
from posttrain.lab.model_shapes import ModelShape

UTILISATION = 0.3
"""Share of a card's peak that training reaches. An assumption: PaLM's 540B reached .46 on TPUs; small models in plain
PyTorch reach less."""
BANDWIDTH_SHARE = 0.6
"""Share of the memory's bandwidth that decoding reaches; an assumption."""
LAUNCH = 5e-4
"""Seconds a block that a plain PyTorch decoding step takes at least, for starting its kernels; an assumption. vLLM's
CUDA graphs have none of it."""


def forward_flops(shape: ModelShape, length: int) -> float:
    """Of a token in a sequence of `length`: 2 a weight, and 4 · length · query size a block for scores and values."""
    return 2.0 * shape.matmul_parameters + 4.0 * shape.num_hidden_layers * shape.query_size * length


def training_flops(shape: ModelShape, how: Training, length: int) -> float:
    """Of a token: forward, and backward twice that. Frozen weights get no gradient of their own, which is a third
    less; checkpointing repeats the blocks' forward pass."""
    attention = 4.0 * shape.num_hidden_layers * shape.query_size * length
    flops = 3 * forward_flops(shape, length)
    if how.adapter != "full":
        flops -= 2.0 * shape.matmul_parameters
        flops += 6.0 * trained_parameters(shape, how)
    if how.checkpointing:
        flops += 2.0 * shape.linear_parameters + attention
    return flops


def compute_seconds(flops: float, gpu: Gpu, bf16: bool, utilisation: float = UTILISATION) -> float:
    """At the card's peak of that precision times `utilisation`."""
    return flops / ((gpu.bf16_tflops if bf16 else gpu.fp32_tflops) * 1e12 * utilisation)


def decode_seconds(
    shape: ModelShape,
    gpu: Gpu,
    sequences: int,
    prompt: int,
    completion: int,
    batch: int,
    width: int,
    launch: float = LAUNCH,
    utilisation: float = UTILISATION,
) -> float:
    """To continue `sequences` prompts of `prompt` tokens by `completion` each, `batch` at a time, weights and cache in
    `width` bytes: the prompts' forward pass, then steps that each read all weights and the cache, at least."""
    bf16 = width == 2
    rounds, at_once = -(-sequences // batch), min(batch, sequences)
    prefill = compute_seconds(sequences * prompt * forward_flops(shape, prompt), gpu, bf16, utilisation)
    read = width * shape.matmul_parameters + kv_cache_bytes(shape, at_once * (prompt + completion // 2), width)
    step = max(
        read / (gpu.bandwidth * 1e9 * BANDWIDTH_SHARE),
        compute_seconds(at_once * forward_flops(shape, prompt + completion // 2), gpu, bf16, utilisation),
        launch * shape.num_hidden_layers,
    )
    return prefill + rounds * completion * step
