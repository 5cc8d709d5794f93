"""The fixture `measure`, by which every benchmark is timed beside the calibration kernel, and what several share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.calibration import Paired
from benchmarks.machine import machine
from benchmarks.workloads import random_prompts, random_reward_model
from posttrain.data import nano
from posttrain.data.chat import load_tokenizer

QUICK = os.environ.get("BENCHMARK_QUICK") == "1"
"""One short round each: whether the benchmarks still run, no measurement."""


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Replaces pytest-benchmark's description, which names the host."""
    machine_info.clear()
    machine_info.update(machine())


@pytest.fixture
def measure(benchmark: Any) -> Callable[..., Any]:
    """`measure(call, work=, unit=)` times `call`, which does `work` units each time, and gives its last result.

    calls: how often a round calls it, so that a round takes tens of milliseconds at least. rounds: timed rounds after
    one that warms up. threads: torch's threads in this process; the kernel gets as many.
    """

    def run(
        call: Callable[[], Any], *, work: float, unit: str, calls: int = 1, rounds: int = 15, threads: int = 1
    ) -> Any:
        if QUICK:
            calls, rounds = 1, 1
        paired = Paired(threads)

        def one_round() -> Any:
            for _ in range(calls):
                result = call()
            return result

        result = benchmark.pedantic(
            one_round, setup=paired.before, teardown=paired.after, rounds=rounds, warmup_rounds=1
        )
        seconds = list(benchmark.stats.stats.data)
        benchmark.extra_info.update(
            unit=unit,
            work=work,
            calls=calls,
            threads=threads,
            kernel_seconds=paired.kernel_seconds,
            relative=[value / calls for value in paired.relative(seconds)],
        )
        return result

    return run


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return load_tokenizer(nano.BASE)


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """64 prompts of 40 ids of the nano model."""
    return random_prompts(vocabulary=1024, count=64, length=40)


@pytest.fixture(scope="session")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the nano base as a classifier, its head random."""
    return random_reward_model(tmp_path_factory.mktemp("reward") / "model")


@pytest.fixture(autouse=True)
def _one_thread_again() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
