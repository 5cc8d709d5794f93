"""What devices can do at most, by their makers' data sheets, and how to read one device's figure on another.

Dense bf16 matrix products (sheets often print twice that, for sparse ones) and memory bandwidth. A projection is an
estimate: it takes the measured share of the limit that binds as given, and nothing else of the other device.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """Limits of one device: FLOP/s in bf16, bytes a second, bytes of memory."""

    name: str
    flops: float
    bandwidth: float
    memory: float


def _device(name: str, tflops: float, gb_a_second: float, gb: float) -> Device:
    return Device(name, tflops * 1e12, gb_a_second * 1e9, gb * 1e9)


L4 = _device("L4", 121, 300, 24)

DEVICES = {
    "NVIDIA L4": L4,
    "NVIDIA A100-PCIE-40GB": _device("A100 PCIe 40 GB", 312, 1555, 40),
    "NVIDIA A100-SXM4-40GB": _device("A100 SXM 40 GB", 312, 1555, 40),
    "NVIDIA A100 80GB PCIe": _device("A100 PCIe 80 GB", 312, 1935, 80),
    "NVIDIA A100-SXM4-80GB": _device("A100 SXM 80 GB", 312, 2039, 80),
    "NVIDIA H100 PCIe": _device("H100 PCIe", 756, 2000, 80),
    "NVIDIA H100 NVL": _device("H100 NVL", 835, 3900, 94),
    "NVIDIA H100 80GB HBM3": _device("H100 SXM", 989, 3350, 80),
    "NVIDIA H200 NVL": _device("H200 NVL", 835, 4800, 141),
    "NVIDIA H200": _device("H200 SXM", 989, 4800, 141),
}
"""By the name that CUDA gives; data sheets of NVIDIA, 2020 (A100) to 2024 (H200)."""


def shares(seconds: float, flops: float, moved: float, device: Device | None) -> dict[str, float] | None:
    """`{"compute", "bandwidth"}` as shares of the device's limits; None for a device that is not in the table.

    `flops` and `moved` (bytes) are what the work needs by its definition, not what a program happens to do.
    """
    if device is None:
        return None
    return {"compute": flops / seconds / device.flops, "bandwidth": moved / seconds / device.bandwidth}


def project(rate: float, flops: float, moved: float, seconds: float, here: Device, there: Device) -> float:
    """The rate to expect on another device, if it reaches the same share of the limit that binds here."""
    reached = shares(seconds, flops, moved, here)
    assert reached is not None
    if reached["compute"] >= reached["bandwidth"]:
        return rate * there.flops / here.flops
    return rate * there.bandwidth / here.bandwidth
