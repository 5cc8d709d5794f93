"""Runs the peer comparisons, each in a process of its own, and reads the JSON line that each ends with.

A peer whose program is not installed is skipped with a line that says how to get it. Which sizes are measured is the
scripts' own; the quick ones only show that they work.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TIMEOUT = 900


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
    Peer("reward_batch", ("--items", "64", "--rounds", "2")),
    Peer(
        "trl_grpo",
        ("--prompts", "4", "--samples", "2", "--new", "8", "--demonstrations", "64", "--rounds", "1"),
        needs="trl",
        install="make setup",
    ),
    Peer("lm_eval", ("--limit", "8", "--rounds", "1"), "lm_eval", "make setup"),
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


def run_peers(names: Sequence[str], quick: bool = False) -> tuple[dict[str, Any], list[str]]:
    """What each named peer reported, by name, and one line for each that was skipped or failed."""
    results: dict[str, Any] = {}
    troubles: list[str] = []
    for peer in (peer for peer in peers().values() if peer.name in names):
        if not peer.installed:
            troubles.append(f"{peer.name}: skipped, it is not installed; {peer.install}")
            continue
        print(f"== {peer.name}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", f"benchmarks.peers.{peer.name}", *(peer.quick if quick else ())]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            troubles.append(f"{peer.name}: failed, it was not done after {TIMEOUT} s")
            continue
        result = last_object(done.stdout)
        if done.returncode != 0 or result is None:
            troubles.append(f"{peer.name}: failed with status {done.returncode}; what it says is above")
        elif "skipped" in result:
            troubles.append(f"{peer.name}: skipped, {result['skipped']}")
        else:
            results[peer.name] = result
    return results, troubles


def last_object(text: str) -> dict[str, Any] | None:
    """The JSON object in the last line that is one, None without any."""
    for line in reversed(text.splitlines()):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return None
