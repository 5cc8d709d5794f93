"""Runs the peer comparisons, each in a process of its own, and reads the JSON line that each ends with.

A peer whose program is not installed is skipped with a line that says how to get it. Which sizes are measured is the
scripts' own; the quick ones only show that they work.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.programs import ROOT, run_program

TIMEOUT = 1800
"""Seconds for one peer: several times what the longest takes on a quiet machine."""


@dataclass(frozen=True)
class Peer:
    """A module of benchmarks.peers. `quick` are arguments of a small run; `needs` a module or file (with a slash, from
    the root) that it cannot do without, `install` how to get that."""

    name: str
    quick: tuple[str, ...] = ("--rounds", "1")
    needs: str | None = None
    install: str = ""

    @property
    def installed(self) -> bool:
        """Whether what it needs is here."""
        if self.needs is None:
            return True
        return (ROOT / self.needs).exists() if "/" in self.needs else importlib.util.find_spec(self.needs) is not None


KNOWN = (
    Peer("generate", ("--batch", "8", "--new", "8", "--rounds", "2")),
    Peer("policy_endpoint", ("--sequences", "8", "--new", "8", "--rounds", "2")),
    Peer("http_overhead", ("--requests", "5", "--rounds", "2"), "uvicorn", "make setup"),
    Peer("judge_run", ("--games", "128", "--stored", "256", "--rounds", "1")),
    Peer("reward_batch", ("--items", "64", "--rounds", "2")),
    Peer(
        "trl_grpo",
        ("--prompts", "4", "--samples", "2", "--new", "8", "--demonstrations", "64", "--rounds", "1"),
        needs="trl",
        install="make setup",
    ),
    Peer("trl_sft", ("--rows", "64", "--batch", "8", "--rounds", "1"), needs="trl", install="make setup"),
    Peer("trl_dpo", ("--pairs", "48", "--batch", "8", "--rounds", "1"), needs="trl", install="make setup"),
    # Runs enough for an interval: what both draw for z0 makes a few steps of so small batches differ.
    Peer("trl_kto", ("--pairs", "48", "--batch", "16", "--rounds", "3"), needs="trl", install="make setup"),
    Peer("lm_eval", ("--limit", "8", "--rounds", "1"), "lm_eval", "make setup"),
    Peer("lm_eval_prefixes", ("--limit", "4", "--rounds", "1"), "lm_eval", "make setup"),
    Peer(
        "vllm_cpu",
        ("--sequences", "8", "--new", "8", "--rounds", "1", "--eager"),
        needs=".venv-vllm/.ready",
        install="make vllm",
    ),
)


def peers() -> dict[str, Peer]:
    """Every script of benchmarks/peers by name, known ones first."""
    scripts = {path.stem for path in (ROOT / "benchmarks" / "peers").glob("*.py")}
    known = {peer.name: peer for peer in KNOWN if peer.name in scripts}
    return known | {name: Peer(name) for name in sorted(scripts - known.keys())}


class PeerRuns(NamedTuple):
    """What came of peers, each by name."""

    results: dict[str, Any]
    """What each reported, also one that failed afterwards: what it found is then in its report."""
    skipped: dict[str, str]
    """Why."""
    failed: dict[str, str]
    """How."""

    @property
    def lines(self) -> list[str]:
        """One for each that was skipped or failed."""
        skipped = [f"{name}: skipped, {why}" for name, why in self.skipped.items()]
        return [*skipped, *(f"{name}: {how}" for name, how in self.failed.items())]


def run_peers(names: Sequence[str], quick: bool = False) -> PeerRuns:
    """Runs the named peers one after the other."""
    found = PeerRuns({}, {}, {})
    for peer in (peer for peer in peers().values() if peer.name in names):
        if not peer.installed:
            found.skipped[peer.name] = f"it is not installed; {peer.install}"
            continue
        arguments = peer.quick if quick else ()
        result, trouble = run_program(" ".join([f"benchmarks.peers.{peer.name}", *arguments]), TIMEOUT)
        if trouble:
            found.failed[peer.name] = trouble
        if result is not None:
            found.results[peer.name] = result
    return found
