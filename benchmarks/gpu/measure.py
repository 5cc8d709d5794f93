"""Times jobs on one device, one after the other, each alone in its memory, and says their shares of its limits.

A job that does not fit the memory is left out with a line; nothing is estimated in its place.
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from statistics import median
from typing import Any

import torch
from transformers import Qwen2Config

from benchmarks.gpu.devices import Device, shares
from benchmarks.gpu.jobs import METHODS, Job, Sizes, reward, rollout

KINDS = ("training", "rollout", "reward")


def measure_all(
    config: Qwen2Config, sizes: Sizes, device: str, limits: Device | None, kinds: tuple[str, ...], rounds: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """An entry a job, and a line for each that did not fit."""
    entries: list[dict[str, Any]] = []
    troubles: list[str] = []
    for name, make in _jobs(config, sizes, device, kinds):
        try:
            with make() as job:
                entries.append(measure(job, device, limits, rounds))
        except torch.OutOfMemoryError:
            troubles.append(f"{name}: left out, it does not fit the memory of this device")
        gc.collect()
        if device != "cpu":
            torch.cuda.empty_cache()
    return entries, troubles


def _jobs(
    config: Qwen2Config, sizes: Sizes, device: str, kinds: tuple[str, ...]
) -> Iterator[tuple[str, Callable[[], AbstractContextManager[Job]]]]:
    if "training" in kinds:
        for name, method in METHODS.items():
            for lora in (False, True):
                yield f"{name} {'LoRA' if lora else 'full'}", partial(method, config, sizes, device, lora)
    if "rollout" in kinds:
        for batch in sizes.batches:
            yield f"rollout, batch {batch}", partial(rollout, config, sizes, device, batch)
    if "reward" in kinds:
        yield "reward scoring", partial(reward, config, sizes, device)


def measure(job: Job, device: str, limits: Device | None, rounds: int) -> dict[str, Any]:
    """The job's rate over `rounds` timed calls after two that warm up, its shares and its peak memory."""
    cuda = device != "cpu"
    for _ in range(2):
        job.call()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    spent = []
    for _ in range(rounds):
        start = time.perf_counter()
        job.call()
        if cuda:
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - start)
    seconds = median(spent)
    reached = shares(seconds, job.flops, job.moved, limits)
    return {
        "job": job.name,
        "unit": job.unit,
        "per_second": _round(job.work / seconds),
        "seconds": [_round(seconds), _round(min(spent)), _round(max(spent))],
        "flops": job.flops,
        "bytes": job.moved,
        "shares": None if reached is None else {name: _round(value) for name, value in reached.items()},
        "peak_memory_gib": _round(torch.cuda.max_memory_allocated() / 2**30) if cuda else None,
        "settings": job.settings,
    }


def _round(value: float) -> float:
    return float(f"{value:.4g}")
