"""A run of the judge that is killed over and over, at a server that fails: it ends where an undisturbed one does, and
nothing is answered twice but what was in flight at a kill."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import pytest

from posttrain.core.files import write_jsonl
from posttrain.llm_judge.exchange import rows
from posttrain.llm_judge.judges.scripted_server import logged_game
from posttrain.llm_judge.protocols import load_protocol
from posttrain.llm_judge.store import Store

sys.path.insert(0, str(Path(__file__).parent))
from scripted_service import POSTTRAIN, scripted_service

IN_FLIGHT = 16
LATENCY = 0.01
OF_THE_RUN = ("created", "git_commit", "spent", "games", "ended", "record")
"""What of a record is about the run, not about what was judged."""
TIMES = ("created", "time_per_example")
"""The same of an annotation."""
JUDGE = ("--latency", LATENCY, "--position-bias", 0.8, "--noise", 0.5, "--garbage", 0.02, "--stubborn", 0.5)
FAULTS = ("--rate-limited", 0.02, "--retry-after", 0.2, "--errors", 0.02, "--hangs", 0.01, "--hang-seconds", 0.5)

Line = dict[str, Any]
"""Of the server's log: a request."""


@dataclass(frozen=True)
class Stretch:
    """What happened between two kills."""

    asked: Sequence[Line]
    stored: set[str]
    """Keys of the games that the store has at its end."""


def write_answers(folder: Path, number: int) -> None:
    for name in "AB":
        answers = (
            {"instruction": f"{n}?", "output": f"{name} says {n * n}.", "generator": name} for n in range(number)
        )
        write_jsonl(folder / f"{name}.jsonl", answers)


def client(folder: Path, url: str, runs: Path) -> list[str]:
    command = [*POSTTRAIN, "judge", "run", folder / "A.jsonl", folder / "B.jsonl", "--judge", url, "--runs", runs]
    return [str(part) for part in (*command, "--concurrency", IN_FLIGHT, "--json")]


def result(command: Sequence[str]) -> dict[str, Any]:
    """The record that the client leaves, without what is about the run."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert json.loads(Path(record["record"]).read_text()) == {k: v for k, v in record.items() if k != "record"}
    return {name: value for name, value in record.items() if name not in OF_THE_RUN}


def killed(
    command: Sequence[str], log: Path, url: str, store: Path, kills: int, games: int
) -> tuple[dict[str, Any], list[Stretch]]:
    """The client's result when it was killed so many times before, and what happened between the kills.

    Three of four kills come after some more requests, the others after some time, as the client starts or looks up what
    it has: never so late that it has ended.
    """
    chance, stretches = random.Random(6), []
    with log.open("rb") as lines:
        for number in range(kills):
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                try:
                    asked = wait(number, lines, process, chance, int(0.9 * games / kills))
                finally:
                    process.kill()
            assert process.returncode == -signal.SIGKILL
            settle(url)
            stretches.append(Stretch(asked + read(lines), keys(store)))
        said = result(command)
        stretches.append(Stretch(read(lines), keys(store)))
    return said, stretches


def wait(
    number: int, lines: BinaryIO, process: subprocess.Popen[bytes], chance: random.Random, most: int
) -> list[Line]:
    """Returns when it is time for this kill; the requests meanwhile."""
    found: list[Line] = []
    if number % 4 == 3:
        time.sleep(chance.uniform(0.0, 1.5))
        return found
    requests, deadline = chance.randint(1, most), time.monotonic() + 60
    while len(found) < requests:
        assert process.poll() is None, "the client ended before it was killed"
        assert time.monotonic() < deadline, f"{len(found)} requests within a minute, not {requests}"
        time.sleep(0.002)
        found += read(lines)
    return found


def read(lines: BinaryIO) -> list[Line]:
    """What is new in the log, whole lines only."""
    found = []
    while (line := lines.readline()).endswith(b"\n"):
        found.append(json.loads(line))
    lines.seek(-len(line), os.SEEK_CUR)
    return found


def settle(url: str) -> None:
    """Returns when the server has answered what was in flight."""
    httpx.get(f"{url}/livez", trust_env=False)
    time.sleep(2 * LATENCY + 0.05)
    httpx.get(f"{url}/livez", trust_env=False)


def keys(store: Path) -> set[str]:
    with Store(store) as opened:
        return {judgement.key for judgement, _ in opened.annotations()}


def annotations(store: Path) -> dict[str, dict[str, Any]]:
    """By key all that the store holds, but for times."""
    with Store(store) as opened:
        found = list(rows(opened.annotations()))
    return {row["key"]: {name: value for name, value in row.items() if name not in TIMES} for row in found}


def logged(store: Path) -> dict[str, str]:
    """How the server's log calls each game of the store, by key."""
    protocol = load_protocol("alpaca")
    with Store(store) as opened:
        return {
            judgement.key: logged_game(judgement.judge["request"]["model"], protocol.render(game).messages)
            for judgement, game in opened.annotations()
        }


def answered(stretch: Stretch) -> Counter[tuple[str, bool]]:
    """How often each game was answered, and answered after a reminder."""
    return Counter((line["game"], line["reminded"]) for line in stretch.asked if line["status"] == 200)


def garbled(stretches: Sequence[Stretch]) -> set[tuple[str, bool]]:
    lines = [line for stretch in stretches for line in stretch.asked if line.get("garbled")]
    return {(line["game"], line["reminded"]) for line in lines}


@pytest.mark.service
@pytest.mark.parametrize(
    ("comparisons", "kills"),
    [
        pytest.param(100, 2, marks=pytest.mark.long),
        pytest.param(2000, 20, marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ],
)
def test_a_run_killed_at_a_failing_server_ends_as_an_undisturbed_one_does(comparisons, kills, tmp_path):
    games = 2 * comparisons
    write_answers(tmp_path, comparisons)
    calm, stormy = tmp_path / "calm" / "store.db", tmp_path / "stormy" / "store.db"
    with scripted_service(tmp_path / "calm.log", *JUDGE) as url:
        undisturbed = result(client(tmp_path, url, calm.parent))
    with (tmp_path / "calm.log").open("rb") as lines:
        whole = Stretch(read(lines), keys(calm))
    with scripted_service(log := tmp_path / "stormy.log", *JUDGE, *FAULTS) as url:
        disturbed, stretches = killed(client(tmp_path, url, stormy.parent), log, url, stormy, kills, games)

    assert disturbed == undisturbed
    assert undisturbed["rates"]["n_total"] > 0.95 * comparisons
    assert undisturbed["annotations"]["count"] == games
    assert annotations(stormy) == annotations(calm)
    assert len(whole.stored) == games
    # Garbage belongs to the game: the same ones, and there were some.
    assert garbled(stretches) == garbled([whole]) != set()
    assert max(answered(whole).values()) == 1

    name_of, before, lost = logged(stormy), set(), []
    for stretch in stretches:
        asked = {line["game"] for line in stretch.asked}
        assert not asked & before, "what was stored is asked again"
        assert max(answered(stretch).values(), default=1) == 1, "answered twice without a kill between"
        before = {name_of[key] for key in stretch.stored}
        lost.append({game for game, _ in answered(stretch)} - before)
    # Only these are ever answered again.
    assert all(len(some) <= IN_FLIGHT for some in lost)
    assert not lost[-1]
    failed = Counter(line["status"] for stretch in stretches for line in stretch.asked)
    assert sum(count for status, count in failed.items() if status != 200) > 0.02 * games
    if kills > 2:
        assert {429, 500, 504} < set(failed)
        assert any(lost), "no kill met an answer on its way"
