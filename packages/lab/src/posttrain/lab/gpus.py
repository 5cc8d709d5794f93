"""GPUs that a run may be planned for: memory, peak rates and bandwidth, from the makers' data sheets."""

from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.core.errors import RequestError, suggest

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """A card. Rates are dense, without sparsity."""

    title: str
    memory_gib: float
    """What the driver leaves to programs, in GiB: a card of 24 GB has less."""
    bf16_tflops: float
    """Tensor cores, sums in fp32. For a card without bf16, fp16."""
    fp32_tflops: float
    """Not on tensor cores: torch's default for fp32 matrices."""
    bandwidth: float
    """GB/s of its memory."""

    @property
    def memory(self) -> int:
        """Bytes."""
        return int(self.memory_gib * GIB)


GPUS: Mapping[str, Gpu] = {
    "t4": Gpu("NVIDIA T4 (16 GB)", 14.6, 65, 8.1, 320),
    "l4": Gpu("NVIDIA L4 (24 GB)", 22.0, 121, 30.3, 300),
    "a10": Gpu("NVIDIA A10 (24 GB)", 22.0, 125, 31.2, 600),
    "rtx4090": Gpu("NVIDIA RTX 4090 (24 GB)", 23.5, 165, 82.6, 1008),
    "l40s": Gpu("NVIDIA L40S (48 GB)", 44.4, 362, 91.6, 864),
    "a100-40": Gpu("NVIDIA A100 (40 GB)", 39.4, 312, 19.5, 1555),
    "a100-80": Gpu("NVIDIA A100 (80 GB)", 79.1, 312, 19.5, 2039),
    "h100": Gpu("NVIDIA H100 SXM (80 GB)", 79.1, 989, 67, 3350),
    "h200": Gpu("NVIDIA H200 SXM (141 GB)", 139.7, 989, 67, 4800),
}


def find_gpu(name: str) -> Gpu:
    """The card called so; RequestError with the nearest name for an unknown one."""
    if name.lower() not in GPUS:
        raise RequestError(f"--gpu {name}: unknown card {suggest(name.lower(), GPUS)}")
    return GPUS[name.lower()]
